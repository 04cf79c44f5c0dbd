"""The chat loop: read, ask, show. Loading goes on behind the first prompt."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NoReturn, TextIO

from llamachat.errors import LlamachatError, UsageError
from llamachat.events import TurnDone
from llamachat.ui import commands
from llamachat.ui.contract import ChatSession
from llamachat.ui.prompt import Prompt, keys_held, open_history
from llamachat.ui.render import Screen, stats_line, status_line
from llamachat.ui.sanitise import sanitise_line

__all__ = ["ChatSession", "run"]

_INTERRUPTED = 130


class StillLoadingError(KeyboardInterrupt):
    """Ctrl-C while a text waited for the model."""


class Chat:
    """One dialog, on one screen, with a session that may still be loading."""

    def __init__(self, load: Callable[[], ChatSession], screen: Screen, model: str = "") -> None:
        self.screen = screen
        self.loading: Future[ChatSession] = Future()
        self._model = model or "the model"
        # A daemon, so that one may leave before a download ends.
        Thread(target=self._load, args=(load,), name="load", daemon=True).start()

    def _load(self, load: Callable[[], ChatSession]) -> None:
        try:
            self.loading.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread, by result()
            self.loading.set_exception(error)

    def session(self) -> ChatSession:
        """Waits for loading, and raises what it raised."""
        if not self.loading.done():
            with _on_ctrl_c(_give_up), self.screen.waiting(f"loading {self._model} …"):
                self.loading.result()
        return self.loading.result()

    def failure(self) -> BaseException | None:
        """Why there will never be a session."""
        return self.loading.exception() if self.loading.done() else None

    def handle(self, text: str) -> TurnDone | None:
        """Obey a command or answer a message. Raises LeaveError."""
        found = commands.find(text)
        if found is None:
            return self._ask(commands.message(text))
        command, argument = found
        command.run(self.session, self.screen, argument)
        return None

    def _ask(self, text: str) -> TurnDone:
        session = self.session()
        with _on_ctrl_c(session.interrupt):
            return self.screen.answer(session.ask(text))

    def status(self) -> str:
        if not self.loading.done() or self.failure():
            return f"loading {sanitise_line(self._model)} …"
        session = self.session()
        model = sanitise_line(session.describe()["model"])
        return status_line(model, session.last_stats, session.context_used, session.context_size)

    def parameters(self) -> Iterable[str]:
        return self.session().parameters() if self.loading.done() else ()


def run(
    load: Callable[[], ChatSession], *, model: str = "", history_file: Path | None = None, no_color: bool = False
) -> int:
    """Chat until the person leaves; returns the exit code.

    `load` runs in a thread and must not write to the terminal; `model` is the name to show meanwhile. Off a terminal
    each line of stdin is a message, answers alone go to stdout, and the first failed turn gives the exit code.
    Leaving before the model is loaded ends the process.
    """
    _survive_bad_text(sys.stdin, sys.stdout, sys.stderr)
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Screen(sys.stdout, sys.stdout if at_terminal else sys.stderr, no_color=no_color)
    chat = Chat(load, screen, model)
    try:
        if at_terminal:
            screen.banner(model)
            code = converse(chat, _prompt(chat, history_file, no_color))
        else:
            code = answer_lines(chat, sys.stdin)
        return code if chat.loading.done() else _leave_now(code)
    except LlamachatError as error:
        screen.error(error)
        return error.exit_code


def converse(chat: Chat, prompt: Prompt) -> int:
    """The interactive loop."""
    chat.loading.add_done_callback(lambda _: prompt.redraw())
    typed = default = ""
    # Ctrl-C means something in the prompt, a wait and an answer; in the instants between them it must mean nothing.
    with _on_ctrl_c(lambda: None), keys_held():
        while True:
            try:
                typed, default = prompt.read(default), ""
                done = chat.handle(typed)
                if done:
                    chat.screen.note(stats_line(done))
            except commands.LeaveError:
                return 0
            except StillLoadingError:
                default = typed
                chat.screen.note("still loading; your text is kept")
            except LlamachatError as error:
                if chat.failure():
                    raise
                chat.screen.error(error)
            chat.screen.space()


def answer_lines(chat: Chat, lines: Iterable[str]) -> int:
    """The loop off a terminal."""
    code = 0
    try:
        chat.session()  # a model that does not load is an error, even if nothing is asked
        for text in commands.messages(lines):
            try:
                done = chat.handle(text)
            except LlamachatError as error:
                if chat.failure():
                    raise
                chat.screen.error(error)
                code = code or error.exit_code
            else:
                if done and done.reason == "interrupt":
                    return _INTERRUPTED
    except commands.LeaveError:
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _prompt(chat: Chat, history_file: Path | None, no_color: bool) -> Prompt:
    history = None
    try:
        history = open_history(history_file) if history_file else None
    except UsageError as error:
        chat.screen.warning(str(error))
    return Prompt(
        status=chat.status, parameters=chat.parameters, failure=chat.failure, history=history, no_color=no_color
    )


def _leave_now(code: int) -> NoReturn:
    """Loading may be deep in native code, whose thread an interpreter that shuts down could only crash."""
    sys.stdout.flush()
    os._exit(code)


def _survive_bad_text(*streams: TextIO) -> None:
    """Show a ? for what a stream's encoding lacks, and read one for what it cannot mean."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _give_up() -> NoReturn:
    raise StillLoadingError


@contextmanager
def _on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
