"""bitsandbytes checkpoints as transformers writes them: our values are bitsandbytes' own."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from checkpoints import same_coding, save_hf, tiny_model
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from llamachat.core.tensors import FloatTensor, QuantTensor, dequantize
from llamachat.errors import FormatError
from llamachat.formats.hf import open_hf

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
QUERY = "model.layers.0.self_attn.q_proj.weight"


def quantize(folder: Path, kind: str, **shape: Any) -> LlamaForCausalLM:
    """Save the tiny model as bitsandbytes quantizes it; returns it as transformers has it."""
    source = save_hf(tiny_model(**shape), folder / "float")
    config = BitsAndBytesConfig(**KINDS[kind])
    model = LlamaForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    return model


def theirs(model: LlamaForCausalLM, name: str) -> Any:
    """The float32 weight that bitsandbytes computes with."""
    weight = model.get_parameter(name)
    if weight.dtype == torch.int8:
        return bnb.int8_vectorwise_dequant(weight.CB if weight.CB is not None else weight.data, weight.SCB).numpy()
    # one block a row: bitsandbytes 0.50's AVX-512 kernel is wrong where a block runs on into the next row
    shape, state = weight.quant_state.shape, weight.quant_state
    state.shape = torch.Size((shape.numel() // state.blocksize, state.blocksize))
    return bnb.dequantize_4bit(weight.data, state).reshape(shape).numpy()


def is_quantized(name: str) -> bool:
    return "proj" in name


# 64 columns are one block a row; in rows of 96 a block of 64 runs on into the next row
@pytest.mark.parametrize(
    ("kind", "hidden"), [(kind, hidden) for kind in KINDS for hidden in (64, 96) if kind != "int8"]
)
def test_4_bit_weights_are_exactly_those_bitsandbytes_computes_with(tmp_path: Path, kind: str, hidden: int) -> None:
    model = quantize(tmp_path, kind, hidden_size=hidden, intermediate_size=160)
    for name, tensor in open_hf(tmp_path).tensors():
        if is_quantized(name):
            assert isinstance(tensor, QuantTensor)
            np.testing.assert_array_equal(dequantize(tensor), theirs(model, name), strict=True)
        else:
            np.testing.assert_array_equal(dequantize(tensor), model.get_parameter(name).detach().numpy(), strict=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("int8", "bfloat16")])
def test_a_width_without_a_packed_layout_gives_the_same_values_as_floats(tmp_path: Path, kind: str) -> None:
    """Rows of 60 are cut by blocks anywhere, those of 33 leave half a byte."""
    model = quantize(tmp_path, kind, hidden_size=60, intermediate_size=33, num_attention_heads=3, num_key_value_heads=3)
    checkpoint = open_hf(tmp_path)
    for name, tensor in checkpoint.tensors():
        if is_quantized(name):
            assert isinstance(tensor, FloatTensor)
            assert checkpoint.index()[name].packing is None
            weight = model.get_parameter(name)
            shape, state = weight.quant_state.shape, weight.quant_state
            whole = -(-shape.numel() // state.blocksize)  # in whole blocks, as in `theirs`
            state.shape = torch.Size((whole, state.blocksize))
            padding = torch.zeros(whole * state.blocksize // 2 - weight.data.numel(), 1, dtype=torch.uint8)
            values = bnb.dequantize_4bit(torch.cat([weight.data, padding]), state).reshape(-1)[: shape.numel()]
            np.testing.assert_array_equal(dequantize(tensor), values.reshape(shape).numpy(), strict=True)


def test_int8_weights_of_any_width_are_read(tmp_path: Path) -> None:
    model = quantize(
        tmp_path, "int8", hidden_size=60, intermediate_size=33, num_attention_heads=3, num_key_value_heads=3
    )
    for name, tensor in open_hf(tmp_path).tensors():
        if is_quantized(name):
            np.testing.assert_allclose(dequantize(tensor), theirs(model, name), rtol=2.5e-7, atol=0)


def test_int8_weights_are_those_bitsandbytes_computes_with_to_float_rounding(tmp_path: Path) -> None:
    model = quantize(tmp_path, "int8")
    for name, tensor in open_hf(tmp_path).tensors():
        if is_quantized(name):
            assert isinstance(tensor, QuantTensor)
            assert tensor.bits == 8
            np.testing.assert_allclose(dequantize(tensor), theirs(model, name), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_as_wide_as_blocks_and_rows_allow(tmp_path: Path, kind: str) -> None:
    quantize(tmp_path, kind, hidden_size=96, intermediate_size=256)
    tensors = dict(open_hf(tmp_path).tensors())
    query, down = tensors[QUERY], tensors["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(query, QuantTensor)
    assert isinstance(down, QuantTensor)
    assert (query.group, down.group) == ((96, 256) if kind == "int8" else (32, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_gives_the_matrix_s_shape_and_the_stored_bytes(tmp_path: Path, kind: str) -> None:
    quantize(tmp_path, kind)
    stored = load_file(tmp_path / "model.safetensors")
    index = open_hf(tmp_path).index()
    assert index[QUERY].shape == (64, 64)
    assert index[QUERY].nbytes == sum(
        t.nbytes for name, t in stored.items() if name.startswith("model.layers.0.self_attn.q_proj.")
    )
    assert sum(info.nbytes for info in index.values()) == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_tells_how_a_matrix_will_be_coded(tmp_path: Path, kind: str) -> None:
    quantize(tmp_path, kind, hidden_size=96)
    checkpoint = open_hf(tmp_path)
    for name, tensor in checkpoint.tensors():
        same_coding(checkpoint.index()[name].packing, tensor)


def test_modules_that_were_left_out_stay_float(tmp_path: Path) -> None:
    quantize(tmp_path, "int8")
    assert isinstance(dict(open_hf(tmp_path).tensors())["lm_head.weight"], FloatTensor)


def encoded(**values: Any) -> torch.Tensor:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 64]}
    return torch.tensor(list(json.dumps(state | values).encode()), dtype=torch.uint8)


STATE = f"{QUERY}.quant_state.bitsandbytes__nf4"
FOUR_BIT_DAMAGE: dict[str, torch.Tensor | None] = {
    f"{QUERY}.absmax": torch.ones(63),
    f"{QUERY}.quant_map": torch.full((16,), float("nan")),
    QUERY: torch.zeros(2047, 1, dtype=torch.uint8),
    STATE: None,
}


@pytest.mark.parametrize(("name", "value"), FOUR_BIT_DAMAGE.items())
def test_4_bit_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: torch.Tensor | None) -> None:
    quantize(tmp_path, "nf4")
    refused(tmp_path, {name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"shape": [64, 65]},
        {"shape": [64]},
        {"shape": [-64, -64]},
        {"shape": [10**30, 32]},
        {"shape": [256, 16]},
        {"blocksize": 0},
        {"blocksize": 48},
        {"blocksize": "64"},
    ],
)
def test_a_quantization_state_that_lies_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    quantize(tmp_path, "nf4")
    refused(tmp_path, {STATE: encoded(**values)})


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 50_000])
def test_a_quantization_state_that_is_not_json_is_refused(tmp_path: Path, text: bytes) -> None:
    quantize(tmp_path, "nf4")
    refused(tmp_path, {STATE: torch.tensor(list(text), dtype=torch.uint8)})


@pytest.mark.parametrize(
    "values",
    [{"nested_blocksize": 0}, {"nested_blocksize": 1 << 40}, {"nested_offset": "0"}, {"nested_offset": 10**400}, {}],
)
def test_nested_scales_that_do_not_fit_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    quantize(tmp_path, "nested")
    refused(tmp_path, {STATE: encoded(**({"nested_blocksize": 256, "nested_offset": 0.1} | values if values else {}))})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("SCB", torch.ones(63)),
        ("SCB", None),
        ("SCB", torch.ones(64, dtype=torch.float16)),
        ("weight_format", torch.tensor(1, dtype=torch.uint8)),
        ("weight.absmax", torch.ones(64)),
        ("weight", torch.zeros(64, 63, dtype=torch.int8)),
        ("weight", None),
    ],
)
def test_int8_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str, value: torch.Tensor | None) -> None:
    quantize(tmp_path, "int8")
    refused(tmp_path, {QUERY.removesuffix("weight") + part: value})


def refused(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    state = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="q_proj"):
        open_hf(folder)
