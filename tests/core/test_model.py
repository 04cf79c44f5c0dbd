"""model.py beside transformers: what a spec can say of a layer, on tiny random models of the families that have it."""

import gc
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from family_files import BASE, CASES, IDS, case_of, model_of
from numpy.typing import NDArray
from torch.nn.functional import linear

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine, build_block
from llamachat.core.rope import query_scales
from llamachat.core.spec import ModelSpec, QueryScale
from llamachat.core.tensors import FloatTensor, Tensor, dequantize
from llamachat.engines.torch.engine import TorchEngine

GATE = "model.layers.0.mlp.gate_proj.weight"
Case = tuple[ModelSpec, dict[str, Tensor], NDArray[np.float32]]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def test_logits_are_transformers(case: Case) -> None:
    spec, weights, right = case
    for engine in (
        PlainEngine.build(spec, weights.items(), 64),
        TorchEngine.build(spec, weights.items(), slots=64, dtype="float32"),
    ):
        cache = Cache(64)
        rows = [advance(engine, cache, part, "all") for part in (IDS[:9], IDS[9:10], IDS[10:])]
        np.testing.assert_allclose(np.concatenate(rows), right, atol=1e-4, rtol=1e-4)


def test_it_rolls_as_a_dense_forward_over_the_history_does(case: Case) -> None:
    """A window of 12 with 3 pinned tokens, after many evictions, in both engines; the plain one in float64 is the measure."""
    spec, weights, _ = case
    exact = PlainEngine.build(spec, weights.items(), 12, torch.float64)
    single = PlainEngine.build(spec, weights.items(), 12)
    fast = TorchEngine.build(spec, weights.items(), slots=12, dtype="float32")
    caches = [Cache(12) for _ in range(3)]
    rng = np.random.default_rng(2)
    for cache in caches:
        cache.pin(3)
    for token in rng.integers(0, 97, 80).tolist():
        for cache in caches:
            if not cache.free:
                cache.evict(4)
        rows = [advance(engine, cache, [token]) for engine, cache in zip((exact, single, fast), caches, strict=True)]
    np.testing.assert_allclose(rows[1], rows[0], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(rows[2], rows[0], atol=2e-4, rtol=1e-4)


def test_texts_of_a_batch_are_as_they_are_alone(case: Case) -> None:
    spec, weights, right = case
    engine = TorchEngine.build(spec, weights.items(), slots=128, dtype="float32")
    caches = [Cache(64), Cache(64, 64)]
    advance(engine, caches[0], IDS[:30])
    advance(engine, caches[1], IDS[:11])
    steps = [caches[0].plan(1), caches[1].plan(7)]
    rows = engine.forward_many([IDS[30:31], IDS[11:18]], steps)
    np.testing.assert_allclose(rows, right[[30, 17]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("experts", [False, True])
def test_a_layer_that_is_let_go_leaves_no_weights_behind(experts: bool) -> None:
    """At once, not when Python next looks for circles: who goes through a model layer by layer has room for one."""
    spec, tensors, _ = case_of("mixtral" if experts else "qwen3")
    weights = {name: torch.tensor(dequantize(tensor)) for name, tensor in tensors.items()}
    held = weakref.ref(weights["model.layers.0.mlp.experts.0.gate_proj.weight" if experts else GATE])

    def linear_of(weights: dict[str, torch.Tensor], *modules: str) -> partial[torch.Tensor]:
        return partial(linear, weight=weights[f"{modules[0]}.weight"])

    gc.disable()
    try:
        block = build_block(spec, 0, weights, partial(linear_of, weights))
        del weights
        assert held() is not None
        del block
        assert held() is None
    finally:
        gc.enable()


def test_queries_grow_beyond_the_original_length_alone() -> None:
    spec = replace(BASE, query_scale=QueryScale(0.5, 16))
    positions = np.array([0, 15, 16, 40])
    scales = query_scales(spec, 17, positions)
    assert scales is not None
    np.testing.assert_allclose(scales, 1 + 0.5 * np.log([1, 1, 2, 3]))
    assert query_scales(spec, 16, positions) is None, "a window of it may roll"
    assert (spec.depends_on_length(16), spec.depends_on_length(17)) == (False, True)


def test_a_residual_stream_beyond_float16_is_kept() -> None:
    """As Gemma's grows: here by norms behind each part that multiply by thousands."""
    spec, weights, _ = case_of("gemma3")
    behind = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    weights |= {name: FloatTensor(dequantize(x) + 8e3) for name, x in weights.items() if name.endswith(behind)}
    exact = advance(PlainEngine.build(spec, weights.items(), 64), Cache(64), IDS, "all")
    half = TorchEngine.build(spec, weights.items(), slots=64, dtype="float16")
    rows = advance(half, Cache(64), IDS, "all")
    assert np.isfinite(rows).all() and np.abs(rows - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_attentions_are_transformers(name: str) -> None:
    """In one piece, and the last token of another; of both engines."""
    spec, weights, _ = case_of(name)
    model = model_of(name, attn_implementation="eager")
    with torch.no_grad():
        right = model(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    states, shares = (torch.cat(each).numpy() for each in (right.hidden_states, right.attentions))
    for engine in (
        PlainEngine.build(spec, weights.items(), 64),
        TorchEngine.build(spec, weights.items(), slots=64, dtype="float32"),
    ):
        for outputs, expected in (("hidden_states", states), ("attentions", shares)):
            cache, first = Cache(64), len(IDS) - 1
            ours = engine.forward(IDS, cache.plan(len(IDS)), "all", outputs)
            np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
            advance(engine, cache, IDS[:first])
            last = engine.forward(IDS[first:], cache.plan(1), "last", outputs)
            np.testing.assert_allclose(last, expected[..., -1, :], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(
            engine.forward(IDS, Cache(64).plan(len(IDS)), "all", "hidden"), states[-1], atol=1e-4, rtol=1e-4
        )
