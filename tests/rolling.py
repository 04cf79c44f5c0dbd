"""A cache that rolls under random steps, beside a plain account of it from which dense forwards over all of it follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import reference
import torch
from numpy.typing import NDArray

from llamachat.core.cache import Cache, CacheStep
from llamachat.core.engine import Engine
from llamachat.core.generate import advance
from llamachat.core.model import Precision
from llamachat.core.rope import frequencies
from llamachat.core.spec import ModelSpec, RopeScaling
from llamachat.core.tensors import FloatTensor
from llamachat.engines.torch.engine import TorchEngine

ROPES: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}


@dataclass
class Model:
    """A random model."""

    config: ModelSpec
    state: Mapping[str, torch.Tensor]

    @property
    def tensors(self) -> list[tuple[str, FloatTensor]]:
        return [(name, FloatTensor(tensor.numpy())) for name, tensor in self.state.items()]

    def dense(self, history: "History") -> NDArray[np.float64]:
        """Logits [T, vocabulary] in float64 of one forward over everything, each query seeing what it saw."""
        seen, positions = torch.from_numpy(history.visible()), torch.from_numpy(history.pinned_positions())
        frequency, factor = frequencies(self.config, 0)
        rotation = torch.from_numpy(frequency), factor
        ids = history.ids
        out = reference.logits(self.state, self.config, ids, visible=seen, key_positions=positions, rotation=rotation)
        return np.asarray(out.numpy())


def random_model(rope: str = "none", seed: int = 0, **changes: Any) -> Model:
    """`changes` are of ModelSpec. Sharp attention, so that what is seen where matters."""
    scaling = RopeScaling(rope, **ROPES[rope]) if rope != "none" else None  # type: ignore[arg-type]
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256} | changes  # fmt: skip
    config = ModelSpec(97, rope_scaling=scaling, **shape)
    generator = torch.Generator().manual_seed(seed)
    state = {name: _weight(name, size, generator) for name, size in config.tensor_shapes().items()}
    return Model(config, state)


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.2 * normal
    sharp = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
    return normal * (1.0 if "embed" in name else sharp * shape[1] ** -0.5)


class Float64Engine(TorchEngine):
    """All arithmetic in float64, which no configuration can ask for, and logits that are not rounded."""

    @classmethod
    def build(cls, *args: Any, **options: Any) -> "Float64Engine":
        with patch("llamachat.engines.torch.engine.chosen_precision", lambda *_: Precision(*[torch.float64] * 5)):
            engine = super().build(*args, **options)
        model, engine.exact = engine.model, []
        engine.model = lambda *a: engine.exact.append(model(*a)) or engine.exact[-1]
        return engine

    def forward(self, ids: Any, step: CacheStep, logits: Any) -> Any:
        super().forward(ids, step, logits)
        rows = self.exact.pop().numpy()
        return rows[-1] if logits == "last" else rows


@dataclass
class History:
    """All tokens that were run and not taken back. Query t saw the pinned ones and those from oldest[t] to itself."""

    pinned: int
    ids: list[int] = field(default_factory=list)
    oldest: list[int] = field(default_factory=list)
    logits: list[NDArray[Any]] = field(default_factory=list)
    evictions: int = 0

    def visible(self) -> NDArray[np.bool_]:
        """[T, T]"""
        key, query = np.arange(len(self.ids)), np.arange(len(self.ids))[:, None]
        return (key <= query) & ((key >= np.array(self.oldest)[:, None]) | (key < self.pinned))

    def pinned_positions(self) -> NDArray[np.int64]:
        """[T, pinned]: right before the oldest. (Of none, that of the first token, for the reference wants one.)"""
        if not self.pinned:
            return np.zeros((len(self.ids), 1), np.int64)
        return np.array(self.oldest)[:, None] + np.arange(-self.pinned, 0)

    def errors(self, other: Any) -> NDArray[np.float64]:
        """[T]: the largest difference of logits."""
        return np.asarray(np.abs(np.stack(self.logits) - np.asarray(other)).max(1), np.float64)


class Roll:
    """An engine behind a rolling cache, and the account of what it did."""

    def __init__(self, engine: Engine, cache: Cache, pinned: int) -> None:
        self.engine, self.cache, self.history, self.oldest = engine, cache, History(pinned), pinned
        cache.pin(pinned)

    def run(self, ids: list[int]) -> None:
        rows = advance(self.engine, self.cache, ids, "all")
        self.history.ids += ids
        self.history.oldest += [self.oldest] * len(ids)
        self.history.logits += list(rows)

    def evict(self, count: int) -> None:
        self.cache.evict(count)
        self.oldest += count
        self.history.evictions += 1

    def take_back(self, count: int) -> None:
        """The last tokens were a draft, and rejected."""
        self.cache.truncate(len(self.cache) - count)
        for kept in (self.history.ids, self.history.oldest, self.history.logits):
            del kept[len(kept) - count :]

    def random(self, evictions: int, longest: int, seed: int = 0, spare: int | None = None) -> History:
        """Steps of up to `longest` tokens, some partly taken back, until so many evictions, and to the end then.

        An eviction makes room for a step and up to `spare` tokens more, by default as many as the longest step has.
        """
        spare = longest if spare is None else spare
        rng, cache = np.random.default_rng(seed), self.cache
        while True:
            count = int(rng.integers(1, longest + 1))
            if count > cache.free:
                if self.history.evictions == evictions:
                    return self.history
                need = count - cache.free
                self.evict(int(rng.integers(need, min(cache.evictable, need + spare) + 1)))
            self.run(rng.integers(0, self.engine.config.vocab_size, count).tolist())
            behind = len(cache) - cache.pinned
            if rng.random() < 0.2 and behind > 1:
                self.take_back(int(rng.integers(0, min(count, behind))))


def replay(engine: Engine, history: History) -> NDArray[np.float32]:
    """The same on an engine with a slot for every token: nothing is overwritten, and what is seen is said outright."""
    pinned, ids, rows = history.pinned, history.ids, []
    starts = [0, *(np.flatnonzero(np.diff(history.oldest)) + 1).tolist(), len(ids)]
    for start, end in pairwise(starts):
        oldest, where = history.oldest[start], np.arange(start, end)
        seen = (range(pinned), range(oldest, end)) if oldest > pinned else (range(end),)
        turn = (range(pinned), oldest - pinned) if pinned and oldest > pinned else None
        rows.append(engine.forward(ids[start:end], CacheStep(where, where, tuple(r for r in seen if r), turn), "all"))
    return np.concatenate(rows)
