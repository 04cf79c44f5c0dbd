"""One answer on its way: from a backend's events into those for the screen, and into the records of its node."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from llamachat.chat.history import Record
from llamachat.chat.tree import Node
from llamachat.errors import LlamachatError
from llamachat.events import Event, Stats, TextDelta, TurnDone
from llamachat.generation.thinking import Part, ThinkSplitter

FLUSH_S = 1.0  # seconds after which what came of an answer is put on disk


class Stream:
    """Iterate once; `do` is given what the node becomes, the end included, wherever the iteration is left."""

    def __init__(
        self,
        node: Node,
        events: Iterator[Event],
        do: Callable[[Record, bool], None],
        stop: Callable[[], None],
        repeat: bool = False,
    ) -> None:
        """`do` is told with each record whether that is to be on disk when it returns. `stop` interrupts the events.
        `repeat`: show also what the node has already."""
        self._node, self._events, self._do, self._stop, self._repeat = node, events, do, stop, repeat
        self._splitter = ThinkSplitter()
        self._unsaid: tuple[int, ...] = ()  # tokens of text that the splitter holds back
        self._used = 0
        self._thought = _Thought()
        self._texts, self._ids = list[str](), list[int]()  # not yet in a record
        self._flushed = time.monotonic()
        self.done: TurnDone | None = None  # the backend's

    def __iter__(self) -> Iterator[Event]:
        known = [TextDelta(*part) for part in self._splitter.add(self._node.text)]
        try:
            if self._repeat:
                yield from known
            for event in self._events:
                yield from self._heard(event)
            yield from self._told(self._splitter.finish())
        except GeneratorExit:
            self._break_off()
            raise
        finally:
            self._flush()
            self._end()

    def _heard(self, event: Event) -> Sequence[Event]:
        """What of an event is to be shown."""
        if isinstance(event, TurnDone):
            self.done = replace(event, stats=self._thought.added_to(event.stats))
            return ()
        if not isinstance(event, TextDelta):
            return (event,)
        self._texts.append(event.text)
        self._used = event.used
        self._ids += event.ids
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()
        was = self._splitter.thinking
        parts, self._unsaid = self._splitter.add(event.text), (*self._unsaid, *event.ids)
        if self._splitter.thinking and not was:
            self._unsaid = ()  # they are the mark's
        self._thought.goes_on(self._splitter.thinking)
        return self._told(parts)

    def _told(self, parts: Sequence[Part]) -> list[TextDelta]:
        """These parts, the first with the tokens of all."""
        deltas = [TextDelta(*part, () if number else self._unsaid, self._used) for number, part in enumerate(parts)]
        self._unsaid = () if deltas else self._unsaid
        self._thought.tokens += sum(delta.tokens for delta in deltas if delta.thinking)
        return deltas

    def _break_off(self) -> None:
        """Nobody listens any more: have the answer end here, and hear how."""
        self._stop()
        with suppress(LlamachatError):
            for event in self._events:
                self._heard(event)

    def _flush(self) -> None:
        if self._node.reason == "stop":  # it was whole before
            return
        piece = {"type": "piece", "id": self._node.id, "text": "".join(self._texts), "ids": [*self._ids]}
        self._do(piece, False)
        self._texts.clear()
        self._ids.clear()
        self._flushed = time.monotonic()

    def _end(self) -> None:
        node, done = self._node, self.done
        exact = done.exact if done else bool(node.ids) or not node.text
        text = done.text if done and done.text != node.text else None
        reason = done.reason if done else "interrupt"
        self._do({"type": "end", "id": node.id, "reason": reason, "exact": exact, "text": text}, True)


class _Thought:
    """How much was thought, and for how many seconds."""

    def __init__(self) -> None:
        self.tokens = 0
        self._began: float | None = None  # of the thought under way
        self._seconds = 0.0

    def goes_on(self, thinking: bool) -> None:
        """At this moment the model thinks, or does not."""
        now = time.monotonic()
        if self._began is not None:
            self._seconds += now - self._began
        self._began = now if thinking else None

    def added_to(self, stats: Stats) -> Stats:
        self.goes_on(False)
        return replace(stats, thought_tokens=self.tokens, thought_s=self._seconds if self.tokens else 0.0)
