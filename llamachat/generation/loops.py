"""Answers that go round in circles: the same span again and again, over hundreds of tokens, with no end of their own.

Exact periods alone are looked for. A list whose numbers rise or a table whose cells differ has none, and a refrain is not all
that a poem says; what is cut wrongly is a text that says hundreds of times the very same.
"""

import numpy as np

PERIOD = 512  # tokens of the longest span that is known again
REPEATED = 500  # tokens in a row that have been said before, one span earlier, at which an answer ends
TIMES = 3  # so often must a long span have come again


class Loops:
    """Takes an answer symbol by symbol (ids, or characters) and tells when it goes round in circles.

    Of every period up to a limit it knows how many of the last symbols stood one period earlier, too: a few microseconds a
    symbol, whatever the answer's length.
    """

    def __init__(self, size: int = 1) -> None:
        """`size`: symbols a token."""
        self._periods = PERIOD * size
        self._needed = np.maximum(REPEATED * size, TIMES * np.arange(1, self._periods + 1, dtype=np.int32))
        self._same = np.zeros(self._periods, np.int32)  # of the last symbols, by period
        self._said = np.full(2 * self._periods, -1, np.int32)  # the latest in the middle, those before it behind it
        self._next = self._periods
        self.found = False

    def add(self, symbol: int) -> bool:
        """Whether, with this symbol, it does; from then on it does for good."""
        before = self._said[self._next : self._next + self._periods]
        self._same = (self._same + 1) * (before == symbol)
        if self._next == 0:
            self._said[self._periods + 1 :] = self._said[: self._periods - 1]
            self._next = self._periods + 1
        self._next -= 1
        self._said[self._next] = symbol
        self.found = self.found or bool((self._same >= self._needed).any())
        return self.found
