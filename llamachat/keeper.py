"""Keeps a running dialog on disk: its file, the name of that, and what to do where either cannot be had."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamachat.errors import UsageError
from llamachat.history import History, Record, everything, replay
from llamachat.store import Archive, Journal, check_name, taken


@dataclass
class Opened:
    """A dialog from disk, and its file to go on writing to."""

    name: str
    history: History
    journal: Journal


class Keeper:
    """`say` is told what a person should know. Without an archive nothing is kept."""

    def __init__(self, archive: Archive | None, say: Callable[[str], None]) -> None:
        self._archive, self._say = archive, say
        self.name = archive.fresh() if archive else None
        self.journal: Journal | None = None  # made with the first question
        self._unsaved = False

    @property
    def archive(self) -> Archive:
        """Raises UsageError where nothing is kept."""
        if self._archive is None:
            raise UsageError("this chat keeps no history", remedy="start it without --no-history")
        return self._archive

    def write(self, history: History, records: Sequence[Record], sync: bool) -> None:
        """Write down what has been done; what cannot be written now is written later. Only a `sync` makes a file."""
        if self._archive is None or (self.journal is None and not sync):
            return
        try:
            if self.journal is None:
                self.journal, records = self._create(self._archive), everything(history)
            problem = self.journal.append(records, sync)
        except OSError as error:
            problem = error
        if problem and not self._unsaved:
            self._say(f"the dialog cannot be saved ({problem.strerror}); it goes on unsaved until it can")
        elif self._unsaved and not problem:
            self._say("the dialog is saved again")
        self._unsaved = problem is not None

    def _create(self, archive: Archive) -> Journal:
        """A file of this name, or of one like it where another chat took the name meanwhile."""
        wanted, self.name = self.name, archive.fresh(self.name)
        if self.name != wanted:
            self._say(f"there is a dialog called {wanted} by now; this one is saved as {self.name}")
        return archive.create(self.name)

    def rename(self, name: str) -> None:
        """Raises UsageError for a bad or taken name."""
        archive = self.archive
        check_name(name)
        if name == self.name:
            return
        try:
            if self.journal is not None:
                archive.rename(self.journal, name)
            elif archive.exists(name):
                raise taken(name)
        except OSError as error:
            raise UsageError(f"the dialog cannot be renamed: {error.strerror}", "it keeps its name") from error
        self.name = name

    def fetch(self, name: str) -> Opened:
        """Another dialog, or a copy of it where another chat has it open. Raises UsageError, FormatError."""
        archive = self.archive
        try:
            lines, where = archive.read(name)
            lock = archive.hold(name)
            try:
                history = replay(lines, where)
                return Opened(name, history, archive.reopen(name, lock)) if lock else self._copy(name, history)
            except BaseException:
                if lock:
                    lock.release()
                raise
        except OSError as error:
            raise UsageError(f"the dialog {name} cannot be opened: {error.strerror}") from error

    def adopt(self, opened: Opened) -> None:
        """Leave the one so far and go on with this."""
        self.close()
        self.name, self.journal, self._unsaved = opened.name, opened.journal, False

    def close(self) -> None:
        """Let the file go."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def _copy(self, name: str, history: History) -> Opened:
        copy = self.archive.fresh(f"{name}-copy")
        history.uid = secrets.token_hex(8)
        journal = self.archive.create(copy)
        if problem := journal.append(everything(history), sync=True):
            journal.close()
            raise problem
        self._say(f"another chat has this dialog open; this is a copy of it, called {copy}")
        return Opened(copy, history, journal)
