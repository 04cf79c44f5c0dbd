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
from rich.text import Text

from llamachat.events import Event, TextDelta
from llamachat.system.sanitise import sanitise, sanitise_line
from llamachat.ui.answer import Answer, Kind, Sheet
from llamachat.ui.cells import wrap
from llamachat.ui.live import Flow, Region
from llamachat.ui.prompt import Prompt, sign
from llamachat.ui.render import Screen, stats_line
from llamachat.ui.theme import Theme

_FRAME = 1 / 12  # seconds between two paintings: more cost the model time, and the eye gains nothing
_ECHOED = 12  # lines of a long message that are repeated above its answer

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
    ) -> None:
        """`wait` is told what is waited for, `mistake` of an item that could not be shown or done."""
        self.screen = LiveScreen(Paper(self.post), theme, lambda: output.get_size().columns, wait)
        self.pieces = 0  # of the answer under way
        self.failing = 0  # paintings that were begun and not finished
        self._mistake = mistake
        self._theme, self._output, self._plain, self._think = theme, output, plain, think
        self._prompt: Prompt | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[Item] = deque()
        self._due = False  # something waits to be shown
        self._awake = False  # and is about to be
        self._flow = Flow()
        self._columns = output.get_size().columns
        self._lines: list[str] = []  # finished, but not painted yet
        self._line = ""  # of our own text, not at its end yet
        self._answer: Answer | None = None
        self._since = 0.0  # the answer's first piece

    def begin(self, prompt: Prompt) -> None:
        """Show what comes above this prompt, from now on."""
        self._prompt, self._loop = prompt, asyncio.get_running_loop()
        prompt.app.after_render += lambda _: self._drawn(prompt.size, prompt.region)
        self.wake()

    def end(self) -> None:
        """Show the rest, now that there is no prompt any more."""
        self._loop = None
        self._take_in()
        try:
            self._paint(self._output.get_size(), Region())
        except Exception:
            self._write("".join(line + "\n" for line in self._lines))  # what was to be said all the same
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
        self.pieces = 0
        lines = sanitise(text).expandtabs(4).split("\n")
        if len(lines) > _ECHOED:
            lines = [*lines[: _ECHOED - 1], f"… {len(lines) - _ECHOED + 1} more lines"]
        mark = self._theme.text(sign(), "key")
        for line in lines:
            for part in wrap(Text(line), max(8, self._columns - 2)):
                self._lines.append(self._theme.ansi(Text.assemble(mark, part)))
                mark = Text("  ")
        self.wake()

    def end_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer:
            answer.finish()
            if answer.done:
                self.screen.note(stats_line(answer.done))

    def thinking(self) -> str:
        """How long the model has been thinking, while it does; else nothing."""
        return self._answer.thinking if self._answer else ""

    def speed(self) -> float:
        """Of the answer under way, in pieces a second; 0 while that is anybody's guess."""
        seconds = time.monotonic() - self._since
        return (self.pieces - 1) / seconds if self.pieces > 1 and seconds > 0.5 else 0.0

    def _drawn(self, size: Size, region: Region) -> None:
        """Each time counts: a menu may come and go between two paintings, and leave the screen scrolled."""
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
            self._take_in()
            self._paint(size, self._prompt.region)
            self.failing = 0

    def _rest(self) -> None:
        """Until there is more, unless there is already."""
        self._awake = False
        if self._due:
            self.wake()

    def _take_in(self) -> None:
        while self._inbox:
            try:
                self._take(self._inbox.popleft())
            except Exception as error:  # noqa: BLE001 - the others are shown all the same
                self._mistake(error)

    def _take(self, item: Item) -> None:
        if isinstance(item, str):
            self._print(item)
        elif callable(item):
            item()
        else:
            self._event(item)

    def _print(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        self._lines += lines

    def _event(self, event: Event) -> None:
        if self._answer is None:
            kind: Kind = "plain" if self._plain else "markdown"
            sheet = Sheet(self._theme, lambda: self._columns, self._print, self._print, kind)
            self._answer = Answer(sheet, think=self._think)
        self._answer.feed(event)
        if isinstance(event, TextDelta):
            self._since = self._since if self.pieces else time.monotonic()
            self.pieces += 1

    def _paint(self, size: Size, region: Region) -> None:
        tail = self._answer.tail if self._answer else []
        passing = bool(self._answer and self._answer.passing)
        written = self._flow.paint(self._lines, tail, size.columns, size.rows, region, passing=passing)
        self._lines = []
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

    def __init__(self, paper: Paper, theme: Theme, width: Callable[[], int], wait: Callable[[str], None]) -> None:
        stream = cast(TextIO, paper)
        super().__init__(stream, stream, theme=theme, width=width)
        self._wait = wait

    @contextmanager
    def waiting(self, line: str) -> Iterator[None]:
        self._wait(sanitise_line(line))
        try:
            yield
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
