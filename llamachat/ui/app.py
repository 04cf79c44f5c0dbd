"""The chat: at a terminal a prompt that stays alive (conversation.py), else one text after the other."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO

from llamachat.chat.session import Session
from llamachat.errors import LlamachatError, trace
from llamachat.events import Exchange, SavedDialog, TurnDone
from llamachat.system.sanitise import sanitise, sanitise_line
from llamachat.system.signals import handled
from llamachat.ui import commands
from llamachat.ui.attach import LIMIT
from llamachat.ui.background import asking
from llamachat.ui.faults import save_unsent
from llamachat.ui.opening import ENDINGS, Chat, StillLoadingError, Watch, ignore_signals
from llamachat.ui.render import Screen
from llamachat.ui.theme import choose, fitting, wanted

__all__ = ["Chat", "Watch", "run"]

INTERRUPTED = 130


class SignalledError(BaseException):
    """The process was asked to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class PlainChat(Chat):
    """One text after the other, on a screen that nothing is redrawn on."""

    def __init__(
        self,
        load: Callable[[], Session],
        screen: Screen,
        model: str = "",
        library: commands.Library | None = None,
        send: Callable[[str], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(load, model, watch)
        self.screen = screen
        self._stopped = False  # by Ctrl-C
        self.context = commands.Context(
            self.session,
            self.ready,
            screen,
            send=send,
            library=library or commands.EmptyLibrary(),
            confirm=self._confirm if send else lambda question: False,
            stopped=lambda: self._stopped,
        )

    def session(self) -> Session:
        """Waits for loading, and raises what it raised."""
        if not self.loading.done():
            with _on_ctrl_c(_give_up), self.screen.waiting(f"loading {self.model} …"):
                self.loading.result()
        return self.loading.result()

    def handle(self, text: str) -> TurnDone | None:
        """Obey a command or answer a message. Raises LeaveError, and KeyboardInterrupt where Ctrl-C stopped a command."""
        self._stopped = False
        try:
            with _on_ctrl_c(self._stop):
                events = commands.respond(self.context, text)
            if events and not self._stopped:
                with _on_ctrl_c(self.session().interrupt):
                    return self.screen.answer(events)
            self._show_prefill()
        except LlamachatError as error:
            if not self._stopped:
                raise
            self.screen.error(error)
        finally:
            self._show_notices()
        if self._stopped:
            raise KeyboardInterrupt
        return None

    def _confirm(self, question: str) -> bool:
        """Asks until there is a yes or a no; Ctrl-C and Ctrl-D say no."""
        reply = ""
        with suppress(EOFError, KeyboardInterrupt), _on_ctrl_c(_break_off):
            while not commands.is_reply(reply):
                reply = input(f"{sanitise_line(question)} (y/n) ")
        return commands.is_yes(reply)

    def _stop(self) -> None:
        """A session ends what it computes in its own time, but no one has to wait for it: twice breaks it off."""
        again, self._stopped, session = self._stopped, True, self.ready()
        if session is None:
            raise StillLoadingError
        if again:
            raise KeyboardInterrupt
        session.interrupt()

    def _show_prefill(self) -> None:
        """No text can be put on this terminal's input line."""
        if self.context.prefill:
            self.screen.text(self.context.prefill)
            self.context.prefill = ""

    def _show_notices(self) -> None:
        if session := self.ready():
            lines, self.watch.notes = [*self.watch.notes, *session.notices()], []
            for line in lines:
                self.screen.note(line)


def run(
    load: Callable[[], Session],
    *,
    model: str = "",
    question: str | None = None,
    watch: Watch | None = None,
    history_file: Path | None = None,
    returned: tuple[SavedDialog, Sequence[Exchange]] | None = None,
    library: commands.Library | None = None,
    theme: str | None = None,
    plain: bool = False,
    think: bool = False,
    stats: bool = False,
    vi: bool = False,
    no_color: bool = False,
    verbose: bool = False,
) -> int:
    """Chat until the person leaves; returns the exit code.

    `load` runs in a thread and must not write to the terminal; meanwhile `model` and what `watch` tells are shown. `question` is
    asked first. Off a terminal it is all that is asked, or without one each line of stdin is a message; answers alone go to
    stdout, and the first failed turn gives the exit code.
    Leaving before the model is loaded ends the process. `returned`: the dialog that goes on, whose end is shown first.
    `verbose`: an error that ends the chat comes with its traceback.
    """
    _survive_bad_text(sys.stdin, sys.stdout, sys.stderr)
    person = at_terminal()
    notes = sys.stdout if person else sys.stderr
    screen = Screen(sys.stdout, notes, theme=choose(theme, notes, no_color=no_color), think=think, stats=stats)
    if redraws():
        chat: Chat = Chat(load, model, watch)  # first: it loads while the rest is imported
        with asking(fitting(theme) and wanted(notes, no_color=no_color)) as asked:
            from llamachat.ui.conversation import Conversation

            screen.theme = choose(theme, notes, no_color=no_color, light=asked.light)
        conversation = Conversation(
            chat,
            screen.theme,
            history_file,
            library,
            returned=returned,
            plain=plain,
            think=think,
            stats=stats,
            vi=vi,
            verbose=verbose,
            typed=asked.typed,
        )
        talk = partial(conversation.run, question)
    else:
        chat = one = PlainChat(load, screen, model, library, screen.write if person else None, watch)
        lines = partial(answer_all, one, _texts(question))
        folder = history_file.parent if history_file else None
        talk = partial(converse, one, question, returned=returned, folder=folder) if person else lines
    return _exit_code(talk, chat, screen, notes if verbose else None)


def _exit_code(talk: Callable[[], int], chat: Chat, screen: Screen, traces: TextIO | None) -> int:
    """What a talk ends with, once the chat is closed; the process ends here where something does not stop.

    `traces`: where an error's traceback goes.
    """
    with handled(ENDINGS, _unwind):
        try:
            code = talk()
        except LlamachatError as error:
            screen.error(error)
            if traces:
                traces.write(sanitise(trace(error)))
            code = error.exit_code
        except SignalledError as error:
            code = 128 + error.number
        finally:
            ignore_signals()
            if not chat.busy:
                chat.close()
    if chat.busy or not chat.loading.done():
        leave_now(code)
    return code


def redraws() -> bool:
    """Whether there is a terminal that a prompt can stay alive on."""
    able = sys.platform != "win32" and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return able and at_terminal()


def at_terminal() -> bool:
    """Whether there is a person."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _texts(question: str | None) -> Iterator[str]:
    """What is asked off a terminal."""
    if question is not None:
        return iter([commands.literal(question)])
    return commands.messages(iter(lambda: sys.stdin.readline(LIMIT + 1), ""))  # of which none fills the memory


def converse(
    chat: PlainChat,
    question: str | None = None,
    read: Callable[[str], str] = input,
    returned: tuple[SavedDialog, Sequence[Exchange]] | None = None,
    folder: Path | None = None,
) -> int:
    """The loop at a terminal on which nothing can be redrawn. `folder`: where what was typed and not sent is put."""
    chat.screen.banner(chat.model)
    if returned:
        chat.screen.returned(*returned)
        chat.screen.space()
    typed: list[str] = []
    try:
        return _talk(chat, question, partial(_typed, read, typed))
    finally:
        text = "\n".join(typed)
        begun = commands.block_open(text) or (not chat.ready() and commands.is_message(text))
        if line := save_unsent([text] if begun else [], folder):
            with suppress(OSError):  # the terminal may be gone
                chat.screen.space()
                chat.screen.text(line)


def _talk(chat: PlainChat, question: str | None, read: Callable[[], str]) -> int:
    """One text after the other, until the person leaves."""
    first = [commands.literal(question)] if question is not None else []
    while True:
        try:
            done = chat.handle(first.pop() if first else read())
            if done:
                chat.screen.ended(done)
        except (commands.LeaveError, EOFError):
            return 0
        except StillLoadingError:
            chat.screen.note("still loading; send it again later")
        except KeyboardInterrupt:
            chat.screen.space()
        except LlamachatError as error:
            if chat.ends(error):
                raise
            chat.screen.error(error)
        chat.screen.space()


def _typed(read: Callable[[str], str], lines: list[str]) -> str:
    """The next text, never blank, and its lines as they come."""
    lines.clear()
    while not "".join(lines).strip():
        lines[:] = [read("> ")]
        while commands.block_open("\n".join(lines)):
            lines.append(read(". "))
    return "\n".join(lines)


def answer_all(chat: PlainChat, texts: Iterable[str]) -> int:
    """The loop off a terminal."""
    code = 0
    try:
        chat.session()  # a model that does not load is an error, even if nothing is asked
        for text in texts:
            try:
                done = chat.handle(text)
            except LlamachatError as error:
                if chat.ends(error):
                    raise
                chat.screen.error(error)
                code = code or error.exit_code
            else:
                if done and done.reason == "interrupt":
                    return INTERRUPTED
    except commands.LeaveError:
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def leave_now(code: int) -> NoReturn:
    """Loading may be deep in native code, whose thread an interpreter that shuts down could only crash."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _survive_bad_text(*streams: TextIO) -> None:
    """Show a ? for what a stream's encoding lacks, and read one for what it cannot mean."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _give_up() -> NoReturn:
    raise StillLoadingError


def _break_off() -> NoReturn:
    raise KeyboardInterrupt


def _unwind(number: int, frame: object) -> NoReturn:
    ignore_signals()
    raise SignalledError(number)


def _on_ctrl_c(action: Callable[[], None]) -> AbstractContextManager[None]:
    return handled([signal.SIGINT], lambda *_: action())
