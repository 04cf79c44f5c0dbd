"""Memory for packed weights: one mapping in huge pages, which matrices of a few megabytes each would not lie in."""

import numpy as np

from llamachat.core.tensors import Array
from llamachat.engines.native.pack import PAGE
from llamachat.system.mapped import anonymous

PIECE = 1 << 26  # bytes that are mapped at least


class Arena:
    """Gives zero bytes, each time from a multiple of 4096 on; they are held as long as any array of them."""

    def __init__(self, expected: int = 0) -> None:
        """`expected`: bytes that will be asked for, as far as known."""
        self._expected, self._free = expected, np.empty(0, np.uint8)

    def __call__(self, nbytes: int) -> Array:
        """Raises MemoryError."""
        if nbytes > len(self._free):
            self._free = np.frombuffer(anonymous(max(nbytes, self._expected, PIECE)), np.uint8)
        part, self._free = self._free[:nbytes], self._free[-(-nbytes // PAGE) * PAGE :]
        return part
