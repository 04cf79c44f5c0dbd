"""Our own format: what goes in comes out, bit for bit, and what does not fit together is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from checkpoints import arrays, same, same_coding, save_hf, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llamachat.core.tensors import Array, FloatTensor, QuantTensor, Tensor
from llamachat.errors import FormatError
from llamachat.formats.hf import open_hf
from llamachat.formats.prequantized import ours as packed
from llamachat.formats.prequantized.ours import entries, packed_entries

QUERY = "model.layers.0.self_attn.q_proj.weight"


def quantized(
    shape: tuple[int, int],
    bits: Literal[4, 8] = 4,
    group: int = 32,
    minimum: bool = False,
    dtype: Any = np.float16,
    seed: int = 0,
) -> QuantTensor:
    rng, (rows, columns) = np.random.default_rng(seed), shape
    scales = [rng.standard_normal((rows, columns // group)).astype(dtype) for _ in range(2)]
    low = scales[1] if minimum else None
    if bits == 8:
        return QuantTensor(rng.integers(-128, 128, shape, np.int8), scales[0], group, 8, minimum=low)
    table = rng.standard_normal(16).astype(np.float32)
    return QuantTensor(rng.integers(0, 256, (rows, columns // 2), np.uint8), scales[0], group, 4, table, low)


def _bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def write(folder: Path, tensors: Mapping[str, Tensor], changes: Mapping[str, Array | None] | None = None) -> Path:
    """The folder that `quantize` would write, over one that save_hf wrote."""
    parts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts |= packed_entries(name, tensor)
    parts |= changes or {}
    stored = {name: torch.from_numpy(np.array(part)) for name, part in parts.items() if part is not None}
    save_file({name: _bfloat16(tensor) for name, tensor in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "llamachat", "scheme": "int4", "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def model(folder: Path) -> dict[str, Tensor]:
    """A tiny model with matrices of every kind."""
    save_hf(tiny_model(), folder)
    tensors: dict[str, Tensor] = {name: FloatTensor(array) for name, array in arrays(tiny_model()).items()}
    layer = "model.layers.0."
    return tensors | {
        QUERY: quantized((64, 64), minimum=True),
        f"{layer}self_attn.k_proj.weight": quantized((64, 64), bits=8, group=64),
        f"{layer}mlp.down_proj.weight": quantized((64, 256), group=128, dtype=np.float32),
        f"{layer}mlp.up_proj.weight": quantized((256, 64), bits=8, minimum=True),
        "model.embed_tokens.weight": quantized((320, 64)),
        "lm_head.weight": FloatTensor(np.arange(320 * 64, dtype=np.uint16).reshape(320, 64)),
    }


def test_a_model_comes_out_as_it_went_in(tmp_path: Path) -> None:
    tensors = model(tmp_path)
    checkpoint = open_hf(write(tmp_path, tensors))
    found = dict(checkpoint.tensors())
    assert found.keys() == tensors.keys() == checkpoint.index().keys()
    for name, tensor in found.items():
        same(tensor, tensors[name])
        assert checkpoint.index()[name].shape == tensor.shape
        same_coding(checkpoint.index()[name].packing, tensor)
    assert checkpoint.config.quantization is not None
    assert checkpoint.config.quantization.scheme == "int4"


def test_codes_are_mapped_not_copied(tmp_path: Path) -> None:
    tensor = dict(open_hf(write(tmp_path, model(tmp_path))).tensors())[QUERY]
    assert isinstance(tensor, QuantTensor)
    assert not tensor.codes.flags.owndata
    assert not tensor.codes.flags.writeable


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group=st.sampled_from([32, 64, 96]),
    bits=st.sampled_from([4, 8]),
    minimum=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 99),
)
def test_any_tensor_comes_out_as_it_went_in(
    rows: int, groups: int, group: int, bits: Literal[4, 8], minimum: bool, dtype: Any, seed: int
) -> None:
    tensor = quantized((rows, groups * group), bits, group, minimum, dtype, seed)
    parts = packed_entries("a.weight", tensor)
    entry = entries(parts, "memory")["a.weight"]
    same(entry.read(), tensor)
    assert entry.info.nbytes == sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("codes", None),
        ("scale", None),
        ("codes", np.zeros((64, 32), np.int8)),
        ("codes", np.zeros((63, 32), np.uint8)),
        ("codes", np.zeros(2048, np.uint8)),
        ("codes", np.zeros((64, 24), np.uint8)),
        ("scale", np.zeros((64, 3), np.float16)),
        ("scale", np.zeros((64, 64), np.float16)),
        ("scale", np.zeros((64, 2), np.uint16)),
        ("scale", np.zeros((63, 2), np.float16)),
        ("scale", np.zeros(128, np.float16)),
        ("minimum", np.zeros((64, 1), np.float16)),
        ("minimum", np.zeros((64, 2), np.float32)),
        ("table", None),
        ("table", np.zeros(15, np.float32)),
        ("table", np.zeros(16, np.float16)),
        ("table", np.full(16, np.inf, np.float32)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, part: str, value: Array | None) -> None:
    with pytest.raises(FormatError, match="q_proj"):
        open_hf(write(tmp_path, model(tmp_path), {f"{QUERY}.{part}": value}))


def test_a_tensor_both_plain_and_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="q_proj"):
        open_hf(write(tmp_path, model(tmp_path), {QUERY: np.zeros((64, 64), np.float32)}))


def manifest(folder: Path) -> Path:
    write(folder, model(folder))
    (folder / packed.MANIFEST).write_text(json.dumps({"sha256": packed.digests(folder)}))
    return folder


def test_a_whole_folder_is_verified(tmp_path: Path) -> None:
    packed.verify(manifest(tmp_path))


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip, "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "extra.bin").write_bytes(b""), "extra.bin"),
        (lambda folder: (folder / "manifest.json").write_text('{"sha256": 5}'), "manifest"),
        (lambda folder: (folder / "manifest.json").write_text('{"sha256": {"../secret": "0"}}'), "secret"),
    ],
)
def test_a_file_that_differs_from_the_manifest_is_named(tmp_path: Path, damage: Any, named: str) -> None:
    damage(manifest(tmp_path))
    with pytest.raises(FormatError, match=named):
        packed.verify(tmp_path)
