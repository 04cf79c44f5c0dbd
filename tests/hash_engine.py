"""Stand-ins for engine, tokenizer and loaded model: exact, instant, and strict about how the cache is used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.spec import ModelSpec
from llamachat.errors import FormatError
from llamachat.models.catalog import ModelEntry
from llamachat.models.load import LoadedModel
from llamachat.models.sources import LocalPath
from llamachat.tokenizers.text_tokenizer import TextTokenizer


def tiny_config(vocab_size: int = 50) -> ModelSpec:
    """The smallest model that all the checks accept."""
    return ModelSpec(
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

    batch_invariant = True

    def __init__(self, slots: int = 64, vocab_size: int = 50) -> None:
        self.config = tiny_config(vocab_size)
        self.slots = slots
        self.held: dict[int, tuple[int, int]] = {}  # slot -> (position, token)
        self.forwarded: list[int] = []  # tokens of every forward, to count the work done

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        assert len(ids) == len(step.slots) == len(step.positions) > 0
        assert step.slots.max() < self.slots
        self.forwarded.append(len(ids))
        if step.pinned is not None:
            block, start = step.pinned
            self.held |= {slot: (start + i, self.held[slot][1]) for i, slot in enumerate(block)}
        for token, slot, position in zip(ids, step.slots.tolist(), step.positions.tolist(), strict=True):
            self.held[slot] = (position, token)
        seen = sorted(self.held[slot] for visible in step.visible for slot in visible)
        rows = [self.row([token for at, token in seen if at <= position]) for position in step.positions.tolist()]
        return rows[-1] if logits == "last" else np.stack(rows)

    def forward_many(self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep]) -> NDArray[np.float32]:
        assert all(step.pinned is None for step in steps)
        slots = np.concatenate([step.slots for step in steps])
        assert len(set(slots.tolist())) == len(slots)
        return np.stack([self.forward(text, step, "last") for text, step in zip(ids, steps, strict=True)])

    def save_kv(self, slots: Integers) -> Mapping[str, NDArray[Any]]:
        return {"tokens": np.array([self.held[slot][1] for slot in slots.tolist()])}

    def load_kv(self, slots: Integers, positions: Integers, saved: Mapping[str, NDArray[Any]]) -> None:
        if set(saved) != {"tokens"} or saved["tokens"].shape != slots.shape:
            raise FormatError("not this engine's")
        held = zip(positions.tolist(), saved["tokens"].tolist(), strict=True)
        self.held |= dict(zip(slots.tolist(), held, strict=True))

    def row(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after these tokens."""
        generator = np.random.default_rng([len(tokens), *tokens])
        return generator.standard_normal(self.config.vocab_size).astype(np.float32)

    def describe(self) -> str:
        return "hash engine"


SPECIALS = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}


def byte_tokenizer() -> TextTokenizer:
    """A token is a byte."""
    return TextTokenizer(
        ids=lambda text, start: list(text.encode()),
        piece=lambda token: bytes([token]) if token < 256 else b"",
        vocab_size=259,
        specials=SPECIALS,
        eos_ids=frozenset({257, 258}),
    )


def hash_model(slots: int = 512) -> LoadedModel:
    """A ChatML model that says bytes as the hash of all before them has it."""
    checkpoint = SimpleNamespace(
        path=Path("hash"), config=tiny_config(259), sampling={"temperature": 0.0}, chat_template=None, ignored=(),
        index=dict, files=(Path(__file__),), tokenizer_files=(), recipe=None,
    )  # fmt: skip
    entry = ModelEntry("hash", LocalPath(Path("hash")), dialog="chatml")
    return LoadedModel(entry, checkpoint, byte_tokenizer(), HashEngine(slots, 259), load_s=0.0)
