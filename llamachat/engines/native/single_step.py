"""What the C side is told of a step of one token, in arrays that stay: to make them anew takes 30 microseconds at every token of
an answer, for the weights that went by have left nothing of Python in the caches."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep
from llamachat.core.tensors import Array
from llamachat.engines.native.abi import Step, address

_RANGES = 4  # that there is room for at first: a cache that rolls has two


class SingleStep:
    """One for each engine: what `told` gives holds until it is asked again."""

    def __init__(self) -> None:
        self._token, self._run = np.zeros(1, np.int32), np.array([[0, 1, 0]], np.int32)
        self._slot, self._position = np.zeros(1, np.int64), np.zeros(1, np.int64)
        arrays: list[Array] = [self._token, self._slot, self._position, self._room(_RANGES), self._run]
        self._step = Step(*map(address, arrays), tokens=1, texts=1, run_count=1, wanted=1)

    def told(self, token: int, step: CacheStep, hidden: bool, logits: NDArray[np.float32]) -> Step:
        """A step of this token to these logits (or hidden)."""
        self._token[0], self._slot[0], self._position[0] = token, step.slots[0], step.positions[0]
        if len(step.visible) > len(self._visible):
            self._step.visible = address(self._room(len(step.visible)))
        for row, span in zip(self._visible, step.visible, strict=False):
            row[0], row[1] = span.start, span.stop
        place = ctypes.addressof(ctypes.c_char.from_buffer(logits.data)) if logits.size else None  # faster than address
        self._step.ranges, self._step.hidden, self._step.logits = len(step.visible), hidden, place
        return self._step

    def _room(self, ranges: int) -> NDArray[np.int64]:
        """For so many: [ranges, 3] of (first slot, end, text)."""
        self._visible = np.zeros((ranges, 3), np.int64)
        return self._visible
