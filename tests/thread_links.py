"""The links between ranks that are threads of one process."""

from queue import Queue
from threading import Barrier
from typing import Any, TypeVar

from torch import Tensor

Made = TypeVar("Made")
PATIENCE = 30  # seconds


class Meeting:
    """Where `size` threads meet."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, Barrier(size, timeout=PATIENCE)
        self.shown: list[Any] = [None] * size
        self.boxes: dict[tuple[int, int], Queue[Tensor]] = {}
        for source in range(size):
            self.boxes |= {(source, to): Queue() for to in range(size)}


class ThreadLinks:
    """See links.Links."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size
        self.sums = 0  # so many there were

    def add_up(self, x: Tensor) -> None:
        self.sums += 1
        x.copy_(sum(self._everyones(x)[1:], self._everyones(x)[0]))

    def broadcast(self, x: Tensor) -> None:
        x.copy_(self._everyones(x)[0])

    def send(self, x: Tensor, to: int) -> None:
        self.meeting.boxes[self.rank, to].put(x.clone())

    def receive(self, x: Tensor, source: int) -> None:
        x.copy_(self.meeting.boxes[source, self.rank].get(timeout=PATIENCE))

    def _everyones(self, x: Tensor) -> list[Tensor]:
        """In the order of ranks."""
        self.meeting.shown[self.rank] = x.clone()
        self.meeting.barrier.wait()
        found = list(self.meeting.shown)
        self.meeting.barrier.wait()
        return found
