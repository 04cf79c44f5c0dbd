"""What a person sees of a chat: answers as plain text while they stream, and our own short lines between them.

All that reaches the terminal goes through the sanitiser here. An answer is written as it is: no markup is read into
it, the terminal wraps it, and nothing is drawn twice, so it may be longer than the screen or go to a file.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from rich.console import Console
from rich.text import Text

from llamachat.errors import LlamachatError
from llamachat.events import Event, Evicted, Stats, TextDelta, TurnDone
from llamachat.ui.sanitise import Sanitiser, sanitise, sanitise_line

_ENDINGS = {"stop": [], "length": ["cut off at the token limit"], "interrupt": ["stopped"]}


class Screen:
    """Answers go to `out`, everything else to `notes` (the same, at a terminal); coloured only on a terminal that can.

    NO_COLOR and TERM=dumb are honoured by rich.
    """

    def __init__(self, out: TextIO, notes: TextIO, *, no_color: bool = False) -> None:
        self._out = out
        self._notes = Console(
            file=notes, no_color=no_color or None, soft_wrap=True, markup=False, emoji=False, highlight=False
        )

    def answer(self, events: Iterable[Event]) -> TurnDone:
        """Show a turn while it comes; however it ends, the next line starts fresh."""
        answer, done = _Answer(self), None
        try:
            for event in events:
                match event:
                    case TextDelta(text):
                        answer.write(text)
                    case Evicted():
                        answer.evicted(event)
                    case TurnDone():
                        done = event
        finally:
            answer.end()
        assert done is not None, "a turn ends with TurnDone"
        return done

    def write(self, safe: str) -> None:
        """Put sanitised text out at once."""
        self._out.write(safe)
        self._out.flush()

    def banner(self, model: str) -> None:
        name = [(" · " + sanitise_line(model), "")] if model else []
        hint = (" · /help for commands, Ctrl-D to leave", "dim")
        self._notes.print(Text.assemble(("llamachat", "bold cyan"), *name, hint))
        self.space()

    def note(self, line: str) -> None:
        self._notes.print(Text(sanitise_line(line), "dim"))

    def warning(self, line: str) -> None:
        self._notes.print(Text(sanitise_line(line), "yellow"))

    def error(self, error: LlamachatError) -> None:
        self._notes.print(Text.assemble(("error: ", "bold red"), sanitise_line(str(error))))

    def text(self, text: str) -> None:
        self._notes.print(Text(sanitise(text)))

    def table(self, rows: Iterable[tuple[str, str]]) -> None:
        """Two columns, as wide as they need."""
        cells = [(sanitise_line(left), sanitise_line(right)) for left, right in rows]
        width = max((len(left) for left, _ in cells), default=0)
        for left, right in cells:
            self._notes.print(Text.assemble("  ", (left.ljust(width), "cyan"), "  ", right))

    def space(self) -> None:
        self._notes.print()

    def waiting(self, line: str) -> AbstractContextManager[object]:
        """A spinner while the body runs; nothing off a terminal."""
        return self._notes.status(Text(sanitise_line(line), "dim")) if self._notes.is_terminal else nullcontext()


class _Answer:
    """One answer on its way to the screen."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._sanitiser = Sanitiser()
        self._in_line = False
        self._evicted = Evicted(0, 0)

    def write(self, text: str) -> None:
        self._tell_evicted()
        self._put(self._sanitiser.feed(text))

    def evicted(self, event: Evicted) -> None:
        self._evicted = Evicted(self._evicted.turns + event.turns, self._evicted.tokens + event.tokens)

    def end(self) -> None:
        self._put(self._sanitiser.finish())
        if self._in_line:
            self._put("\n")
        self._tell_evicted()

    def _put(self, safe: str) -> None:
        if safe:
            self._screen.write(safe)
            self._in_line = not safe.endswith("\n")

    def _tell_evicted(self) -> None:
        """Between lines only: an answer is not cut in two by what happens meanwhile."""
        if self._evicted.tokens and not self._in_line:
            self._screen.warning(eviction_line(self._evicted))
            self._evicted = Evicted(0, 0)


def eviction_line(event: Evicted) -> str:
    what = {0: "the start of this turn", 1: "the oldest turn"}.get(event.turns, f"the {event.turns} oldest turns")
    return f"no longer seen by the model: {what} ({count(event.tokens, 'token')})"


def stats_line(done: TurnDone) -> str:
    """Like "12 tokens · 45.1 tok/s · first token 0.21 s · context 3% of 8192"."""
    stats = done.stats
    speed = [f"{stats.decode_tok_s:.1f} tok/s"] if stats.decode_tok_s else []
    first = [f"first token {stats.prefill_s:.2f} s"] if stats.completion_tokens else []
    tokens = count(stats.completion_tokens, "token")
    context = f"context {percent(stats.context_used, stats.context_size)} of {stats.context_size}"
    return " · ".join([*_ENDINGS[done.reason], tokens, *speed, *first, context])


def status_line(model: str, last: Stats | None, used: int, size: int) -> str:
    """Like "SmolLM2-135M-Instruct · 45.1 tok/s · context ███░░░░░░░ 30% of 8192"."""
    speed = [f"{last.decode_tok_s:.1f} tok/s"] if last and last.decode_tok_s else []
    name = model if len(model) <= 30 else model[:29] + "…"
    return " · ".join([name, *speed, f"context {meter(used, size)} {percent(used, size)} of {size}"])


def meter(used: int, size: int, width: int = 10) -> str:
    """A bar that is empty only at nothing used and full only at nothing left."""
    filled = width if used >= size else min(-(-used * width // size), width - 1)
    return "█" * filled + "░" * (width - filled)


def percent(used: int, size: int) -> str:
    share = 100 * used / size
    return f"{share:.0f}%" if share >= 1 or not used else "<1%"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
