"""One answer on its way: from a backend's events into those for the screen, and into the records of its node."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from llamachat.chat.history import Record
from llamachat.chat.thinking import ThinkSplitter
from llamachat.chat.tree import Node
from llamachat.errors import LlamachatError
from llamachat.events import Event, TextDelta, TurnDone

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
        self._texts, self._ids = list[str](), list[int]()  # not yet in a record
        self._flushed = time.monotonic()
        self.done: TurnDone | None = None  # the backend's

    def __iter__(self) -> Iterator[Event]:
        known = _deltas(self._splitter.add(self._node.text))
        try:
            if self._repeat:
                yield from known
            for event in self._events:
                yield from self._heard(event)
            yield from _deltas(self._splitter.finish())
        except GeneratorExit:
            self._break_off()
            raise
        finally:
            self._flush()
            self._end()

    def _heard(self, event: Event) -> Sequence[Event]:
        """What of an event is to be shown."""
        if isinstance(event, TurnDone):
            self.done = event
            return ()
        if not isinstance(event, TextDelta):
            return (event,)
        self._texts.append(event.text)
        self._ids += event.ids
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()
        return _deltas(self._splitter.add(event.text))

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


def _deltas(parts: Sequence[tuple[str, bool]]) -> list[TextDelta]:
    return [TextDelta(*part) for part in parts]
