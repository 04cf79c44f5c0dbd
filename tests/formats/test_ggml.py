"""ggml block types against the gguf package: every bit pattern must give the same float32 values."""

import io

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.core.tensors import Array, dequantize
from llamachat.errors import FormatError
from llamachat.formats import ggml

QUANTIZED = {kind.name: kind for kind in ggml.TYPES.values() if kind.split is not None}
HALVES = ("d", "m", "dmin")


def random_blocks(kind: ggml.GGMLType, blocks: int, seed: int) -> Array:
    """Random bytes, but for the half-precision scales, which are any finite number (subnormals and -0 included)."""
    random = np.random.default_rng(seed)
    data = np.frombuffer(random.bytes(blocks * kind.layout.itemsize), kind.layout).copy()
    for field in set(HALVES) & set(kind.layout.names or ()):
        exponent, rest = random.integers(0, 31, blocks), random.integers(0, 1 << 10, blocks)
        data[field] = (exponent << 10 | rest | random.integers(0, 2, blocks) << 15).astype(np.uint16).view(np.float16)
    if "e" in (kind.layout.names or ()):
        data["e"] %= 250  # beyond, values are not finite
    return data


def reference(kind: ggml.GGMLType, data: Array, rows: int) -> Array:
    stored = data.view(np.uint8).reshape(rows, -1)
    return np.asarray(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind.name]))


@pytest.mark.parametrize("name", QUANTIZED)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 3))
def test_values_equal_the_gguf_package_bit_for_bit(name: str, seed: int, rows: int, width: int) -> None:
    kind = QUANTIZED[name]
    data = random_blocks(kind, rows * width, seed)
    tensor = ggml.read_blocks(io.BytesIO(data.tobytes()), kind, rows, width * kind.columns, name)
    assert tensor.shape == (rows, width * kind.columns)
    np.testing.assert_array_equal(dequantize(tensor).view(np.uint32), reference(kind, data, rows).view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_slabs_join_without_a_seam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = QUANTIZED[name]
    monkeypatch.setattr(ggml, "SLAB", 3 * kind.layout.itemsize)
    data = random_blocks(kind, 5 * 4, seed=1)
    tensor = ggml.read_blocks(io.BytesIO(data.tobytes()), kind, 5, 4 * kind.columns, name)
    np.testing.assert_array_equal(dequantize(tensor), reference(kind, data, 5))


@pytest.mark.parametrize("name", QUANTIZED)
def test_packed_form_is_4_or_8_bits_with_small_scales(name: str) -> None:
    kind = QUANTIZED[name]
    tensor = ggml.read_blocks(io.BytesIO(random_blocks(kind, 2, 0).tobytes()), kind, 1, 2 * kind.columns, name)
    assert tensor.bits == (4 if "4" in name else 8)
    assert tensor.group in (16, 32)
    whole = kind.columns == 256 or name == "MXFP4"  # whose powers of two are beyond float16
    assert tensor.scale.dtype == (np.float32 if whole else np.float16)
    assert tensor.codes.flags.c_contiguous and tensor.codes.dtype == (np.uint8 if tensor.bits == 4 else np.int8)


@pytest.mark.parametrize("name", QUANTIZED)
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    kind = QUANTIZED[name]
    assert (kind.columns, kind.layout.itemsize) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def test_type_numbers_are_those_of_the_gguf_package() -> None:
    known = {number: kind.name for number, kind in ggml.TYPES.items()} | ggml.UNSUPPORTED
    assert known == {number: gguf.GGMLQuantizationType(number).name for number in known}


def test_a_short_file_is_an_error() -> None:
    with pytest.raises(FormatError, match="ends within weights"):
        ggml.read_blocks(io.BytesIO(bytes(33)), QUANTIZED["Q8_0"], 1, 32, "weights")


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "MXFP4"])  # which has no such scale
def test_a_scale_that_is_not_finite_is_an_error(name: str, scale: float) -> None:
    data = random_blocks(QUANTIZED[name], 1, 0)
    data["d"] = scale
    with pytest.raises(FormatError, match="scale in weights is infinite"):
        ggml.read_blocks(io.BytesIO(data.tobytes()), QUANTIZED[name], 1, QUANTIZED[name].columns, "weights")
