"""Dialogs on disk: one append-only file of JSON lines each, readable by its owner only, held by one chat at a time."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.chat.history import Record
from llamachat.chat.tree import first_line
from llamachat.errors import FormatError, UsageError, reading
from llamachat.events import SavedDialog
from llamachat.system import private

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_LINE = 64 << 20  # bytes; a message has at most MAX_TEXT characters, of at most 12 bytes each
MAX_TEXT = 4 << 20
MAX_NAME = 80  # characters
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
            data = _tail(self.path, self._end)
            self._end -= len(data)
            self._waiting = data + self._waiting
            os.ftruncate(self._file, self._end)

    def close(self) -> None:
        os.close(self._file)
        self.lock.release()


class Archive:
    """The folder of all dialogs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def saved(self) -> list[SavedDialog]:
        """All of them, the latest first."""
        found = list[SavedDialog]()
        for path in self.folder.glob("*" + SUFFIX):
            with suppress(OSError):  # somebody just removed it, or it cannot be read
                found.append(_glance(path))
        return sorted(found, key=lambda each: (each.modified, each.name), reverse=True)

    def latest(self) -> str | None:
        """The name of the one that was changed last."""
        found = list[tuple[float, str]]()
        for path in self.folder.glob("*" + SUFFIX):
            with suppress(OSError):
                found.append((path.stat().st_mtime, _name(path)))
        return max(found)[1] if found else None

    def model_of(self, name: str) -> str | None:
        """The model that a dialog was last held with; None where there is no such dialog, or none that can be read."""
        path = self._path(name)
        with suppress(OSError):
            return _glance(path).model or None
        return None

    def exists(self, name: str) -> bool:
        """Where that cannot be seen, it does not."""
        try:
            return self._path(name).exists()
        except PermissionError:
            return False

    def fresh(self, name: str | None = None) -> str:
        """A name that is not taken: this one, or the time, perhaps with a number behind it."""
        name = name or time.strftime("%Y-%m-%d_%H-%M-%S")
        return next(each for each in _numbered(name) if not self.exists(each))

    def create(self, name: str) -> Journal:
        """A new, empty file. Raises UsageError for a bad or taken name, and OSError."""
        return Journal(self._path(name), self._free(name))

    def create_fresh(self, name: str) -> Journal:
        """`create`, with a number behind the name where another chat has it. Raises OSError."""
        check_name(name)
        names = _numbered(name)
        while True:
            with suppress(UsageError):  # taken
                return self.create(next(names))

    def read(self, name: str) -> tuple[Iterator[tuple[int, bytes]], str]:
        """Its numbered lines, and what errors call the file; half a record at its end is left out."""
        path = self._path(name)
        if not path.exists():
            raise UsageError(f"there is no dialog called {name}", remedy="/sessions lists them")
        return _lines(path), str(path)

    def reopen(self, name: str, lock: "BaseFileLock") -> Journal:
        """Its file, to write on behind its last whole record, on a new line. Raises OSError."""
        path = self._path(name)
        size = path.stat().st_size
        tail = _tail(path, size)
        if _is_whole(tail):
            journal = Journal(path, lock, size)
            journal.end_line()
            return journal
        journal = Journal(path, lock, size - len(tail))
        journal.torn = len(tail)
        return journal

    def rename(self, journal: Journal, name: str) -> None:
        """Raises UsageError for a bad or taken name, and OSError."""
        lock = self._free(name)
        try:
            path = journal.path.rename(self._path(name))
        except OSError:
            lock.release()
            raise
        journal.lock.release()
        journal.path, journal.lock = path, lock

    def hold(self, name: str) -> "BaseFileLock | None":
        """The lock of this name; None where another chat has it. Raises OSError."""
        from filelock import FileLock, Timeout

        self._path(name)
        private.folder(self.folder)
        file = private.folder(self.folder / ".locks") / name
        lock = FileLock(file, mode=private.FILE, thread_local=False)  # opened in one thread, left in another
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def _free(self, name: str) -> "BaseFileLock":
        """The lock of a name that nobody has. Raises UsageError where somebody does."""
        lock = self.hold(name)
        if lock is None or self.exists(name):
            if lock:
                lock.release()
            raise taken(name)
        return lock

    def _path(self, name: str) -> Path:
        check_name(name)
        return self.folder / (name + SUFFIX)


def taken(name: str) -> UsageError:
    """The error for a name that another dialog has."""
    return UsageError(f"there is a dialog called {name} already", remedy="take another name, or /load it")


def check_name(name: str) -> None:
    """Raises UsageError for what may not be the name of a file everywhere, or not be shown."""
    bad = set(name) & set('/\\<>:"|?*') or not name.isprintable() or name[:1] in (".", "-", "") or name != name.strip()
    if bad or len(name.encode(errors="replace")) > MAX_NAME:
        raise UsageError(
            f"{name[:MAX_NAME]!r} cannot be the name of a dialog",
            remedy=f"take letters, digits, spaces, - and _, at most {MAX_NAME} bytes",
        )


def with_ending(name: str, ending: str) -> str:
    """The name with this behind it, shortened where that makes it too long."""
    return name.encode()[: MAX_NAME - len(ending)].decode(errors="ignore") + ending


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (with_ending(name, f"-{number}") for number in count(2))


def _name(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
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
            elif _is_whole(line):
                yield number, line


def _is_whole(tail: bytes) -> bool:
    """Whether what stands behind the last newline is a record and not a part of one (which is never JSON)."""
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(tail), dict)
    return False


def _tail(path: Path, end: int) -> bytes:
    """What stands behind the last newline."""
    with path.open("rb") as file:
        start = max(0, end - MAX_LINE)
        file.seek(start)
        return file.read(end - start).rpartition(b"\n")[2]


def _glance(path: Path) -> SavedDialog:
    """What a list shows of a dialog, without making it; damaged lines are for whoever opens it."""
    questions, title, model = 0, "", ""
    with suppress(FormatError):
        for _, line in _lines(path):
            if not line.startswith((b'{"type": "message"', b'{"type": "model"')):
                continue
            with suppress(FormatError), reading(path):
                record = json.loads(line)
                if record["type"] == "model":
                    model = str(record["name"])
                elif record["role"] == "user":
                    questions += 1
                    title = title or first_line(record["text"])[:200]
    return SavedDialog(_name(path), path.stat().st_mtime, questions, title, model)
