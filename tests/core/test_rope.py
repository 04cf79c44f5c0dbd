"""RoPE frequencies against transformers' own, and their precision far out."""

from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig as HFConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamachat.core.rope import cos_sin, frequencies
from llamachat.core.spec import ModelSpec, RopeScaling

LONG, SHORT = tuple(np.linspace(1.0, 30.0, 16)), tuple(np.linspace(1.0, 1.5, 16))
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 96},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False, "beta_fast": 16.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.2},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3},
    {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.1},
]


def config(scaling: RopeScaling | None) -> ModelSpec:
    return ModelSpec(97, 128, 64, 1, 4, 4, 32, 256, rope_theta=5000.0, rope_scaling=scaling)


@pytest.mark.parametrize("context", [40, 300, 5000])
@pytest.mark.parametrize("parameters", SCALINGS, ids=lambda p: "-".join(map(str, p.values())))
def test_frequencies_and_factor_equal_transformers(parameters: dict[str, Any], context: int) -> None:
    own = {key: value for key, value in parameters.items() if key != "rope_type"}
    defaults = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if parameters["rope_type"] == "llama3" else {}
    tables = {"long_factor": LONG, "short_factor": SHORT} if parameters["rope_type"] == "longrope" else {}
    theirs = HFConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 5000.0, **defaults, **tables, **parameters},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, torch.device("cpu"), seq_len=context)
    ours, our_factor = frequencies(config(RopeScaling(parameters["rope_type"], **own, **tables)), context)
    np.testing.assert_allclose(ours, expected.double().numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-12)


def test_no_scaling_gives_powers_of_theta() -> None:
    ours, factor = frequencies(config(None), 10**6)
    np.testing.assert_allclose(ours, [5000.0 ** (-2 * i / 32) for i in range(16)], rtol=1e-15)
    assert factor == 1.0


def test_factors_divide_each_frequency() -> None:
    ours, _ = frequencies(config(RopeScaling("factors", factors=LONG)), 100)
    np.testing.assert_allclose(ours * LONG, frequencies(config(None), 100)[0], rtol=1e-15)


def test_dynamic_scaling_leaves_a_context_of_the_original_length_alone() -> None:
    ours, _ = frequencies(config(RopeScaling("dynamic", factor=3.0)), 256)
    np.testing.assert_array_equal(ours, frequencies(config(None), 256)[0])


def test_angles_keep_their_precision_a_million_positions_out() -> None:
    frequency, _ = frequencies(config(None), 1 << 20)
    cos, sin = cos_sin(np.array([1_000_003]), frequency, 2.0)
    getcontext().prec = 40
    two_pi = 2 * Decimal("3.1415926535897932384626433832795028841971")
    angles = np.array([float(Decimal(1_000_003) * Decimal(f) % two_pi) for f in frequency])
    np.testing.assert_allclose(cos[0], 2 * np.cos(angles), atol=1e-9)
    np.testing.assert_allclose(sin[0], 2 * np.sin(angles), atol=1e-9)
