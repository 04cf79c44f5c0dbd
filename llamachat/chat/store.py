"""Dialogs on disk: one append-only file of JSON lines each, readable by its owner only, held by one chat at a time."""

import difflib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.chat import glance, input_history
from llamachat.chat.history import History, mend, replay
from llamachat.chat.journal import SUFFIX, Journal, is_whole_record, lines_of, tail_of
from llamachat.errors import UsageError
from llamachat.events import Forgotten, Found, SavedDialog
from llamachat.generation import kept
from llamachat.system import private

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_NAME = 80  # bytes
LOCKS = ".locks"
READ = 32 << 20  # bytes of dialogs that are read for their answers
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])", re.IGNORECASE)


class Archive:
    """The folder of all dialogs."""

    def __init__(self, folder: Path, typed: Path | None = None) -> None:
        """`typed`: the input history, from which a dialog's questions go with it."""
        self.folder, self._typed = folder, typed
        self._seen: dict[Path, tuple[tuple[int, int], SavedDialog]] = {}  # by time and size of the file

    # ---- looking ----

    def saved(self) -> list[SavedDialog]:
        """All of them, the latest first."""
        found = list[SavedDialog]()
        for path in self._files():
            with suppress(OSError):  # somebody just removed it, or it cannot be read
                found.append(self._glance(path))
        return sorted(found, key=lambda each: (each.modified, each.name), reverse=True)

    def about(self, name: str) -> SavedDialog:
        """What a list tells of a dialog. Raises UsageError where there is none, and OSError."""
        return self._glance(self._there(name))

    def look(self, name: str) -> tuple[SavedDialog, History]:
        """A dialog as it is on disk now; nothing is written. Raises UsageError, FormatError and OSError."""
        about, history = self.about(name), replay(*self.read(name))
        mend(history)
        return about, history

    def search(self, text: str) -> Iterator[Found]:
        """Lines that have this text in them, in whatever case; the latest dialog first."""
        for dialog in self.saved():
            with suppress(OSError):
                yield from glance.search(self._path(dialog.name), text)

    def _glance(self, path: Path) -> SavedDialog:
        status = path.stat()
        state = status.st_mtime_ns, status.st_size
        if self._seen.get(path, ((0, 0), None))[0] != state:
            self._seen[path] = state, glance.glance(path)
        return self._seen[path][1]

    def latest(self) -> str | None:
        """The name of the one that was changed last."""
        return next((_name(path) for path in self._by_time()), None)

    def answers(self, tokenizer: str) -> Iterator[list[int]]:
        """Tokens of what was answered in the latest dialogs, as far as they are of this tokenizer."""
        left = READ
        for path in self._by_time():
            with suppress(OSError):
                if (size := path.stat().st_size) <= left:
                    left -= size
                    yield from glance.answers(path, tokenizer)

    def _by_time(self) -> list[Path]:
        """The files, that which was changed last first."""
        found = list[tuple[float, str, Path]]()
        for path in self._files():
            with suppress(OSError):
                found.append((path.stat().st_mtime, _name(path), path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def model_of(self, name: str) -> str | None:
        """The model that a dialog was last held with; None where there is no such dialog, or none that can be read."""
        with suppress(OSError, UsageError):
            return self.about(name).model or None
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
        path = self._there(name)
        return lines_of(path), str(path)

    def reopen(self, name: str, lock: "BaseFileLock") -> Journal:
        """Its file, to write on behind its last whole record, on a new line. Raises OSError."""
        path = self._path(name)
        size = path.stat().st_size
        tail = tail_of(path, size)
        if is_whole_record(tail):
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
        self._let_go(journal.name, journal.lock)
        journal.path, journal.lock = path, lock

    def move(self, name: str, to: str) -> None:
        """Rename a dialog that nobody has open. Raises UsageError where that cannot be, and OSError."""
        path, lock = self._there(name), self._held(name, "it keeps its name")
        try:
            free = self._free(to)
            try:
                path.rename(self._path(to))
            finally:
                free.release()
        except BaseException:
            lock.release()
            raise
        self._let_go(name, lock)

    def require_free(self, name: str) -> None:
        """Raises UsageError where there is no dialog of this name, or another chat has it open."""
        self._there(name)
        self._held(name, "nothing was deleted").release()

    def remove(self, name: str) -> Forgotten:
        """Delete a dialog, its keys and values, and its questions in the input history. Raises UsageError where there is
        none or another chat has it open, and OSError."""
        self._there(name)
        return self._delete(name, self._held(name, "nothing was deleted"))

    def discard(self, journal: Journal) -> Forgotten:
        """`remove`, for the dialog that is open here. Raises OSError."""
        journal.close_file()
        return self._delete(journal.name, journal.lock)

    def _delete(self, name: str, lock: "BaseFileLock") -> Forgotten:
        """Keys and values go first, which without the file nobody could find, and the history last, which takes room on the
        disk to be written."""
        path = self._path(name)
        try:
            uid, asked = glance.identity(path), {*glance.questions(path)} if self._typed else set()
            freed = kept.forget(f"dialog {uid}") if uid else 0
            path.unlink()
        except BaseException:
            lock.release()
            raise
        self._let_go(name, lock)
        return Forgotten(name, freed, input_history.forget(self._typed, asked) if self._typed else 0)

    def _let_go(self, name: str, lock: "BaseFileLock") -> None:
        """Of a name that is no longer used. What is unlinked while it is held nobody else can take to be theirs."""
        (self.folder / LOCKS / name).unlink(missing_ok=True)
        lock.release()

    def _held(self, name: str, consequence: str) -> "BaseFileLock":
        """Raises UsageError where another chat has it."""
        lock = self.hold(name)
        if lock is None:
            raise UsageError(f"another chat has {name} open", consequence, "leave that chat first")
        return lock

    def hold(self, name: str) -> "BaseFileLock | None":
        """The lock of this name; None where another chat has it. Raises OSError."""
        from filelock import FileLock, Timeout

        self._path(name)
        private.folder(self.folder)
        file = private.folder(self.folder / LOCKS) / name
        lock = FileLock(file, mode=private.FILE, thread_local=False)  # opened in one thread, left in another
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def _free(self, name: str) -> "BaseFileLock":
        """The lock of a new name that nobody has. Raises UsageError where somebody does, and for a bad one."""
        check_new_name(name)
        lock = self.hold(name)
        if lock is None or self.exists(name):
            if lock:
                lock.release()
            raise taken(name)
        return lock

    def _there(self, name: str) -> Path:
        """The file of a dialog. Raises UsageError where there is none."""
        path = self._path(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, map(_name, self._files()), n=1)
            remedy = f"did you mean {near[0]}?" if near else "/sessions or `llamachat sessions list` lists them"
            raise UsageError(f"there is no dialog called {name}", remedy=remedy)
        return path

    def _files(self) -> Iterator[Path]:
        """Of all dialogs that can be opened: a pipe would wait for ever, a name that is none was put there by others."""
        found = self.folder.glob("*" + SUFFIX)
        return (each for each in found if _is_name(_name(each)) and os.path.isfile(each))  # noqa: PTH113 (never raises)

    def _path(self, name: str) -> Path:
        check_name(name)
        return self.folder / (name + SUFFIX)


def taken(name: str) -> UsageError:
    """The error for a name that another dialog has."""
    return UsageError(f"there is a dialog called {name} already", remedy="take another name")


def not_all_deleted(name: str, error: OSError) -> UsageError:
    """The error for a dialog of which something may still be there."""
    cause = f"{error.filename or name}: {error.strerror}"
    return UsageError(cause, f"something of {name} is still there", "delete it yourself; /show data says where it lies")


def check_name(name: str) -> None:
    """Raises UsageError for what may not be the name of a file, or not be shown."""
    if not _is_name(name):
        raise UsageError(
            f"{name[:MAX_NAME]!r} cannot be the name of a dialog",
            remedy=f"take letters, digits, spaces, - and _, at most {MAX_NAME} bytes",
        )


def check_new_name(name: str) -> None:
    """`check_name`, and raises UsageError for what Windows takes for a device; dialogs of that name elsewhere can be opened."""
    check_name(name)
    if _DEVICES.fullmatch(name.partition(".")[0].rstrip()):
        cause = f"{name} is the name of a device on Windows"
        raise UsageError(cause, "no dialog gets it", "take another name")


def _is_name(name: str) -> bool:
    bad = set(name) & set('/\\<>:"|?*') or not name.isprintable() or name[:1] in (".", "-", "") or name != name.strip()
    return not bad and len(name.encode(errors="replace")) <= MAX_NAME


def with_ending(name: str, ending: str) -> str:
    """The name with this behind it, shortened where that makes it too long."""
    return name.encode()[: MAX_NAME - len(ending)].decode(errors="ignore") + ending


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (with_ending(name, f"-{number}") for number in count(2))


def _name(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)
