"""What a person sees of a chat: answers while they stream, and our own short lines between them.

All that reaches the terminal goes through the sanitiser here. Off a terminal, and where no styles are wanted, an answer is
written as it is; for a terminal it becomes lines that are printed once and a short tail that is redrawn: see answer.py.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.text import Text

from llamachat.errors import LlamachatError
from llamachat.events import Branch, Event, Exchange, Found, ModelView, SavedDialog, Stats, TokenView, Turn, TurnDone
from llamachat.system.sanitise import sanitise, sanitise_line
from llamachat.ui import drawings, model_list
from llamachat.ui.answer import BAR, Answer, Kind, Sheet, duration
from llamachat.ui.cells import cells, count, cut, wrap
from llamachat.ui.exchange import exchange_lines
from llamachat.ui.markdown import MarkdownStream, draw
from llamachat.ui.own_table import table_lines
from llamachat.ui.saved_list import dialog_lines, found_lines, heading, short_name
from llamachat.ui.theme import Theme, choose, load

_ENDINGS = {
    "stop": "",
    "length": "cut off at the token limit",
    "interrupt": "stopped",
    "repeat": "ended: it said the same over and over",
}
_ENDLESS = 10**9  # columns off a terminal, where lines are not wrapped


class Screen:
    """Answers go to `out`, everything else to `notes` (the same, at a terminal).

    `theme`: by default what fits `notes`. `width`: columns, asked anew for each line; by default the terminal's, and off
    one nothing is wrapped. `think`: show what a model thinks before it answers. `stats`: and what each answer took, behind it.
    `kind`: how earlier answers are drawn; `sign`: what stands before their questions.
    """

    def __init__(
        self,
        out: TextIO,
        notes: TextIO,
        *,
        theme: Theme | None = None,
        width: Callable[[], int] | None = None,
        think: bool = False,
        stats: bool = False,
        no_color: bool = False,
        kind: Kind = "plain",
        sign: str = "> ",
    ) -> None:
        self.theme = theme or choose(None, notes, no_color=no_color)
        self.think, self.stats = think, stats
        self.kind, self.sign = kind, sign
        self.at_terminal = notes.isatty()
        self._out = out
        self._notes = notes
        self._width = width or (_terminal_width if self.at_terminal else lambda: _ENDLESS)

    def answer(self, events: Iterable[Event]) -> TurnDone:
        """Show a turn as plain text while it comes; however it ends, the next line starts fresh."""
        answer = Answer(
            Sheet(self.theme, self._width, self.write, self.note_raw, told=self.at_terminal), think=self.think
        )
        try:
            for event in events:
                answer.feed(event)
        finally:
            answer.finish()
        assert answer.done is not None, "a turn ends with TurnDone"
        return answer.done

    def ended(self, done: TurnDone) -> None:
        """How an answer ended, unless by itself; what it took, where that is wanted."""
        if line := stats_line(done) if self.stats else ending(done):
            self.note(line)

    def write(self, safe: str) -> None:
        """Put sanitised text of an answer out at once."""
        self._out.write(safe)
        self._out.flush()

    def note_raw(self, safe: str) -> None:
        """Put out what is beside the answer, sanitised and styled."""
        self._notes.write(safe)
        self._notes.flush()

    def banner(self, model: str) -> None:
        name = [" · " + short_name(model)] if model else []
        hint = (" · /help for commands, Ctrl-D to leave", self.theme.style("note"))
        self._print(Text.assemble(("llamachat", self.theme.style("heading")), *name, hint))
        self.space()

    def note(self, line: str) -> None:
        self._print(self.theme.text(sanitise_line(line), "note"))

    def warning(self, line: str) -> None:
        self._print(self.theme.text(sanitise_line(line), "warning"))

    def error(self, error: LlamachatError) -> None:
        self._print(Text.assemble(("error: ", self.theme.style("error")), sanitise_line(str(error))))

    def text(self, text: str) -> None:
        self._print(Text(sanitise(text).expandtabs()))

    def markdown(self, text: str) -> None:
        """A whole text, such as an earlier answer."""
        stream = MarkdownStream()
        self.lines(draw([*stream.feed(sanitise(text)), *stream.finish()], self._page(), self.theme))

    def thought(self, text: str) -> None:
        """What was thought before an answer, dim."""
        stream = MarkdownStream()
        blocks = [*stream.feed(sanitise(text)), *stream.finish()]
        lines = draw(blocks, self._page() - 2, load("none"))
        self.lines(self.theme.ansi(self.theme.text(f"{BAR} {line}".rstrip(), "thinking")) for line in lines)

    def table(self, rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> None:
        """Columns as wide as they need, at a terminal as there is room for; where that is too little, below each other."""
        self.lines(table_lines(rows, header, self._width(), self.theme))

    def space(self) -> None:
        self.lines([""])

    def lines(self, lines: Iterable[str]) -> None:
        """Drawn lines, as they are."""
        self.note_raw("".join(line + "\n" for line in lines))

    @contextmanager
    def waiting(self, line: str) -> Iterator[Callable[[str], None]]:
        """A spinner while the body runs, which may change the line; nothing off a terminal."""
        if not self.at_terminal:
            yield lambda line: None
            return
        console = Console(file=self._notes, no_color=self.theme.plain or None)
        with console.status(Text(sanitise_line(line), "dim")) as status:
            yield lambda line: status.update(Text(sanitise_line(line), "dim"))

    def models(self, views: Sequence[ModelView], current: str) -> None:
        self.lines(model_list.lines(views, current, self._page(), self.theme))

    # ---- seeing inside ----

    def heat(self, tokens: Sequence[TokenView]) -> None:
        self.lines(drawings.heat(tokens, self._page(), self.theme))

    def numbered(self, tokens: Sequence[TokenView]) -> None:
        self.lines(drawings.numbered(tokens, self._page(), self.theme))

    def alternatives(self, index: int, token: TokenView) -> None:
        self.lines(drawings.alternatives(index, token, self._page(), self.theme))

    def context(self, turns: Sequence[Turn], used: int, size: int) -> None:
        self.lines(drawings.context_map(turns, used, size, self._page(), self.theme))

    def branches(self, branches: Sequence[Branch]) -> None:
        self.lines(drawings.branch_tree(branches, self._page(), self.theme))

    def why(self, rows: Iterable[tuple[str, str]]) -> None:
        self.table(rows)

    # ---- looking back ----

    def dialogs(self, saved: Sequence[SavedDialog], current: str | None = None) -> None:
        self.lines(dialog_lines(saved, current, self._width(), self.theme))

    def returned(self, dialog: SavedDialog, exchanges: Sequence[Exchange]) -> None:
        """Which dialog goes on, and what was said last in it."""
        self.heading(dialog)
        self.exchanges(exchanges[-1:], whole=False)

    def heading(self, dialog: SavedDialog) -> None:
        self._print(self.theme.text(heading(dialog, self._width()), "strong"))

    def found(self, found: Found, wanted: str, fresh: bool) -> None:
        """A line in which something was searched; `fresh`: the first of its dialog."""
        self.lines(found_lines(found, wanted, fresh, self._page(), self.theme))

    def exchanges(self, exchanges: Sequence[Exchange], *, whole: bool = True) -> None:
        """As they were shown; unless `whole`, of a long answer its end."""
        for number, each in enumerate(exchanges):
            self.lines([""] * bool(number) + self._looked_back(each, whole))

    def _looked_back(self, exchange: Exchange, whole: bool) -> list[str]:
        width = self._width() if self.kind == "plain" else self._page()
        ending = _ENDINGS[exchange.reason]
        return exchange_lines(
            exchange, self.theme, width, self.kind, self.sign, think=self.think, whole=whole, ending=ending
        )

    def _page(self) -> int:
        """Columns for drawings, which have some width off a terminal too."""
        width = self._width()
        return 100 if width == _ENDLESS else width

    def _print(self, text: Text) -> None:
        self.lines(self.theme.ansi(line) for line in wrap(text, self._width()))


def ending(done: TurnDone) -> str:
    """How an answer ended; nothing where it did so by itself."""
    return _ENDINGS[done.reason] + ("; /continue goes on" if done.reason == "repeat" and done.exact else "")


def stats_line(done: TurnDone) -> str:
    """Like "12 tokens · 45.1 tok/s · first token 0.21 s · context 3% of 8192"."""
    stats = done.stats
    tokens = count(stats.completion_tokens, unit(stats))
    context = [f"context {each}" for each in _share(stats.context_used, stats.context_size)]
    return " · ".join([*filter(None, [ending(done)]), tokens, *_speed(stats), *_first_token(stats), *context])


def answering_line(
    doing: str,
    tokens: int,
    unit: str,
    speed: float,
    used: int,
    size: int,
    *,
    stop: str = "Ctrl-C stops",
    width: int = 80,
) -> str:
    """Like "answering · 123 tokens · 45.1 tok/s · context 12% of 8192 · Ctrl-C stops"; where that is too wide, shorter.

    `tokens`, of the answer so far, and `used`, of the context, are 0 where they say nothing.
    """
    came = [count(tokens, unit)] if tokens else []
    fast = [f"{speed:.1f} {'tok' if unit == 'token' else 'pieces'}/s"] if speed else []
    share = percent(used, size) if used and size else ""
    full = [f"context {share} of {size}"] if share else []
    candidates = (
        [doing, *came, *fast, *full, stop],
        [doing, *came, *fast, *([f"{share} of {size}"] if share else []), stop],
        [doing, *came, *fast, *filter(None, [share]), stop],
        [doing, *came, *filter(None, [share]), stop],
        [*(came or [doing]), stop],
        [doing],
    )
    lines = [" · ".join(parts) for parts in candidates]
    return next((line for line in lines if cells(line) <= width), cut(doing, width))


def status_line(
    model: str, last: Stats | None, used: int, size: int, *, width: int = 80, scheme: str = "", memory: str = ""
) -> str:
    """Like "SmolLM2-135M-Instruct Q4_1 · 45.1 tok/s · first token 0.21 s · context ███░░░░░░░ 30% of 8192 · 190 MB".

    Where that is too wide it is said shorter, then the less important goes first; how full the context is stays longest.
    """
    name, scheme, memory = short_name(model), sanitise_line(scheme), sanitise_line(memory)
    speed, first, soon, brief = (_speed(last), *_before_answer(last)) if last else ([], [], [], [])
    shares = _share(used, size)
    filled, small = (
        [f"{meter(used, size, width)} {share}" if size else share for share in shares] for width in (10, 5)
    )
    named, *shorter = ([f"{cut(name, most)} {scheme}".rstrip()] for most in (cells(name), 24, 14))
    held = [memory] if memory else []
    candidates = (
        [*named, *speed, *first, *(f"context {each}" for each in filled), *held],
        *([*each, *speed, *soon, *small, *held] for each in (named, *shorter)),
        *([*each, *speed, *soon, *small] for each in (named, *shorter)),
        [*shorter[-1], *speed, *brief, *small],
        [*shorter[-1], *speed, *small],
        [*shorter[-1], *small],
        [*shorter[-1], *shares],
        [f"context {share}" for share in shares] or shorter[-1],
    )
    lines = [" · ".join(parts) for parts in candidates]
    least = percent(used, size) if size else lines[-1]
    return next((line for line in lines if cells(line) <= width), cut(least, width))


def _share(used: int, size: int) -> list[str]:
    """How full the context is, like "30% of 8192"; "1200 tokens" where the size is not known, and nothing where nothing is."""
    if size:
        return [f"{percent(used, size)} of {size}"]
    return [count(used, "token")] if used else []


def meter(used: int, size: int, width: int = 10) -> str:
    """A bar that is empty only at nothing used and full only at nothing left."""
    filled = width if used >= size else min(-(-used * width // size), width - 1)
    return "█" * filled + "░" * (width - filled)


def percent(used: int, size: int) -> str:
    share = 100 * used / size
    return f"{share:.0f}%" if share >= 1 or not used else "<1%"


def unit(stats: Stats) -> str:
    """What an answer's length is counted in."""
    return "token" if stats.counted else "piece"


def rate(stats: Stats) -> str:
    """How fast an answer came."""
    return f"{stats.decode_tok_s:.1f} {'tok' if stats.counted else 'pieces'}/s"


def _speed(stats: Stats) -> list[str]:
    return [rate(stats)] if stats.decode_tok_s else []


def _before_answer(stats: Stats) -> tuple[list[str], list[str], list[str]]:
    """What one waited for, shorter and shorter: the thought, if there was one, else the first token."""
    if stats.thought_tokens:
        took = f"thought {duration(stats.thought_s)}"
        whole = [f"{took}, {count(stats.thought_tokens, 'token')}"]
        return whole, whole, [took]
    first = _first_token(stats)
    soon = [part.replace(f" {unit(stats)}", "") for part in first]
    return first, soon, soon


def _first_token(stats: Stats) -> list[str]:
    return [f"first {unit(stats)} {stats.prefill_s:.2f} s"] if stats.completion_tokens else []


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns
