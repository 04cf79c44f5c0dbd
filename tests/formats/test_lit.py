"""lit-llama checkpoints: the fused and interleaved tensors, taken apart, are transformers'; quantized ones included."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import arrays, lit_state, quantized, same_coding, save_lit, tiny_model

from llamachat.core.tensors import FloatTensor, QuantTensor, dequantize
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.formats.lit import open_lit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_the_model_s(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(dtype)
    checkpoint = open_lit(save_lit(model, tmp_path / "7B") / "lit-llama.pth")
    tensors, expected = dict(checkpoint.tensors()), arrays(model)
    assert list(tensors) == list(checkpoint.config.tensor_shapes())
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert isinstance(tensor, FloatTensor)
        np.testing.assert_array_equal(tensor.data, expected[name], strict=True)
        assert checkpoint.index()[name].shape == tensor.shape


def save_gptq(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Quantize what lit-llama's quantize/gptq.py did: the matrices of all layers and the head."""
    folder = save_lit(tiny_model(), tmp_path / "7B")
    state = lit_state(tiny_model())
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        packed |= {name: tensor} if tensor.ndim == 1 or "wte" in name else quantized(state, name)
    torch.save(packed, folder / "lit-llama.pth")
    return folder / "lit-llama.pth", packed


def test_gptq_int4_weights_have_lit_llama_s_values(tmp_path: Path) -> None:
    """lit-llama: w[:, 0::2] = code & 15, w[:, 1::2] = code >> 4, then (w - zeros) * scales."""
    file, packed = save_gptq(tmp_path)
    tensors = dict(open_lit(file).tensors())
    for lit, ours in (
        ("mlp.c_fc1", "mlp.gate_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
        ("attn.c_proj", "self_attn.o_proj"),
    ):
        codes, scales, zeros = (packed[f"transformer.h.1.{lit}.{part}"] for part in ("quant_weight", "scales", "zeros"))
        weight = torch.empty(codes.shape[0], codes.shape[1] * 2)
        weight[:, ::2], weight[:, 1::2] = (codes & 15).float(), (codes >> 4).float()
        tensor = tensors[f"model.layers.1.{ours}.weight"]
        assert isinstance(tensor, QuantTensor)
        bound = (
            1e-6 * float(scales.max()) * 15
        )  # our scale * code + minimum rounds where (code - zero) * scale does not
        np.testing.assert_allclose(dequantize(tensor), ((weight - zeros) * scales).numpy(), rtol=0, atol=bound)


def test_gptq_int4_weights_are_close_to_the_model_s_they_were_made_of(tmp_path: Path) -> None:
    file, _ = save_gptq(tmp_path)
    expected, checkpoint = arrays(tiny_model()), open_lit(file)
    for name, tensor in checkpoint.tensors():
        same_coding(checkpoint.index()[name].packing, tensor)
        step = np.ptp(expected[name], axis=-1, keepdims=True) / 15 if isinstance(tensor, QuantTensor) else 0
        assert np.all(np.abs(dequantize(tensor) - expected[name]) <= step)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("scales", None),
        ("weight", torch.zeros(256, 64)),
        ("zeros", torch.zeros(255, 1)),
        ("scales", torch.zeros(256)),
        ("scales", torch.tensor(1.0)),
        ("quant_weight", torch.zeros(256, 32)),
        ("quant_weight", torch.zeros(256, 30, dtype=torch.uint8)),
        ("quant_weight", torch.zeros(256, 64, dtype=torch.uint8)),  # gptq.int8: a code a byte
    ],
)
def test_gptq_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str, value: torch.Tensor | None) -> None:
    file, packed = save_gptq(tmp_path)
    save(packed | {f"transformer.h.0.mlp.c_fc1.{part}": value}, file)
    with pytest.raises(FormatError, match=r"c_fc1|gate_proj"):
        open_lit(file)


def save(state: dict[str, Any], file: Path) -> None:
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.h.0.attn.c_attn.lora_A": torch.zeros(8, 64)}, "holds 'transformer.h.0.attn.c_attn.lora_A'"),
        ({"transformer.h.0.mlp.c_fc1.scales": torch.zeros(256, 1)}, "holds 'transformer.h.0.mlp.c_fc1.scales'"),
        ({"model.norm.weight": torch.zeros(64)}, "holds 'model.norm.weight'"),
        ({"transformer.h.0.attn.adapter_wte.weight": torch.zeros(10, 64)}, "holds .*adapter_wte"),
        ({"transformer.h.0.attn.c_attn.weight": torch.zeros(189, 64)}, r"q_proj.weight' .* \(63, 64\)"),
        ({"transformer.h.0.attn.c_attn.weight": torch.zeros(194, 64)}, "cannot be told apart"),
        ({"transformer.h.0.attn.c_attn.weight": torch.tensor(1.0)}, "cannot be told apart"),
        ({"transformer.h.1.mlp.c_fc2.weight": torch.zeros(255, 64)}, r"\(255, 64\)"),
        ({"transformer.h.1.mlp.c_fc2.weight": None}, "lacks 'model.layers.1.mlp.up_proj.weight'"),
        ({"transformer.wte.weight": None}, "transformer.wte"),
        ({"transformer.wte.weight": torch.zeros(64)}, "transformer.wte"),
        ({"lm_head.weight": torch.zeros(320, 64, dtype=torch.int8)}, "int8"),
    ],
)
def test_tensors_that_are_not_a_lit_llama_model_s_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save_lit(tiny_model(), tmp_path / "7B")
    save(lit_state(tiny_model()) | changes, folder / "lit-llama.pth")
    with pytest.raises(FormatError, match=message):
        open_lit(folder / "lit-llama.pth")


def test_heads_are_of_128_when_nothing_says_otherwise(tmp_path: Path) -> None:
    model = tiny_model(hidden_size=256, intermediate_size=768, num_attention_heads=2, num_key_value_heads=2)
    folder = save_lit(model, tmp_path / "7B")
    (folder / "lit_config.json").unlink()
    config = open_lit(folder / "lit-llama.pth").config
    assert (config.num_attention_heads, config.head_dim, config.max_position_embeddings) == (2, 128, 2048)


def test_a_width_that_heads_of_128_cannot_fill_needs_a_configuration(tmp_path: Path) -> None:
    folder = save_lit(tiny_model(), tmp_path / "7B")
    (folder / "lit_config.json").unlink()
    with pytest.raises(ConfigError, match=r"lit_config\.json"):
        open_lit(folder / "lit-llama.pth")


@pytest.mark.parametrize(
    "values", [{"n_layer": 3}, {"n_embd": 32}, {"padded_vocab_size": 384}, {"n_head": 0}, {"n_heads": 4}]
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path: Path, values: dict[str, int]) -> None:
    folder = save_lit(tiny_model(), tmp_path / "7B")
    (folder / "lit_config.json").write_text(json.dumps({"n_head": 4} | values))
    with pytest.raises(ModelError):
        open_lit(folder / "lit-llama.pth")


def test_the_tokenizer_is_the_one_above_the_size_s_folder(tmp_path: Path) -> None:
    tokenizer = open_lit(save_lit(tiny_model(), tmp_path / "7B") / "lit-llama.pth").tokenizer()
    assert tokenizer.decode(tokenizer.encode("lazy dog")).strip() == "lazy dog"
