"""Keys in 8 bits and values in 4, rotated by Hadamard matrices: what is kept is one thing in both engines, to the bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engines.test_native import BASE, in_order, random_model, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from llamachat.engines.memory import nibble_bytes
from llamachat.engines.native.engine import NativeEngine, usable_kernels
from llamachat.engines.torch.engine import TorchEngine
from llamachat.engines.torch.nibbles import hadamard, pack, unpack

COUNT = 40
CASES: dict[str, dict[str, Any]] = {
    **{f"heads of {size}": {"head_dim": size} for size in (6, 64, 80, 96)},
    "sliding window": {"sliding_window": 7},
    "soft-capped": {"attention_softcap": 5.0},
    "normed": {"qk_norm": "head"},
}


@given(st.integers(1, 130).map(lambda half: 2 * half), st.integers(0, 2**32))
def test_a_rotation_keeps_products_and_undoes_itself(size: int, seed: int) -> None:
    x, y = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, size)))
    assert torch.allclose(hadamard(hadamard(x)), x)
    assert torch.allclose(hadamard(x) @ hadamard(y), x @ y)


@given(st.integers(1, 300), st.integers(0, 2**32), st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
def test_values_come_back_to_within_half_a_step(size: int, seed: int, spread: float) -> None:
    x = torch.from_numpy((np.random.default_rng(seed).standard_normal((3, size)) * spread).astype(np.float32))
    rows = pack(x)
    assert rows.shape == (3, nibble_bytes(size)) and rows.dtype == torch.uint8
    step = (x.amax(-1).clamp_min(0) - x.amin(-1).clamp_max(0)) / 15
    assert torch.all((unpack(rows, size) - x).abs() <= 0.5 * step[:, None] + 2e-3 * x.abs().amax() + 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_both_engines_keep_the_same_and_compute_alike(case: str) -> None:
    config = replace(BASE, **CASES[case])
    tensors, ids = random_model(config), tokens_of(config, COUNT)
    step = in_order(0, COUNT)
    exact = TorchEngine.build(config, tensors.items(), slots=64, dtype="float32", kv_bits=4)
    expected = exact.forward(ids, step, "all")
    for kernels in usable_kernels():
        native = NativeEngine.build(config, tensors.items(), slots=64, kv="int8+int4", threads=1, kernels=kernels)
        off = np.abs(native.forward(ids, step, "all") - expected).mean() / np.abs(expected).mean()
        assert off < 0.03, "queries are rounded to 15 bits"
        ours, right = native.save_kv(step.slots)["kv"], exact.save_kv(step.slots)["kv"]
        assert ours.shape == right.shape and np.mean(ours[0] == right[0]) > 0.99, "a code may fall the other way"
        assert native.kv_bytes == exact.kv_bytes
        assert all("keys int8, values int4" in engine.describe() for engine in (native, exact))
