"""A scripted stand-in for the engine: exact, instant, and strict about how its cache is used."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.cache import CacheStep
from llamachat.config import LlamaConfig


def tiny_config(vocab_size: int = 50) -> LlamaConfig:
    """The smallest model that all the checks accept."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=64,
    )


class HashEngine:
    """Logits that are a hash of all the tokens a query may see, so that any wrong cache content changes the answer."""

    def __init__(self, slots: int = 64, vocab_size: int = 50) -> None:
        self.config = tiny_config(vocab_size)
        self.slots = slots
        self.held: dict[int, tuple[int, int]] = {}  # slot -> (position, token)
        self.forwarded: list[int] = []  # tokens of every forward, to count the work done

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        assert len(ids) == len(step.slots) == len(step.positions) > 0
        assert step.slots.max() < self.slots
        self.forwarded.append(len(ids))
        for token, slot, position in zip(ids, step.slots.tolist(), step.positions.tolist(), strict=True):
            self.held[slot] = (position, token)
        seen = sorted(self.held[slot] for visible in step.visible for slot in visible)
        rows = [self.row([token for at, token in seen if at <= position]) for position in step.positions.tolist()]
        return rows[-1] if logits == "last" else np.stack(rows)

    def row(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after these tokens."""
        generator = np.random.default_rng([len(tokens), *tokens])
        return generator.standard_normal(self.config.vocab_size).astype(np.float32)

    def describe(self) -> str:
        return "hash engine"
