"""Where the last tokens of a text stood before: in that text itself as it grows, and in a suffix array over others.

Texts of ids are parted by GAP, which is no id and which no match goes past. A place is an index into ids, behind tokens that
agree with the last ones of the text that is looked up.
"""

from array import array
from collections.abc import Sequence

import numpy as np

GAP = -1
COMPARED = 32  # tokens that two texts are compared in, at most
SORTED = 8  # tokens that a suffix array sorts by
LARGEST = 1 << 16  # tokens that a growing text begins an answer with, at most; some 200 bytes each
AGAIN = 8  # tokens before the point where a text goes on in another way that are put to it again


class GrowingText:
    """Tokens of a dialog in the order they came, and where every one and every two of them stood last.

    A place for every longer run, as a suffix automaton has it, gives no better guesses, at ten times the memory.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._places: dict[int, int] = {}  # of a token, and of two
        self._log: list[int] = []  # the sequence that grows

    def begin(self, sequence: Sequence[int]) -> int:
        """What grows is this from now on; what came before stays, up to a size. Returns a place as `add` does."""
        common = _in_common(self._log, sequence)
        if len(self.ids) + len(sequence) - common > LARGEST:
            self.forget()
            common = max(0, len(sequence) - LARGEST // 2)
        elif common < len(self._log):
            self.ids.append(GAP)
            common = max(0, common - AGAIN)
        self._log = list(sequence[:common])
        place = 0
        for token in sequence[common:]:
            place = self.add(token)
        return place

    def add(self, token: int) -> int:
        """The sequence goes on with this token. Returns the latest place where the last two tokens, or else the last one, stood
        before; 0: nowhere."""
        ids, places = self.ids, self._places
        two = (ids[-1] + 1 << 32 if ids else 0) | token
        ids.append(token)
        self._log.append(token)
        place = places.get(two) or places.get(token, 0)
        places[two] = places[token] = len(ids)
        return place

    def forget(self) -> None:
        """Be empty again."""
        self.ids, self._places, self._log = [], {}, []


class SuffixArray:
    """Texts at hand as a whole, sorted by what stands before each of their places, the nearest token first."""

    def __init__(self, texts: Sequence[Sequence[int]] = ()) -> None:
        """Takes some 70 ms for 100,000 tokens, other threads running meanwhile, and keeps 40 bytes for each."""
        self.ids = array("i", [token for text in texts for token in (*text, GAP)])
        length = len(self.ids)
        backwards = np.zeros(length + SORTED, dtype=">u4")
        backwards[:length] = np.frombuffer(self.ids, np.int32)[::-1] + 1
        keys = np.ndarray((length,), f"S{4 * SORTED}", backwards.tobytes(), strides=(4,))
        order = np.argsort(keys)
        self._keys, self._places = keys[order], array("i", (length - order).astype(np.int32).tobytes())

    def find(self, text: Sequence[int]) -> tuple[int, int]:
        """The place behind the most of the last tokens of a text, and how many these are; 0: nowhere."""
        if not self._places:
            return 0, 0
        near = int(self._keys.searchsorted(_key(text)))  # the two that it would stand between agree with it best
        count, at = max([(agreement(self.ids, at, text), at) for at in self._places[max(0, near - 1) : near + 1]])
        return at, count


def _key(text: Sequence[int]) -> bytes:
    """Its last tokens, as they are sorted by."""
    return b"".join([(token + 1).to_bytes(4, "big") for token in text[: -SORTED - 1 : -1]])


def agreement(ids: Sequence[int], at: int, text: Sequence[int]) -> int:
    """How many tokens before this place are the last ones of a text."""
    most = min(at, len(text), COMPARED)
    count = 0
    while count < most and ids[at - 1 - count] == text[-1 - count] != GAP:
        count += 1
    return count


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)
