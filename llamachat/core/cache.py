"""Which slot a token's key and value go to, at which position, and which slots it sees. No tensors here.

A rolling cache (StreamingLLM, Xiao et al. 2023, with whole turns instead of tokens): a pinned prefix stays, the tokens
after it come and go. RoPE only knows distances, so what stays behind an eviction keeps its position for good; the pinned
tokens alone are rotated to the positions right before the oldest of them. An example, 8 slots, 2 of them pinned:

    log        a b c d e f g h          slots  a b c d e f g h      positions  0 1 2 3 4 5 6 7
    evict(3)   a b       f g h                 a b . . . f g h                 3 4       5 6 7   (a b rotated by 3)
    i j k      a b       f g h i j k           a b i j k f g h                 3 4 8 9 10 5 6 7
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamachat.errors import DoesNotFitError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CacheStep:
    """Where the T tokens of one forward go, and what they see."""

    slots: Integers  # [T] where each key and value is written
    positions: Integers  # [T] the RoPE position of each token
    visible: tuple[range, ...]  # slots attended to, its own included: by each query those of no later position
    pinned: tuple[range, int] | None = None  # first re-rotate this block of slots to start at this position


class Cache:
    """A cache of `size` tokens in the engine's slots from `first` on.

    Token i of the log lies at position i + evicted; in slot i if it is pinned, else in the ring behind the pinned ones.
    """

    def __init__(self, size: int, first: int = 0) -> None:
        self.size = size
        self.first = first
        self.log: list[int] = []  # ids of all tokens whose keys and values the engine holds, pinned ones first
        self.pinned = 0  # so many at the start are never evicted
        self.evicted = 0  # tokens gone between the pinned and the others
        self.rotation: tuple[range, int] | None = None  # what the next step must re-rotate

    def __len__(self) -> int:
        return len(self.log)

    @property
    def free(self) -> int:
        return self.size - len(self.log)

    @property
    def evictable(self) -> int:
        """Tokens that are not pinned."""
        return max(0, len(self.log) - self.pinned)

    def require(self, count: int) -> None:
        """Raises DoesNotFitError unless so many more tokens fit."""
        if count > self.free:
            raise DoesNotFitError(
                f"the prompt makes {len(self.log) + count} tokens, the context holds {self.size}",
                "nothing was computed",
                "shorten the text or raise --ctx-size",
            )

    def pin(self, count: int) -> None:
        """Never evict the first `count` tokens.

        Once some tokens have been evicted, another count is possible only after truncating below the pinned ones, and
        until the next step not one below what has been left of them: the engine still has to rotate those back.
        """
        assert count < self.size
        assert count == self.pinned or (not self.evicted and (self.rotation is None or count >= len(self.log)))
        self.pinned = count

    def plan(self, count: int) -> CacheStep:
        """Where so many further tokens go; nothing changes until `commit`."""
        assert count <= self.free, "the caller makes room first"
        index = np.arange(len(self.log), len(self.log) + count, dtype=np.int64)
        positions = index + self.evicted if self.evicted else index  # an array less: this is run for every token
        return CacheStep(self.slots(index), positions, self._visible(len(self.log) + count), self.rotation)

    def commit(self, ids: list[int]) -> None:
        """These tokens were run as planned: the engine holds their keys and values."""
        self.log += ids
        self.rotation = None

    def evict(self, count: int) -> None:
        """Forget so many of the oldest tokens that are not pinned."""
        assert 0 <= count <= self.evictable
        if not count:
            return
        del self.log[self.pinned : self.pinned + count]
        self.evicted += count
        self._rotate_pinned()

    def keep_common_prefix(self, ids: list[int]) -> int:
        """Forget what differs from ids; returns how many of them are cached, at most all but the last.

        The last one is always run again: its logits are what generation starts from.
        """
        limit = min(len(self.log), len(ids) - 1)
        common = next((i for i in range(limit) if self.log[i] != ids[i]), limit)
        self.truncate(common)
        return common

    def truncate(self, length: int) -> None:
        """Forget every token of the log from this one on."""
        del self.log[length:]
        if len(self.log) <= self.pinned and self.evicted:  # nothing behind the pinned ones: they go back to the start
            self.evicted = 0
            self._rotate_pinned()
        if not self.log:
            self.rotation = None

    def slots(self, index: Integers) -> Integers:
        """[T] the slots of these tokens of the log."""
        if not self.evicted:
            return self.first + index if self.first else index
        ring = self.pinned + (index - self.pinned + self.evicted) % (self.size - self.pinned)
        return self.first + np.where(index < self.pinned, index, ring)

    def _visible(self, end: int) -> tuple[range, ...]:
        """The slots of the first `end` tokens of the log, as few ranges as they make."""
        if not self.evicted:
            return (range(self.first, self.first + end),)
        start, ring = self.first + self.pinned, self.size - self.pinned
        oldest = self.evicted % ring  # where in the ring it begins
        last = oldest + end - self.pinned
        wrapped = max(last - ring, 0)  # so many lie at the ring's start again, right behind the pinned ones
        if wrapped == oldest:
            return (range(self.first, start + min(last, ring)),)
        runs = range(self.first, start + wrapped), range(start + oldest, start + min(last, ring))
        return tuple(run for run in runs if run)

    def _rotate_pinned(self) -> None:
        if self.pinned:
            self.rotation = range(self.first, self.first + self.pinned), self.evicted
