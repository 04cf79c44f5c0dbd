"""What an engine is. Torch lives below this package and nowhere above it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.spec import ModelSpec

Outputs = Literal["logits", "hidden", "hidden_states", "attentions"]


class Engine(Protocol):
    """Token ids in, logits out; holds the weights and the keys and values of `slots` tokens."""

    config: ModelSpec
    slots: int
    batch_invariant: bool  # logits are the same to the bit however a text is cut into steps: drafts may be verified

    def forward(
        self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"], outputs: Outputs = "logits"
    ) -> NDArray[np.float32]:
        """Run T tokens, writing their keys and values as `step` says.

        Returns float32 logits: [spec.outputs] of the last token ("last"), or [T, spec.outputs] ("all"). Other `outputs` in
        their place, names as transformers': "hidden", what the head is given, [hidden_size] of each; "hidden_states", what
        each layer is given and "hidden", [layers + 1] of them; "attentions", each head's shares of the S slots of
        step.visible, [layers, heads, S] ("last") or [layers, heads, T, S]. Raises UsageError where it has not all of them.
        """
        ...

    def forward_many(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], outputs: Literal["logits", "hidden"] = "logits"
    ) -> NDArray[np.float32]:
        """Run a piece of each of B texts at once, as `forward` would one after the other; their slots are disjoint and no
        step rotates a pinned block.

        Returns float32 rows [B, spec.outputs] or [B, hidden_size] of the last token of each; where `batch_invariant`,
        `forward`'s to the bit.
        """
        ...

    def save_kv(self, slots: Integers) -> Mapping[str, NDArray[Any]]:
        """Keys and values of these slots as they are stored, and the un-rotated copy of a pinned block among them."""
        ...

    def load_kv(self, slots: Integers, positions: Integers, saved: Mapping[str, NDArray[Any]]) -> None:
        """Put what an engine of the same configuration, kv type and number of slots saved into as many slots, any ones.

        The positions are those that it was computed at: keys are rotated. Raises FormatError where its shapes or types are
        not this engine's; nothing has changed then.
        """
        ...

    def describe(self) -> str:
        """One line for people: engine, device, dtype, linear kernels in use."""
        ...
