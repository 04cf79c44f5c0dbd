"""What an engine is. Torch lives below this package and nowhere above it."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.cache import CacheStep
from llamachat.config import LlamaConfig


class Engine(Protocol):
    """Token ids in, logits out; holds the weights and the keys and values of `slots` tokens."""

    config: LlamaConfig
    slots: int
    repeatable: bool  # logits are the same to the last bit however a text is cut into steps: guesses may be verified

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        """Run T tokens, writing their keys and values as `step` says.

        Returns float32 logits: [vocab_size] of the last token ("last"), or [T, vocab_size] ("all").
        """
        ...

    def describe(self) -> str:
        """One line for people: engine, device, dtype, linear kernels in use."""
        ...
