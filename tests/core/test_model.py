"""model.py beside transformers: what a spec can say of a layer, on tiny random models of the families that have it."""

import numpy as np
import torch
from family_cases import IDS, case_of, every_case

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine
from llamachat.engines.torch.engine import TorchEngine


@every_case
def test_logits_are_transformers(case: str) -> None:
    spec, weights, right = case_of(case)
    for engine in (
        PlainEngine.build(spec, weights.items(), 32),
        TorchEngine.build(spec, weights.items(), slots=32, dtype="float32"),
    ):
        cache = Cache(32)
        rows = [advance(engine, cache, part, "all") for part in (IDS[:9], IDS[9:10], IDS[10:])]
        np.testing.assert_allclose(np.concatenate(rows), right, atol=1e-4, rtol=1e-5)


@every_case
def test_it_rolls_as_a_dense_forward_over_the_history_does(case: str) -> None:
    """A window of 12 with 3 pinned tokens, after many evictions, in both engines; the plain one in float64 is the measure."""
    spec, weights, _ = case_of(case)
    exact = PlainEngine.build(spec, weights.items(), 12, torch.float64)
    single = PlainEngine.build(spec, weights.items(), 12)
    fast = TorchEngine.build(spec, weights.items(), slots=12, dtype="float32")
    caches = [Cache(12) for _ in range(3)]
    rng = np.random.default_rng(2)
    for cache in caches:
        cache.pin(3)
    for token in rng.integers(0, 97, 200).tolist():
        for cache in caches:
            if not cache.free:
                cache.evict(4)
        rows = [advance(engine, cache, [token]) for engine, cache in zip((exact, single, fast), caches, strict=True)]
    np.testing.assert_allclose(rows[1], rows[0], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(rows[2], rows[0], atol=2e-4, rtol=1e-4)
