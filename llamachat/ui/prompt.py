"""The line where a person types: prompt-toolkit, with our keys, a private history and a status line."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from llamachat.errors import UsageError
from llamachat.ui import commands

_STYLE = Style.from_dict({"prompt": "ansicyan bold", "bottom-toolbar": "noreverse dim"})
_LEAVE_HINT = "Ctrl-D or /exit to leave"
_BLOCK_HINT = 'in a block of lines: """ and Enter send it'


class PrivateHistory(FileHistory):
    """What was typed, in a file. A disk that fills up costs the history, not the chat: `trouble` then says so."""

    trouble = ""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            self.trouble = f"your history is no longer saved: {error.strerror}"


def open_history(path: Path) -> PrivateHistory:
    """The history in a file that only its owner can read. Raises UsageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError as error:
        cause = f"the history file {path} cannot be opened ({error.strerror})"
        raise UsageError(cause, "what you type is not remembered", "make it writable") from error
    return PrivateHistory(path)


class Prompt:
    """Reads one typed text at a time. `status` and `parameters` are asked anew at each redraw and completion.

    A `failure` ends the reading with that exception: it is looked for at each redraw, and redraw() may be called from
    any thread.
    """

    def __init__(
        self,
        *,
        status: Callable[[], str],
        parameters: Callable[[], Iterable[str]] = tuple,
        failure: Callable[[], BaseException | None] = lambda: None,
        history: PrivateHistory | None = None,
        no_color: bool = False,
    ) -> None:
        self._status = status
        self._failure = failure
        self._history = history
        self._hint = ""
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", _sign())],
            multiline=True,
            prompt_continuation="  ",
            key_bindings=self._keys(),
            completer=_SlashCompleter(parameters),
            complete_while_typing=False,
            history=history or InMemoryHistory(),
            bottom_toolbar=self._toolbar,
            style=_STYLE,
            color_depth=ColorDepth.DEPTH_1_BIT if no_color else None,
            enable_suspend=True,
        )
        self._session.app.before_render += self._leave_on_failure
        self._session.default_buffer.on_text_changed += self._forget_hint
        self.redraw = self._session.app.invalidate

    def read(self, default: str = "") -> str:
        """The next text, never blank; raises LeaveError on Ctrl-D."""
        try:
            text = self._session.prompt(default=default)
        except EOFError as error:
            raise self._failure() or commands.LeaveError from error
        return text.encode(errors="replace").decode()  # bytes that are no UTF-8 come as lone surrogates

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)
        keys.add("enter", filter=typing)(_send)
        keys.add("escape", "enter", filter=typing)(_new_line)
        keys.add("c-j", filter=typing)(_new_line)
        keys.add("c-c", filter=typing)(self._clear)
        keys.add("<sigint>")(self._clear)
        return keys

    def _clear(self, event: KeyPressEvent) -> None:
        """Undo (Ctrl-_) brings the text back."""
        buffer = event.current_buffer
        buffer.save_to_undo_stack()
        buffer.document = Document()
        self._hint = _LEAVE_HINT

    def _toolbar(self) -> str:
        if commands.block_open(self._session.default_buffer.text):
            return _BLOCK_HINT
        trouble = self._history.trouble if self._history else ""
        return self._hint or trouble or self._status()

    def _forget_hint(self, buffer: Buffer) -> None:
        self._hint = ""

    def _leave_on_failure(self, app: Application[str]) -> None:
        error = self._failure()
        if error and app.future and not app.future.done():
            app.exit(exception=error)


class _SlashCompleter(Completer):
    def __init__(self, parameters: Callable[[], Iterable[str]]) -> None:
        self._parameters = parameters

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        word = len(text.rpartition(" ")[2])
        for name, help in commands.completions(text, self._parameters()):
            yield Completion(name, start_position=-word, display_meta=help)


def _send(event: KeyPressEvent) -> None:
    text = event.current_buffer.text
    if commands.block_open(text):
        _new_line(event)
    elif text.strip():
        event.current_buffer.validate_and_handle()


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.newline(copy_margin=False)


def _sign() -> str:
    try:
        "❯".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "> "
    return "❯ "


@contextmanager
def keys_held() -> Iterator[None]:
    """Between prompts, typed keys wait unseen for the next one, and Ctrl-C throws away neither them nor output."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    held = termios.tcgetattr(sys.stdin)
    held[0] &= ~termios.ICRNL  # Enter stays Enter
    held[3] &= ~(termios.ECHO | termios.ICANON)
    held[3] |= termios.NOFLSH
    termios.tcsetattr(sys.stdin, termios.TCSANOW, held)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
