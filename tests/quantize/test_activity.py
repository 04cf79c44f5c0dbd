"""What a model alone tells of its activations, and what that is worth."""

from pathlib import Path

import numpy as np
import torch
from checkpoints import save_hf, tiny_model

from llamachat.core.tensors import Array, dequantize
from llamachat.formats.detect import open_checkpoint
from quantize.activity import activities
from quantize.schemes import SCHEMES, quantize


def with_norms(folder: Path) -> Path:
    """A tiny model, two heads of queries to one of keys, whose norms weigh columns very differently."""
    model = tiny_model(num_key_value_heads=2)
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data = torch.rand(weight.shape, generator=generator) ** 3 + 0.01
    return save_hf(model, folder)


def fair(activity: Array) -> Array:
    return activity / activity.mean()


def test_activities_are_the_mean_squares_of_random_normed_inputs(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_norms(tmp_path / "model"))
    weights = {name: dequantize(tensor) for name, tensor in checkpoint.tensors()}
    found = activities(checkpoint)
    inner = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    layer = "model.layers.1."
    given = inner * weights[f"{layer}input_layernorm.weight"]
    values = (given @ weights[f"{layer}self_attn.v_proj.weight"].T).reshape(-1, 2, 1, 16).repeat(2, 2).reshape(-1, 64)
    below = inner * weights[f"{layer}post_attention_layernorm.weight"]
    sizes = [np.square(below @ weights[f"{layer}mlp.{name}_proj.weight"].T).mean(0) for name in ("gate", "up")]
    expected = {
        "self_attn.q_proj": np.square(given).mean(0),
        "self_attn.o_proj": np.square(values).mean(0),
        "mlp.gate_proj": np.square(below).mean(0),
        "mlp.down_proj": sizes[0] * sizes[1],
    }
    for name, activity in expected.items():
        np.testing.assert_allclose(found[f"{layer}{name}.weight"], fair(activity), rtol=0.15, err_msg=name)
    assert "model.embed_tokens.weight" not in found


def test_errors_are_made_where_they_count_less(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_norms(tmp_path / "model"))
    name = "model.layers.0.mlp.gate_proj.weight"
    matrix, activity = dequantize(dict(checkpoint.tensors())[name]), activities(checkpoint)[name]
    blind, told = (dequantize(quantize(matrix, SCHEMES["int4"], each)) - matrix for each in (None, activity))
    assert (told**2 @ activity).sum() < 0.85 * (blind**2 @ activity).sum()


def test_columns_that_a_norm_takes_away_do_no_harm() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    activity = np.where(np.arange(64) < 40, 0, 1).astype(np.float32)
    left = dequantize(quantize(matrix, SCHEMES["int4"], activity))
    assert np.isfinite(left).all()
    assert np.abs(left - matrix)[:, 40:].max() < 0.2 * np.abs(matrix).max()
