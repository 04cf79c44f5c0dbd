"""One answer on its way out, whatever it is printed on: events in, text and notes out, and a tail that may still change.

Where nothing can be redrawn the text goes out as it comes and there is no tail. Elsewhere it is drawn in blocks, each
printed once when it is finished; those that are not are the tail.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rich.text import Text

from llamachat.events import Event, Evicted, TextDelta, TurnDone
from llamachat.system.sanitise import Sanitiser
from llamachat.ui.cells import count, cut, wrap
from llamachat.ui.markdown import Block, MarkdownStream, draw
from llamachat.ui.plain import PlainStream, RawStream
from llamachat.ui.theme import Theme, load

Kind = Literal["raw", "plain", "markdown"]
LAST = 3  # lines of a thought that are shown while it goes on
BAR = "┊"  # left of each


class BlockStream(Protocol):
    """Takes a text in pieces, sanitised, and hands out its blocks."""

    @property
    def tail(self) -> Sequence[Block]: ...

    def feed(self, safe: str) -> list[Block]: ...

    def finish(self) -> list[Block]: ...


STREAMS: Mapping[Kind, Callable[[], BlockStream]] = {
    "raw": RawStream,
    "plain": PlainStream,
    "markdown": MarkdownStream,
}


@dataclass(frozen=True)
class Sheet:
    """What an answer is printed on: `say` prints of the answer, `note` what is beside it. Both get whole lines, but of a
    raw answer, which comes in pieces."""

    theme: Theme
    width: Callable[[], int]  # columns
    say: Callable[[str], None]
    note: Callable[[str], None]
    kind: Kind = "raw"
    told: bool = True  # whether it is said how long a thought was

    @property
    def raw(self) -> bool:
        return self.kind == "raw"


class Answer:
    """Feed it the events of a turn, then finish it, also where it was left off."""

    def __init__(self, sheet: Sheet, *, think: bool = False, clock: Callable[[], float] | None = None) -> None:
        """`think`: keep on the screen what a model thinks before it answers."""
        self.text = ""  # of the answer, as it came
        self.done: TurnDone | None = None
        self._sheet = sheet
        self._stream, self._sanitiser = STREAMS[sheet.kind](), Sanitiser()
        self._page = load("none") if sheet.kind == "plain" else sheet.theme  # of the answer itself
        self._thought = _Thought(sheet, think, clock or time.monotonic)
        self._evicted = list[Evicted]()
        self._in_line = False
        self._fresh = False  # right behind a thought, where space says nothing

    @property
    def thinking(self) -> str:
        """How long the model has been thinking, while it does; else nothing."""
        return self._thought.told("thinking")

    def feed(self, event: Event) -> None:
        """Print what is finished now."""
        match event:
            case TextDelta(thinking=True):
                self._thought.feed(event)
            case TextDelta(text):
                self.text += text
                self._fresh = self._thought.end() or self._fresh
                said = text.lstrip() if self._fresh else text
                self._fresh = self._fresh and not said
                self._print(self._stream.feed(self._sanitiser.feed(said)))
            case Evicted():
                self._evicted.append(event)
            case TurnDone():
                self.done = event

    @property
    def tail(self) -> list[str]:
        """Lines that are not finished: they may look different, or be others, after the next event."""
        return self._thought.tail or draw(self._stream.tail, self._sheet.width(), self._page)

    @property
    def passing(self) -> bool:
        """Whether the tail is none of what will be finished: the last lines of a thought that is folded when it ends."""
        return self._thought.passing

    def finish(self) -> None:
        """Print the rest."""
        self._thought.end()
        for block in self._stream.feed(self._sanitiser.finish()) + self._stream.finish():
            self._put(block)
        if self._in_line:
            self._sheet.say("\n")
        self._in_line = False
        self._tell()

    def _print(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._put(block)

    def _put(self, block: Block) -> None:
        if self._sheet.raw:
            self._sheet.say(block.raw)
            self._in_line = not block.raw.endswith("\n") if block.raw else self._in_line
        else:
            self._sheet.say("".join(line + "\n" for line in draw(block, self._sheet.width(), self._page)))

    def _tell(self) -> None:
        """Of evictions, once for all of them."""
        if self._evicted:
            lines = wrap(self._sheet.theme.text(eviction_line(*self._evicted), "warning"), self._sheet.width())
            self._sheet.note("".join(self._sheet.theme.ansi(line) + "\n" for line in lines))


class _Thought:
    """What a model thinks before it answers: its last lines, dim, folded to one line when it ends; or all of it."""

    def __init__(self, sheet: Sheet, shown: bool, clock: Callable[[], float]) -> None:
        self._sheet, self._shown, self._clock = sheet, shown, clock
        self._stream, self._sanitiser = STREAMS["raw" if sheet.raw else "markdown"](), Sanitiser()
        self._began: float | None = None  # while it is under way
        self._tokens = 0
        self._blank = True  # nothing but space so far, as from a model that was told not to think
        self._last: list[str] = []  # finished lines that are still shown

    @property
    def passing(self) -> bool:
        return self._began is not None and not (self._shown or self._sheet.raw)

    def feed(self, event: TextDelta) -> None:
        if self._began is None:
            self._began, self._tokens, self._blank = self._clock(), 0, True
        self._tokens += event.tokens
        self._blank = self._blank and not event.text.strip()
        self._print(self._stream.feed(self._sanitiser.feed(event.text)))

    @property
    def tail(self) -> list[str]:
        if self._began is None or self._sheet.raw:
            return []
        lines = self._drawn(self._stream.tail)
        return lines if self._shown else _last([*self._last, *lines])

    def end(self) -> bool:
        """Fold it; whether there was one."""
        if self._began is None:
            return False
        self._print(self._stream.feed(self._sanitiser.finish() + "\n" * self._sheet.raw) + self._stream.finish())
        if self._sheet.told and not self._blank:
            self._sheet.note(self._line() + ("" if self._sheet.raw else "\n"))
        self._began, self._last = None, []
        return True

    def told(self, verb: str) -> str:
        return "" if self._began is None else thought_line(verb, self._clock() - self._began, self._tokens)

    def _print(self, blocks: Sequence[Block]) -> None:
        if not self._shown:
            self._last = [] if self._sheet.raw else _last([*self._last, *self._drawn(blocks)])
        elif self._sheet.raw:
            self._sheet.note("".join(self._dim(block.raw) for block in blocks))
        else:
            self._sheet.say("".join(line + "\n" for line in self._drawn(blocks)))

    def _drawn(self, blocks: Sequence[Block]) -> list[str]:
        lines = draw(blocks, self._sheet.width() - 2, load("none"))
        return [self._dim(f"{BAR} {line}".rstrip()) for line in lines]

    def _dim(self, safe: str) -> str:
        return self._sheet.theme.ansi(self._sheet.theme.text(safe, "thinking"))

    def _line(self) -> str:
        said, width = self.told("thought"), self._sheet.width()
        text = self._sheet.theme.text(said if self._sheet.raw else cut(said, width), "note")
        return "".join(self._sheet.theme.ansi(line) + "\n" for line in wrap(text, width))


def _last(lines: Sequence[str]) -> list[str]:
    """The last of them that say something."""
    return [line for line in lines if Text.from_ansi(line).plain != BAR][-LAST:]


def thought_line(verb: str, seconds: float, tokens: int) -> str:
    """Like "thought for 3.2 s · 120 tokens"."""
    return f"{verb} for {duration(seconds)} · {count(tokens, 'token')}"


def duration(seconds: float) -> str:
    """Like "3.2 s" and "12 s"."""
    return f"{seconds:.{int(seconds < 10)}f} s"


def eviction_line(*events: Evicted) -> str:
    """What all of them took together."""
    turns, tokens = sum(event.turns for event in events), sum(event.tokens for event in events)
    oldest = [{1: "the oldest turn"}.get(turns, f"the {turns} oldest turns")] if turns else []
    start = ["the start of this turn"] if any(not event.turns for event in events) else []
    anew = "; the rest was read anew" if any(event.refilled for event in events) else ""
    size = f" ({count(tokens, 'token')})" if tokens else ""
    return f"no longer seen by the model: {' and '.join(oldest + start)}{size}{anew}"
