"""Requests from a file as they come, and results in one that a broken run can go on with."""

import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from llamachat.errors import LlamachatError, UsageError

LONGEST = 64 << 20  # bytes of a line
LONG = 1 << 20  # characters of a line that is looked at before it is parsed
_BEGINNINGS = (b'{"model": ', b'{"error": ')  # of a result


class Source(Protocol):
    """Where lines come from: see Lines."""

    def take(self, wait: bool) -> str | None: ...


class Lines:
    """A file's lines, which, unlike a text file's, can be asked for without waiting.

    What is no UTF-8 in them comes as lone surrogates; a byte-order mark is left out.
    """

    def __init__(
        self, file: BinaryIO, while_waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """`while_waiting` is entered wherever the next line is waited for."""
        self._file = file.fileno()
        self._while_waiting = while_waiting
        self.data = bytearray()
        self._ended = self._begun = False
        self._skipping = False  # the rest of a line that is too long

    def take(self, wait: bool) -> str | None:
        """The next line; "" at the end; None if it has not come yet, and is not to be waited for.

        Raises UsageError for one that is too long; the one behind it is next.
        """
        searched = 0
        while (end := self.data.find(b"\n", searched) + 1) == 0 and not self._ended:
            if len(self.data) > LONGEST:
                self.data.clear()
                self._skipping = True
            if not wait and not self._ready():
                return None
            searched = len(self.data)
            self._read()
        line = bytes(self.data[: end or len(self.data)])
        del self.data[: len(line)]
        skipped, self._skipping = self._skipping, False
        if skipped or len(line) > LONGEST:
            raise UsageError(f"a line is longer than {LONGEST:,} bytes", "it was skipped")
        text = line.decode(errors="surrogateescape")
        text, self._begun = text if self._begun else text.removeprefix("\ufeff"), True
        return text

    def _ready(self) -> bool:
        if sys.platform == "win32":  # only knows sockets
            return True
        return bool(select.select([self._file], [], [], 0)[0])

    def _read(self) -> None:
        with self._while_waiting():
            data = os.read(self._file, 1 << 16)
        self._ended = not data
        self.data += data


def numbered(lines: Source, idle: Callable[[], bool]) -> Iterator[tuple[int, str | LlamachatError | None]]:
    """The lines that are not blank, numbered from 1 with the others; None for one that has not come yet, which is waited for
    where whoever takes them is `idle`; and an error in the place of one that cannot be read."""
    number = 0
    while (line := _taken(lines, idle())) != "":
        number += line is not None
        if not isinstance(line, str) or line.strip():
            yield number, line


def _taken(lines: Source, wait: bool) -> str | LlamachatError | None:
    try:
        return lines.take(wait)
    except LlamachatError as error:
        return error


def parse_line(line: str, number: int) -> Any:
    """The JSON of a line. Raises UsageError."""
    if len(line) > LONG and 8 * (line.count("[") + line.count("{")) > len(line):  # each takes over 20 times its bytes
        raise UsageError(f"line {number} is mostly brackets", "it was skipped")
    try:
        return json.loads(utf8(line, f"line {number}"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"line {number} is not JSON: {error}", "it was skipped") from error


def utf8(text: str, where: str) -> str:
    """The text itself. Raises UsageError for one that no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not UTF-8", "it was not sent", "convert it") from error
    return text


def open_results(file: Path, resume: bool) -> tuple[TextIO, int]:
    """A file to append results to, and how many it holds. Raises UsageError rather than lose what is in it."""
    try:
        there = file.exists()
        if there and not file.is_file():
            raise UsageError(
                f"{file} is no file", "nothing was run", "give another --output, or none and redirect with >"
            )
        if there and not resume:
            raise UsageError(f"{file} exists", "nothing was run", "add --resume to go on with it, or remove it")
        held = _cut(file) if there else 0
        return file.open("a", encoding="utf-8", newline="\n"), held
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "nothing was run") from error


def _cut(file: Path) -> int:
    """Cut off a torn last line, interrupted answers, and errors that no answer follows, which may be of a server that went away;
    returns how many results are left."""
    with file.open("r+b") as results:
        count = end = answered = kept = 0
        for line in results:
            result = _parsed(line)
            if not line.endswith(b"\n") and any(line.startswith(b[: len(line)]) for b in _BEGINNINGS):
                break
            if not isinstance(result, dict) or not result.keys() & {"error", "model"}:
                raise UsageError(f"line {count + 1} of {file} is no result", "nothing was run", "give another --output")
            if result.get("finish_reason") == "interrupt":
                break
            count, end = count + 1, end + len(line)
            if "error" not in result:
                answered, kept = count, end
        results.truncate(kept)
    return answered


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
