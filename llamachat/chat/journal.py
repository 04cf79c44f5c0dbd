"""A dialog's file: JSON lines, each on disk whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.chat.history import Record
from llamachat.errors import FormatError
from llamachat.system import private

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_LINE = 64 << 20  # bytes; a message has at most MAX_TEXT characters, of at most 12 bytes each
MAX_TEXT = 4 << 20
SUFFIX = ".jsonl"


class Journal:
    """A dialog's file, open at its end and locked. A line is on disk whole or not at all.

    `torn`: bytes of half a record that a crash had left at its end; they are cut off.
    """

    torn = 0

    def __init__(self, path: Path, lock: "BaseFileLock", end: int = 0) -> None:
        self.path, self.lock, self._end = path, lock, end
        self._waiting = b""  # lines that found no room on the disk; they go with the next ones
        self._file = private.opened(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(self._file, end)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    def end_line(self) -> None:
        """End the line that the file ends in; what is appended begins a new one."""
        self._waiting = b"\n"
        self.append([])

    def append(self, records: Iterable[Record], sync: bool = False) -> OSError | None:
        """Write them behind the others; `sync`: and wait until the disk has them. Returns what was in the way, if anything."""
        self._waiting += b"".join(json.dumps(record).encode() + b"\n" for record in records)
        try:
            while self._waiting:
                written = os.write(self._file, self._waiting)
                self._end, self._waiting = self._end + written, self._waiting[written:]
            if sync:
                os.fsync(self._file)
        except OSError as error:
            self._take_back_half_a_line()
            return error
        return None

    def _take_back_half_a_line(self) -> None:
        """So that the file ends with a line even where the disk filled up in the middle of one."""
        if self._waiting.startswith(b"\n"):  # the last record is whole, and its newline still to come
            return
        with suppress(OSError):
            data = tail_of(self.path, self._end)
            self._end -= len(data)
            self._waiting = data + self._waiting
            os.ftruncate(self._file, self._end)

    def close_file(self) -> None:
        """Write no more; the name stays held."""
        os.close(self._file)

    def close(self) -> None:
        self.close_file()
        self.lock.release()


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Its whole lines, numbered from 1, the last one even where only its newline is missing. Raises FormatError for one
    that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if line.endswith(b"\n"):
                yield number, line
            elif len(line) == MAX_LINE:
                raise FormatError(f"{path}, line {number}, is too long", "the dialog was not opened", "repair the line")
            elif is_whole_record(line):
                yield number, line


def is_whole_record(tail: bytes) -> bool:
    """Whether what stands behind the last newline is a record and not a part of one (which is never JSON)."""
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(tail), dict)
    return False


def tail_of(path: Path, end: int) -> bytes:
    """What stands behind the last newline."""
    with path.open("rb") as file:
        start = max(0, end - MAX_LINE)
        file.seek(start)
        return file.read(end - start).rpartition(b"\n")[2]
