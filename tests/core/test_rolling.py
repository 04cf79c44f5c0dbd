"""A rolling cache computes what one dense forward over the whole history does, each query seeing what it saw (E0 and E1).

The oracle is the plain reference in float64; the native engine, whose arithmetic rounds by itself, is also compared with
a run of its own on a cache that holds everything, where each query is told outright what it sees.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rolling import Float64Engine, History, Model, Roll, random_model, replay

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.tensors import FloatTensor, QuantTensor, Tensor, dequantize
from llamachat.engines.native import build
from llamachat.engines.native.engine import KvType, NativeEngine
from llamachat.engines.torch.engine import TorchEngine

native = pytest.mark.skipif(
    build.compiler() is None and not (build.SOURCES / build.LIBRARY).exists(), reason="no compiler, no compiled library"
)
ENGINES = [pytest.param("float64", 1e-10), pytest.param("float32", 2e-4), pytest.param("native", 2e-4, marks=native)]
every_engine = pytest.mark.parametrize("engine, bound", ENGINES)

# RoPE scaling, changes of the model, window, pinned tokens, longest step, evictions
Case = tuple[str, dict[str, Any], int, int, int, int]
ONE_LAYER: dict[str, Any] = {"num_hidden_layers": 1}
CASES: dict[str, Case] = {
    "grouped query": ("none", {}, 48, 6, 9, 60),
    "multi-query": ("none", {"num_key_value_heads": 1}, 48, 6, 9, 60),
    "multi-head": ("none", {"num_key_value_heads": 4}, 48, 6, 9, 60),
    "linear": ("linear", {}, 48, 6, 9, 60),
    "yarn": ("yarn", {}, 48, 6, 9, 60),
    "llama3": ("llama3", {}, 48, 6, 9, 60),
    "nothing pinned": ("none", {}, 48, 0, 9, 60),
    "one token pinned": ("none", {}, 48, 1, 9, 60),
    "almost all pinned": ("none", {}, 48, 40, 5, 60),
    "token by token": ("none", {}, 24, 4, 1, 60),
    "steps as large as the window": ("none", {}, 48, 6, 42, 60),
    "sliding window within the cache's": ("none", {"sliding_window": 21}, 48, 6, 9, 60),
    "sliding window beyond the cache's": ("yarn", {"sliding_window": 100}, 48, 6, 9, 60),
    "window of 16": ("llama3", {}, 16, 4, 5, 60),
    "window of 128": ("none", {}, 128, 20, 20, 40),
    "window of 1024": ("none", {"num_hidden_layers": 2}, 1024, 64, 100, 20),
    "window of 4096": ("none", ONE_LAYER, 4096, 100, 600, 8),
}


@cache
def model(case: str) -> Model:
    return random_model(CASES[case][0], **CASES[case][1])


def built(engine: str, of: Model, slots: int, kv: KvType = "float32") -> Engine:
    if engine == "native":
        return NativeEngine.build(of.config, of.tensors, slots=slots, kv=kv, threads=1)
    if engine == "float64":
        return Float64Engine.build(of.config, of.tensors, slots=slots)
    return TorchEngine.build(of.config, of.tensors, slots=slots, dtype="float32")


def rolled(engine: str, case: str, evictions: int | None = None) -> History:
    _, _, window, pinned, longest, default = CASES[case]
    roll = Roll(built(engine, model(case), window), Cache(window), pinned)
    return roll.random(default if evictions is None else evictions, longest)


@cache
def dense(case: str, evictions: int | None = None) -> np.ndarray:
    """Of the history that every engine goes through: it depends on random numbers alone."""
    return model(case).dense(rolled("native" if build.compiler() else "float32", case, evictions))


@every_engine
@pytest.mark.parametrize("case", CASES)
def test_rolling_equals_a_dense_forward_over_the_whole_history(case: str, engine: str, bound: float) -> None:
    history = rolled(engine, case)
    assert len(history.ids) > CASES[case][2], "the window was full"
    assert history.errors(dense(case)).max() < bound


@every_engine
def test_the_error_does_not_grow_in_a_thousand_evictions(engine: str, bound: float) -> None:
    history = rolled(engine, "grouped query", 1000)
    errors = history.errors(dense("grouped query", 1000))
    middle = len(errors) // 2
    first, half, last = (errors[part].max() for part in (slice(100), slice(middle, middle + 100), slice(-100, None)))
    assert history.evictions == 1000
    assert errors.max() < bound
    assert max(half, last) < 4 * first


@every_engine
@pytest.mark.parametrize("case", ["grouped query", "sliding window within the cache's", "yarn"])
def test_with_nothing_evicted_any_chunks_equal_the_uncached_forward(case: str, engine: str, bound: float) -> None:
    assert rolled(engine, case, 0).errors(dense(case, 0)).max() < min(bound, 1e-4)


def test_the_oracle_notices_a_key_too_few_and_pinned_ones_a_position_off() -> None:
    history = rolled("float32", "grouped query")
    late = replace(history, oldest=[at + (at > history.pinned) for at in history.oldest])
    errors = history.errors(model("grouped query").dense(late))  # both at once: the pinned ones lie before the oldest
    assert np.median(errors[60:]) > 0.01


@every_engine
def test_other_pinned_tokens_after_evictions_begin_a_history_of_their_own(engine: str, bound: float) -> None:
    of = model("grouped query")
    before = Roll(built(engine, of, 48), Cache(48), 6)
    before.random(20, 9)
    before.cache.truncate(3)
    after = Roll(before.engine, before.cache, 5)
    after.history.ids = list(before.history.ids[:3])
    after.history.oldest, after.history.logits = [5] * 3, before.history.logits[:3]
    assert after.random(40, 9, seed=1).errors(of.dense(after.history))[3:].max() < bound


class OneByOne(Roll):
    """What another runs in one step, token by token."""

    def run(self, ids: list[int]) -> None:
        for token in ids:
            super().run([token])


@native
@pytest.mark.parametrize("kv", ["float32", "float16", "bfloat16", "int8", "int8+int4"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), window=st.integers(18, 300), pinned=st.integers(0, 8))
def test_the_native_engines_bits_do_not_depend_on_steps_across_evictions(
    kv: KvType, seed: int, window: int, pinned: int
) -> None:
    of = model("grouped query")
    whole, single = (kind(built("native", of, window, kv), Cache(window), pinned) for kind in (Roll, OneByOne))
    assert np.array_equal(whole.random(8, 9, seed).logits, single.random(8, 9, seed).logits)


@native
@pytest.mark.parametrize("case", CASES)
def test_the_native_engine_equals_itself_with_room_for_everything(case: str) -> None:
    history = rolled("native", case)
    everything = replay(built("native", model(case), len(history.ids)), history)
    assert history.errors(everything).max() < 2e-5


@native
@pytest.mark.parametrize("kv", ["float16", "bfloat16", "int8"])
def test_rounded_keys_and_values_are_those_of_a_cache_with_room_for_everything(kv: KvType) -> None:
    """One layer, where what is stored depends on nothing before it, so that no rounding falls the other way."""
    of = random_model(**ONE_LAYER)
    history = Roll(built("native", of, 48, kv), Cache(48), 6).random(300, 9)
    everything = replay(built("native", of, len(history.ids), kv), history)
    bound = 5e-4 if kv == "int8" else 1e-5  # beside codes, the weights of 128 slots together are rounded to 15 bits
    assert history.errors(everything).max() < bound
    assert history.errors(of.dense(history)).max() > 2 * bound, "they are rounded indeed"


@pytest.mark.parametrize(
    "engine, options, bound",
    [
        ("torch", {"kv_bits": 16}, 0.02),
        ("torch", {"kv_bits": 8}, 0.3),
        ("torch", {"kv_bits": 4}, 3.0),
        pytest.param("native", {"kv": "float16"}, 0.02, marks=native),
        pytest.param("native", {"kv": "bfloat16"}, 0.15, marks=native),
        pytest.param("native", {"kv": "int8"}, 0.3, marks=native),
        pytest.param("native", {"kv": "int8+int4"}, 3.0, marks=native),
    ],
)
def test_the_error_of_rounded_keys_and_values_does_not_grow(engine: str, options: dict[str, Any], bound: float) -> None:
    of = model("grouped query")
    make: Callable[..., Engine] = NativeEngine.build if engine == "native" else TorchEngine.build
    exact = {"dtype": "float32"} if engine == "torch" else {"threads": 1}
    history = Roll(make(of.config, of.tensors, slots=48, **exact, **options), Cache(48), 6).random(200, 9)
    errors = history.errors(dense("grouped query", 200))
    assert errors.max() < bound
    assert errors[-300:].mean() < 1.3 * errors[:300].mean()


def quantized(of: Model) -> list[tuple[str, Tensor]]:
    """Its matrices rounded to 8 bits."""

    def packed(tensor: FloatTensor) -> Tensor:
        values = dequantize(tensor)
        if values.ndim == 1:
            return tensor
        grouped = values.reshape(len(values), -1, 32)
        scale = (np.abs(grouped).max(-1) / 127).astype(np.float16)
        codes = np.clip(np.rint(grouped / scale[..., None].astype(np.float32)), -127, 127).astype(np.int8)
        return QuantTensor(codes.reshape(values.shape), scale, 32, 8)

    return [(name, packed(tensor)) for name, tensor in of.tensors]


@native
def test_quantized_weights_roll_as_with_room_for_everything_and_near_their_exact_values() -> None:
    of = random_model(**ONE_LAYER)
    tensors = quantized(of)
    exact = Model(of.config, {name: torch.from_numpy(np.array(dequantize(tensor))) for name, tensor in tensors})

    def engine(slots: int) -> NativeEngine:
        return NativeEngine.build(of.config, tensors, slots=slots, kv="float32", threads=1)

    history = Roll(engine(48), Cache(48), 6).random(100, 9)
    everything, expected = replay(engine(len(history.ids)), history), exact.dense(history)
    assert np.median(history.errors(everything)) < 1e-5  # rounding of activations may fall the other way, seldom
    errors = np.stack(history.logits) - expected
    assert np.square(errors).mean() < 3e-4 * np.square(expected).mean()
    assert np.square(errors[-100:]).mean() < 2 * np.square(errors[:100]).mean()
