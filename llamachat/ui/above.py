"""What is shown above the prompt: answers as they stream and our own lines between them, in the order they are posted."""

import asyncio
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output import Output
from prompt_toolkit.output.vt100 import Vt100_Output

from llamachat.events import Event, Reading, TextDelta
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.answer import Answer, Kind, Sheet
from llamachat.ui.exchange import asked_lines, sign
from llamachat.ui.live import Flow, Region, Row
from llamachat.ui.prompt import Prompt
from llamachat.ui.render import Screen
from llamachat.ui.theme import Theme

_FRAME = 1 / 12  # seconds between two paintings: more cost the model time, and the eye gains nothing

Item = str | Event | Callable[[], None]  # our own text, a part of an answer, or something to do then


class Above:
    """Takes posts from any thread and shows them, in batches, in the event loop's, which all other methods belong to."""

    def __init__(
        self,
        theme: Theme,
        output: Output,
        wait: Callable[[str], None],
        mistake: Callable[[Exception], None],
        *,
        plain: bool,
        think: bool,
        stats: bool,
    ) -> None:
        """`wait` is told what is waited for, `mistake` of an item that could not be shown or done."""
        self._kind: Kind = "plain" if plain else "markdown"
        self.screen = LiveScreen(
            Paper(self.post), theme, lambda: output.get_size().columns, wait, think=think, stats=stats, kind=self._kind
        )
        self.failing = 0  # paintings that were begun and not finished
        self.pieces = 0  # of the answer under way, as are these:
        self.tokens = 0
        self.counted = False  # they are tokens; else a piece is about one
        self.used = 0  # of the context, as far as it is told
        self._mistake = mistake
        self._theme, self._output, self._think = theme, output, think
        self._prompt: Prompt | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[Item] = deque()
        self._due = False  # something waits to be shown
        self._awake = False  # and is about to be
        self._flow = Flow()
        self._columns = output.get_size().columns
        self._rows: list[Row] = []  # finished, but not painted yet
        self._line = ""  # of our own text, not at its end yet
        self._answer: Answer | None = None
        self._number = 0  # of answers so far
        self._reading: Reading | None = None  # while a long prompt is
        self._since = 0.0  # the answer's first piece

    def begin(self, prompt: Prompt) -> None:
        """Show what comes above this prompt, from now on."""
        self._prompt, self._loop = prompt, asyncio.get_running_loop()
        prompt.app.after_render += lambda _: self.drawn(prompt.size, prompt.region)
        self.wake()

    def end(self) -> None:
        """Show the rest, now that there is no prompt any more."""
        self._loop = None
        try:
            self.show(self._output.get_size(), Region())
        except Exception:
            self._write("".join(row.text + "\n" for row in self._rows))  # what was to be said all the same
            raise

    def post(self, item: Item) -> None:
        self._inbox.append(item)
        self.wake()

    def post_raw(self, sequence: str) -> None:
        """Have a control sequence written."""
        self.post(lambda: self._write(sequence))

    def wake(self) -> None:
        self._due = True
        if self._loop and not self._awake:
            self._awake = True
            with suppress(RuntimeError):  # the loop is closed: nobody looks any more
                self._loop.call_soon_threadsafe(self._show)

    def hidden(self) -> None:
        self._flow.let_go()

    def cleared(self) -> None:
        self._flow.forget()
        self.wake()

    def echo(self, text: str) -> None:
        """Repeat a message where its answer will follow."""
        self._rows += map(Row, asked_lines(text, self._theme, self._columns, sign()))
        self.wake()

    def end_answer(self) -> None:
        answer, self._answer = self._answer, None
        self.pieces = self.tokens = self.used = 0
        self.counted = False
        if answer:
            answer.finish()
            if answer.done:
                self.screen.ended(answer.done)

    def thinking(self) -> str:
        """How long the model has been thinking, while it does; else nothing."""
        return self._answer.thinking if self._answer else ""

    def reading(self) -> str:
        """How far a long prompt is read, like "reading 40% of 12,345 tokens"."""
        done, total = (self._reading.done, self._reading.total) if self._reading else (0, 0)
        return f"reading {100 * done // total}% of {total:,} tokens" if total else "reading"

    def speed(self) -> float:
        """Of the answer under way, in tokens a second; 0 while that is anybody's guess."""
        seconds = time.monotonic() - self._since
        return (self.tokens - 1) / seconds if self.pieces > 1 and seconds > 0.5 else 0.0

    def drawn(self, size: Size, region: Region) -> None:
        """The prompt, in this region. Each time counts: a menu may come and go between two paintings, and leave the screen
        scrolled."""
        if size.columns < self._columns:
            self._flow.narrowed(size.columns)
        self._columns = size.columns
        self._flow.squeezed(size.rows - region.height)

    def _show(self) -> None:
        if not (self._loop and self._prompt):
            return
        size = self._output.get_size()
        self._loop.call_later(_FRAME, self._rest)
        self._due = self._prompt.hidden or self._prompt.size != size  # not our terminal, or one not redrawn yet
        if not self._due:
            self.failing += 1
            self.show(size, self._prompt.region)
            self.failing = 0

    def _rest(self) -> None:
        """Until there is more, unless there is already."""
        self._awake = False
        if self._due:
            self.wake()

    def show(self, size: Size, region: Region) -> None:
        """Take in what was posted, and paint it above a region on a screen of this size."""
        while self._inbox:
            try:
                self._take(self._inbox.popleft())
            except Exception as error:  # noqa: BLE001 - the others are shown all the same
                self._mistake(error)
        self._paint(size, region)

    def _take(self, item: Item) -> None:
        if isinstance(item, str):
            self._print(item)
        elif callable(item):
            item()
        else:
            self._event(item)

    def _print(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        self._rows += map(Row, lines)

    def _say(self, lines: str) -> None:
        """Whole lines of the answer."""
        self._rows += [Row(line, self._number) for line in lines.split("\n")[:-1]]

    def _event(self, event: Event) -> None:
        if self._answer is None:
            self._number += 1
            sheet = Sheet(self._theme, lambda: self._columns, self._say, self._print, self._kind)
            self._answer = Answer(sheet, think=self._think)
        self._answer.feed(event)
        self._reading = event if isinstance(event, Reading) else None
        if isinstance(event, TextDelta):
            if not self.pieces:
                self._since = time.monotonic()
                if self._prompt:
                    self._prompt.redraw()  # whose status says until then that the model reads
            self.pieces += 1
            self.tokens += event.tokens
            self.counted = self.counted or bool(event.ids)
            self.used = event.used

    def _paint(self, size: Size, region: Region) -> None:
        answer = self._answer
        number = 0 if answer is None or answer.passing else self._number
        tail = [Row(line, number) for line in answer.tail] if answer else []
        written = self._flow.paint(self._rows, tail, size.columns, size.rows, region)
        self._rows = []
        if written:
            self._write(written)

    def _write(self, text: str) -> None:
        self._output.write_raw(text)
        self._output.flush()


class Paper(io.TextIOBase):
    """A stream whose text is posted."""

    def __init__(self, post: Callable[[str], None]) -> None:
        self._post = post

    def write(self, text: str) -> int:
        self._post(text)
        return len(text)

    def isatty(self) -> bool:
        return True


class LiveScreen(Screen):
    """A screen whose lines appear above the prompt, and that waits in the status line."""

    def __init__(
        self,
        paper: Paper,
        theme: Theme,
        width: Callable[[], int],
        wait: Callable[[str], None],
        *,
        think: bool,
        stats: bool,
        kind: Kind,
    ) -> None:
        stream = cast(TextIO, paper)
        super().__init__(stream, stream, theme=theme, width=width, think=think, stats=stats, kind=kind, sign=sign())
        self._wait = wait

    @contextmanager
    def waiting(self, line: str) -> Iterator[Callable[[str], None]]:
        self._wait(sanitise_line(line))
        try:
            yield lambda line: self._wait(sanitise_line(line))
        finally:
            self._wait("")


class _Terminal(Vt100_Output):
    def erase_down(self) -> None:
        """From the first column on, but not by the sequence alone: at the top of its screen tmux takes that for a wish to
        have all that is there in the scroll-back."""
        self.write_raw("\x1b[K\x1b[C\x1b[J\x1b[D")


def terminal() -> Output:
    """It is never asked where its cursor is: the prompt is as high as it must be, and nothing waits for the reply."""

    def size() -> Size:
        """As it is now: COLUMNS and LINES would stay the same."""
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
        except OSError:  # it is gone
            columns = rows = 0
        return Size(rows or 24, columns or 80)

    return _Terminal(sys.stdout, size, term=os.environ.get("TERM"), enable_cpr=False)
