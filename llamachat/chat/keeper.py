"""Keeps a running dialog on disk: its file, the name of that, and what to do where either cannot be had."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamachat.chat.history import History, Record, everything, mend, replay
from llamachat.chat.journal import Journal
from llamachat.chat.store import Archive, check_new_name, taken, with_ending
from llamachat.chat.titles import slug, title
from llamachat.chat.tree import path
from llamachat.errors import UsageError
from llamachat.events import Forgotten


@dataclass
class Opened:
    """A dialog from disk, and its file to go on writing to; None for a copy, which is written with the first question."""

    name: str
    history: History
    journal: Journal | None


class Keeper:
    """`say` is told what a person should know. Without an archive nothing is kept."""

    def __init__(self, archive: Archive | None, say: Callable[[str], None]) -> None:
        self._archive, self._say = archive, say
        self.name: str | None = None  # None: until the first question, which it is made of
        self.journal: Journal | None = None  # made with the first question
        self.unsaved = False

    @property
    def archive(self) -> Archive:
        """Raises UsageError where nothing is kept."""
        if self._archive is None:
            raise UsageError("this chat keeps no history", remedy="start it without --no-history")
        return self._archive

    @property
    def keeps(self) -> bool:
        return self._archive is not None

    def write(self, history: History, records: Sequence[Record], sync: bool) -> None:
        """Write down what has been done; what cannot be written now is written later. Only a `sync` makes a file."""
        if self._archive is None or (self.journal is None and not sync):
            return
        try:
            if self.journal is None:
                self.journal, records = self._create(self._archive, history), everything(history)
            problem = self.journal.append(records, sync)
        except OSError as error:
            problem = error
        if problem and not self.unsaved:
            self._say(f"the dialog cannot be saved ({problem.strerror}); it goes on unsaved until it can")
        elif self.unsaved and not problem:
            self._say("the dialog is saved again")
        self.unsaved = problem is not None

    def _create(self, archive: Archive, history: History) -> Journal:
        """A file of this name, or of one like it where another chat took the name meanwhile."""
        journal = archive.create_fresh(self.name or archive.fresh(_name_for(history)))
        if self.name not in (None, journal.name):
            self._say(f"there is a dialog called {self.name} by now; this one is saved as {journal.name}")
        self.name = journal.name
        return journal

    def rename(self, name: str) -> None:
        """Raises UsageError for a bad or taken name."""
        archive = self.archive
        if name == self.name:
            return
        check_new_name(name)
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
                mended = mend(history) if history.uid else _begun(history)
                if lock is None:
                    return self._copy(name, history)
                journal = archive.reopen(name, lock)
                journal.append(mended)  # what finds no room goes with the next records
                if journal.torn:
                    lost = f"the {journal.torn} bytes of that are left out, all else is here"
                    self._say(f"the dialog {name} was torn off in the middle of its last record; {lost}")
                return Opened(name, history, journal)
            except BaseException:
                if lock:
                    lock.release()
                raise
        except OSError as error:
            raise UsageError(f"the dialog {name} cannot be opened: {error.strerror}") from error

    def adopt(self, opened: Opened) -> None:
        """Leave the one so far and go on with this."""
        self.close()
        self.name, self.journal = opened.name, opened.journal

    def leave(self) -> None:
        """Let the file go, and have another one for what comes."""
        self.close()
        self.name = None

    def discard(self) -> Forgotten:
        """Delete this dialog's file, which there is, and all that belongs to it. Raises OSError."""
        journal, self.journal = self.journal, None
        assert journal is not None
        return self.archive.discard(journal)

    def close(self) -> None:
        """Let the file go."""
        if self.journal is not None:
            self.journal.close()
        self.journal, self.unsaved = None, False

    def _copy(self, name: str, history: History) -> Opened:
        """It becomes a file when something is asked in it."""
        history.uid = secrets.token_hex(8)
        copy = self.archive.fresh(with_ending(name, "-copy"))
        self._say(f"another chat has {name} open; what you ask here is saved in a copy of it, {copy}")
        return Opened(copy, history, None)


def _name_for(history: History) -> str | None:
    """Made of the question that is being asked; None where it has no words."""
    asked = [node.text for node in path(history.tree.active) if node.role == "user"]
    return slug(title(asked[-1])) or None if asked else None


def _begun(history: History) -> list[Record]:
    """Records of a dialog whose file holds none, as where its first was torn."""
    history.uid = secrets.token_hex(8)
    return everything(history)
