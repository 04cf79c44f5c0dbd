"""Which slot a token's key and value go to, at which position, and which slots it sees. No tensors here."""

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
    visible: tuple[
        range, ...
    ]  # slots attended to, this step's own included; among them by position: none later than the query
    pinned: tuple[range, int] | None = None  # first re-rotate this block of slots to start at this position


class Cache:
    """A cache of fixed size: token i of the log lies in slot i at position i."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.log: list[int] = []  # ids of all tokens whose keys and values the engine holds

    def __len__(self) -> int:
        return len(self.log)

    @property
    def free(self) -> int:
        return self.size - len(self.log)

    def require(self, count: int) -> None:
        """Raises DoesNotFitError unless so many more tokens fit."""
        if count > self.free:
            raise DoesNotFitError(
                f"the prompt makes {len(self.log) + count} tokens, the context holds {self.size}",
                "nothing was computed",
                "shorten the text or raise --ctx-size",
            )

    def plan(self, count: int) -> CacheStep:
        """Where so many further tokens go; nothing changes until `commit`."""
        assert count <= self.free, "the caller makes room first"
        end = len(self.log) + count
        where = np.arange(len(self.log), end, dtype=np.int64)
        return CacheStep(where, where, (range(end),))

    def commit(self, ids: list[int]) -> None:
        """These tokens were run as planned: the engine holds their keys and values."""
        self.log += ids

    def keep_common_prefix(self, ids: list[int]) -> int:
        """Forget what differs from ids; returns how many of them are cached, at most all but the last.

        The last one is always run again: its logits are what generation starts from.
        """
        limit = min(len(self.log), len(ids) - 1)
        common = next((i for i in range(limit) if self.log[i] != ids[i]), limit)
        self.truncate(common)
        return common

    def truncate(self, length: int) -> None:
        """Forget every token from this one on."""
        del self.log[length:]
