"""A chat at a terminal: the prompt is alive while the model loads and while an answer streams above it.

The event loop's thread owns the terminal, the queue of typed texts and all that is shown. One other thread obeys the texts,
one at a time, and posts what comes of it.
"""

import asyncio
import itertools
import os
import re
import signal
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from prompt_toolkit.output import Output

from llamachat.chat.session import Session
from llamachat.errors import LlamachatError, UsageError
from llamachat.events import Exchange, Finished, SavedDialog
from llamachat.system.sanitise import sanitise_line
from llamachat.system.signals import handled
from llamachat.ui import commands
from llamachat.ui.above import Above, terminal
from llamachat.ui.cells import cells, cut
from llamachat.ui.faults import Faults, save_unsent, terminal_gone, undrawable
from llamachat.ui.opening import Chat, ignore_signals
from llamachat.ui.prompt import Prompt
from llamachat.ui.render import answering_line, status_line
from llamachat.ui.suggestions import ChatCompleter
from llamachat.ui.theme import Theme
from llamachat.ui.typed_history import PrivateHistory, open_history
from llamachat.ui.worker import Typed, Worker, not_yet

BEAT = 0.5  # seconds between two looks at the clock
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Conversation:
    """Listens to the prompt and has the texts obeyed."""

    def __init__(
        self,
        chat: Chat,
        theme: Theme,
        history_file: Path | None = None,
        library: commands.Library | None = None,
        *,
        returned: tuple[SavedDialog, Sequence[Exchange]] | None = None,
        plain: bool = False,
        think: bool = False,
        stats: bool = False,
        vi: bool = False,
        output: Output | None = None,
        verbose: bool = False,
        typed: bytes = b"",
    ) -> None:
        """`typed`: keys that were pressed already. `verbose`: show where a mistake of the chat itself was made."""
        self._chat, self._returned = chat, returned
        self._output = output or terminal()
        self._above = Above(theme, self._output, self._set_waiting, self.mistake, plain=plain, think=think, stats=stats)
        self.screen = self._above.screen
        self._faults = Faults(
            self.screen.warning,
            self.screen.text,
            lambda error: self._exit(error=error),
            lambda: max(self.prompt.failing, self._above.failing),
            verbose=verbose,
        )
        self._unsent = history_file.parent if history_file else None  # where what was not sent is put
        self._worker = Worker(chat, self._above, self, self._seen)
        self.context = commands.Context(
            self._worker.session,
            self._ready,
            self.screen,
            send=self._above.post_raw,
            library=library or commands.EmptyLibrary(),
            confirm=self._confirm,
            stopped=lambda: self._worker.stop_asked,
        )
        self.prompt = Prompt(
            self,
            completer=ChatCompleter(self.context),
            history=self._history(history_file),
            theme=theme,
            vi=vi,
            output=self._output,
            typed=typed,
        )
        self._finished: Finished | None = (
            None  # how the session was when it was last idle: it is not asked while it answers
        )
        self._memory = ""  # that was held then
        self._waiting = ""  # what a command waits for
        self._queue: deque[Typed] = deque()
        self._busy: Typed | None = None
        self._not_offered: list[Typed] = []  # given back, but something else was being typed
        self._reply: Future[bool] | None = None  # to a question that the person was asked
        self._last: BaseException | None = None  # what the chat ends with

    # ---- the whole ----

    def run(self, question: str | None = None) -> int:
        """Until the person leaves; returns the exit code. Raises what loading raised, and what nothing can go on after.

        `question` is asked first.
        """
        self.screen.banner(self._chat.model)
        if self._returned:
            self.screen.returned(*self._returned)
            self.screen.space()
        if question is not None:
            self._queue.append(Typed(commands.literal(question), question))
            self.prompt.remember(commands.as_typed(question))
        try:
            code = self.prompt.app.run(pre_run=self._begin, set_exception_handler=False)
        except Exception as error:  # noqa: BLE001 - raised again below
            self._ended_by(error)
            code = 128 + signal.SIGHUP
        finally:
            ignore_signals()
            with handled([signal.SIGINT], lambda *_: None):  # Ctrl-C, too, until what was typed is saved
                self._end()
        if self._last:
            raise self._last
        return code

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: self.mistake(told.get("exception") or RuntimeError(told["message"])))
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._exit, 128 + number)
        self.prompt.app.create_background_task(self._beat())
        self._above.begin(self.prompt)
        self._chat.loading.add_done_callback(lambda _: self._above.post(self._loaded))
        self._worker.start(self.context)
        self._above.post(self._next)

    def _end(self) -> None:
        """Stop what is going on and show what came of it; an answer that does not stop keeps the session busy."""
        self.stop()
        self._worker.end()
        given_back = [self._busy] if self._busy and self._worker.given_back else []
        waiting = (*self._not_offered, *given_back, *self._queue)
        unsent = [*(typed.text for typed in waiting), *self.prompt.left()]
        self._queue.clear()
        if line := save_unsent(unsent, self._unsent):
            self._above.post(partial(self.screen.text, line))  # after what the answer's end says
        try:
            self._above.end()
        except Exception as error:  # noqa: BLE001 - raised again at the end
            self._ended_by(error)

    def _ended_by(self, error: Exception) -> None:
        """An error that no one asked to end with is one of drawing; a terminal that is gone is none."""
        if not terminal_gone(error):
            self._last = self._last or undrawable(error)

    def _exit(self, code: int = 0, error: BaseException | None = None) -> None:
        future = self.prompt.app.future
        if future and not future.done():
            if error:
                self._last = None if terminal_gone(error) else error
                self.prompt.app.exit(exception=error)
            else:
                self.prompt.app.exit(result=code)

    def _loaded(self) -> None:
        if error := self._chat.failure():
            self._exit(error=error)
            return
        for line in self._chat.watch.notes:
            self.screen.note(line)
        if not self._busy:
            self._look()
        self.prompt.redraw()

    @property
    def busy(self) -> bool:
        """Whether it is with something that was sent."""
        return self._busy is not None

    # ---- as the prompt's listener ----

    def send(self, text: str, shown: str) -> None:
        if self._reply and commands.is_reply(text):
            self._above.echo(shown)
            self._answered(commands.is_yes(text))
            return
        if self._busy and commands.at_once(text):
            self._glance(text, shown)
        else:
            self._not_offered = [each for each in self._not_offered if each.text != text]
            self._queue.append(Typed(text, shown))
            self._next()

    def _glance(self, text: str, shown: str) -> None:
        """Obey a command that only looks at what is finished, beside what is going on."""
        self.screen.space()
        self._above.post(partial(self._above.echo, shown))
        try:
            commands.respond(replace(self.context, session=not_yet, before=self._finished), text)
        except commands.LeaveError:
            self.leave()
        except LlamachatError as error:
            self.screen.error(error)
        self.screen.space()

    @property
    def queued(self) -> bool:
        return bool(self._queue)

    def take_back(self) -> str:
        """The text that was sent last of those that wait."""
        return self._queue.pop().shown

    def stop(self) -> bool:
        self._answered(False)
        if self._busy and self._queue:
            self.prompt.give_back([typed.shown for typed in self._queue])
            self._queue.clear()
        self._worker.stop(self.busy)
        self.prompt.redraw()
        return self.busy

    def fail(self, error: BaseException) -> None:
        self._last = error  # not by prompt-toolkit, where an OSError is one of the terminal

    def leave(self) -> None:
        self._exit()

    def hidden(self) -> None:
        self._above.hidden()

    def cleared(self) -> None:
        self._above.cleared()

    def mistake(self, error: BaseException) -> None:
        self._faults.take(error)
        self.prompt.redraw()

    def status(self) -> Sequence[str]:
        if not self._queue:
            return [self._state()]
        count = f"{len(self._queue)} waiting" if len(self._queue) > 1 else "waiting"
        hint = " · Up takes it back" if len(self._queue) == 1 else " · Up takes the last back"
        room = self._columns - cells(count) - 2 - cells(hint)
        text = sanitise_line(self._queue[0].shown[:200])
        return [f"{count}: {cut(text, room)}{hint}" if room > 9 else f"{count}: {text}", self._state()]

    def _state(self) -> str:
        if self._reply:
            return "y or n, then Enter"
        spinner = _SPINNER[int(time.monotonic() / BEAT) % len(_SPINNER)]
        if self._busy and self._worker.stop_asked:
            return f"{spinner} stopping as soon as that can be"
        if self._waiting:
            return f"{spinner} {self._waiting}"
        if not self._chat.loading.done():
            return f"{spinner} {self._loading()}"
        if self._worker.answering:
            return f"{spinner} {self._progress()}"
        if self._finished is None:
            return ""
        last = self._finished
        return status_line(
            last.about["model"],
            last.last_stats,
            last.context_used,
            last.context_size,
            width=self._columns,
            scheme=re.split("[,;]", last.about["weights"])[0],
            memory=self._memory,
        )

    @property
    def _columns(self) -> int:
        """For a line of the status."""
        return self._output.get_size().columns - 1

    def _progress(self) -> str:
        """Of the answer under way."""
        above, size = self._above, self._finished.context_size if self._finished else 0
        thinking, unit = above.thinking(), "token" if above.counted else "piece"
        doing = thinking or ("answering" if above.pieces else above.reading())
        tokens = 0 if thinking else above.tokens
        return answering_line(doing, tokens, unit, above.speed(), above.used, size, width=self._columns - 2)

    def _loading(self) -> str:
        watch, model = self._chat.watch, sanitise_line(self._chat.model)
        return sanitise_line(watch.line) or (f"loading {model}: {watch.plan}" if watch.plan else f"loading {model} …")

    # ---- one text after the other ----

    def _next(self) -> None:
        if self._busy is None and self._queue:
            self._busy = self._queue.popleft()
            self._above.echo(self._busy.shown)
            self._worker.obey(self._busy)
        self.prompt.redraw()

    def _put_question(self, question: str, reply: Future[bool]) -> None:
        self._reply = reply
        self.screen.note(f"{question} (y/n)")
        if self._worker.stop_asked:  # before it could be asked
            self._answered(False)
        self.prompt.redraw()

    def _answered(self, yes: bool) -> None:
        if reply := self._reply:
            self._reply = None
            reply.set_result(yes)

    def done(self, given_back: Typed | None, told: bool = False) -> None:
        if given_back:
            offered = self.prompt.offer(given_back.shown)
            if not offered:
                self._not_offered.append(given_back)
                self.screen.note("not sent; Up brings your text back")
            elif not told:
                self.screen.note("not sent; your text is kept")
        try:
            self._look()
        finally:
            self.screen.space()
            self._busy = None
            self._above.post(self._next)  # after what was just said
        if self.context.prefill:
            self.prompt.offer(self.context.prefill)
            self.context.prefill = ""

    def _look(self) -> None:
        """See how the session is, while it is idle."""
        session = self._chat.ready()
        if session is None:
            return
        self._finished = session.finished()
        about = self._finished.about
        self._memory = about["memory"] if "memory" in about else _memory()
        for line in session.notices():
            self.screen.note(line)

    async def _beat(self) -> None:
        """The clock's part of the status line: often while nothing else moves, rarely while an answer streams."""
        for beat in itertools.count():
            await asyncio.sleep(BEAT)
            moving = self._worker.answering and self._above.pieces
            if not self._chat.loading.done() or self._waiting or (self._busy and (not moving or beat % 4 == 0)):
                self.prompt.redraw()

    # ---- in the worker's thread ----

    def _confirm(self, question: str) -> bool:
        """What the next y or n says to it, while other texts wait their turn; Ctrl-C says no."""
        reply: Future[bool] = Future()
        self._above.post(partial(self._put_question, question, reply))
        return reply.result()

    def _seen(self, session: Session) -> None:
        self._finished = self._finished or session.finished()

    def _ready(self) -> Session | None:
        return None if self._busy else self._chat.ready()

    def _set_waiting(self, line: str) -> None:
        self._waiting = line
        self.prompt.redraw()

    def _history(self, file: Path | None) -> PrivateHistory | None:
        try:
            return open_history(file) if file else None
        except UsageError as error:
            self.screen.warning(str(error))
            return None


def _memory() -> str:
    """What the process holds now, for people; nothing where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e6:,.0f} MB"
