"""What was typed before, in a file that only its owner can read."""

import os
from pathlib import Path

from prompt_toolkit.history import FileHistory

from llamachat.errors import UsageError
from llamachat.system import private
from llamachat.ui.pasted import NAMED


class PrivateHistory(FileHistory):
    """What was typed, in a file. A disk that fills up costs the history, not the chat: `trouble` then says so."""

    trouble = ""
    _passing = False

    def remember(self, string: str) -> None:
        """For this chat only: it was typed, but never sent."""
        self._passing = True
        try:
            self.append_string(string)
        finally:
            self._passing = False

    def store_string(self, string: str) -> None:
        if self._passing or NAMED.search(string):  # which means nothing in another chat
            return
        try:
            os.close(private.opened(Path(os.fsdecode(self.filename)), os.O_RDWR))
            super().store_string(string)
        except OSError as error:
            self.trouble = f"your history is no longer saved: {error.strerror}"


def open_history(path: Path) -> PrivateHistory:
    """The history in a file that only its owner can read, made with the first text. Raises UsageError."""
    try:
        private.folder(path.parent)
        if path.exists():
            os.close(private.opened(path, os.O_RDWR))
    except OSError as error:
        cause = f"the history file {path} cannot be opened ({error.strerror})"
        raise UsageError(cause, "what you type is not remembered", "make it writable") from error
    return PrivateHistory(path)
