"""Where a step writes its rows of logits: megabytes, which the system would clear anew for each step of a batch."""

import weakref

import numpy as np
from numpy.typing import NDArray

from llamachat.system.mapped import anonymous

LARGEST = 1 << 26  # bytes that are kept for the steps to come


class Rows:
    """Memory that is used again when nobody has any of its rows any more. There are two, for who draws a token from the rows of
    one step may hold them during the next."""

    def __init__(self) -> None:
        self._kept: list[memoryview] = [memoryview(b"")] * 2
        self._given: list[weakref.ref[NDArray[np.float32]] | None] = [None] * 2  # what all views of rows keep alive

    def __call__(self, count: int, width: int) -> NDArray[np.float32]:
        """[count, width], uninitialized. Raises MemoryError."""
        nbytes = 4 * count * width
        free = (i for i, rows in enumerate(self._given) if rows is None or rows() is None)
        if not 0 < nbytes <= LARGEST or (at := next(free, None)) is None:
            return np.empty((count, width), np.float32)
        if len(self._kept[at]) < nbytes:
            self._kept[at] = memoryview(anonymous(nbytes))
        rows = np.frombuffer(self._kept[at], np.float32, count * width)
        self._given[at] = weakref.ref(rows)
        return rows.reshape(count, width)
