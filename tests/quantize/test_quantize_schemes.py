"""Rounding to codes: what each scheme loses, and that loading quantized is converting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamachat.core.tensors import FloatTensor, dequantize
from llamachat.errors import FormatError
from llamachat.formats.prequantized.schemes import CODEBOOKS, SCHEMES, Scheme
from quantize.coding import WRITERS, code
from quantize.recipe import Recipe
from quantize.schemes import TABLES, grid, nearest, quantize, quantize_tensor


def gaussian(rows: int = 64, columns: int = 256, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.02)


def lost(data: NDArray[np.float32], scheme: Scheme) -> float:
    """Mean square error relative to the weights' own."""
    difference = dequantize(quantize(data, scheme)) - data
    return float((difference**2).sum() / (data**2).sum())


def q4_0(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """ggml's quantize_row_q4_0_ref."""
    blocks = data.reshape(-1, 32)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = (peak / -8).astype(np.float32)
    codes = np.clip(np.floor(blocks / scale + 8.5), 0, 15)
    values: NDArray[np.float32] = ((codes - 8) * scale.astype(np.float16)).reshape(data.shape)
    return values


def test_int4_loses_far_less_than_q4_0_at_the_same_bits() -> None:
    data = gaussian()
    reference = float(((q4_0(data) - data) ** 2).sum() / (data**2).sum())
    assert lost(data, SCHEMES["int4"]) < 0.75 * reference
    assert quantize(data, SCHEMES["int4"]).nbytes * 8 == 4.5 * data.size


def test_int8_loses_no_more_than_q8_0_at_the_same_bits() -> None:
    data = gaussian()
    blocks = data.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    q8_0 = np.rint(blocks / scale) * scale.astype(np.float16)
    assert lost(data, SCHEMES["int8"]) < float(((q8_0 - blocks) ** 2).sum() / (data**2).sum())
    assert quantize(data, SCHEMES["int8"]).nbytes * 8 == 8.5 * data.size


@pytest.mark.parametrize("codebook", ["gauss", "nf4", "iq4nl", "int4"])
def test_searched_scales_lose_less_than_those_of_the_largest_weight(codebook: str) -> None:
    data = gaussian()
    assert lost(data, Scheme(4, 32, codebook)) < lost(data, Scheme(4, 32, codebook, search=False))


def test_affine_covers_weights_that_are_all_of_one_sign() -> None:
    data = gaussian() + np.float32(1)
    assert lost(data, Scheme(4, 32, "affine")) < 0.01 * lost(data, SCHEMES["int4"])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_matrix_of_zeros_stays_one(name: str) -> None:
    zeros = np.zeros((2, 128), np.float32)
    np.testing.assert_array_equal(dequantize(quantize(zeros, SCHEMES[name])), zeros)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from(sorted(SCHEMES)))
def test_the_error_is_bounded_by_the_codebook_whatever_the_weights(seed: int, size: float, name: str) -> None:
    random = np.random.default_rng(seed)
    data = (random.standard_t(2, (4, 128)) * size).astype(np.float32)
    scheme = SCHEMES[name]
    peak = np.abs(data.reshape(-1, scheme.group or 128)).max(1)
    error = np.abs(dequantize(quantize(data, scheme)) - data).reshape(len(peak), -1).max(1)
    assert (error <= peak * (0.3 if scheme.bits == 4 else 0.03) + 1e-6).all()


@pytest.mark.parametrize("codebook", [None, *TABLES])
def test_the_ruler_finds_the_nearest_value(codebook: str | None) -> None:
    ruler = grid(codebook)
    unit = np.linspace(-1.3, 1.3, 100_001, dtype=np.float32)
    found = ruler.values[ruler.at(unit)]
    best = np.arange(-127, 128, dtype=np.float32) if codebook is None else np.array(TABLES[codebook], np.float32)
    best = best / np.abs(best).max()
    exact = np.sort(best)[nearest(unit, np.sort(best))]
    assert np.abs(np.abs(found - unit) - np.abs(exact - unit)).max() < 1 / 4096


def test_threads_change_nothing() -> None:
    tensor = FloatTensor(gaussian(600, 512))
    one, many = (quantize_tensor("w", tensor, SCHEMES["int4"], threads) for threads in (1, 7))
    np.testing.assert_array_equal(one.codes, many.codes)
    np.testing.assert_array_equal(one.scale, many.scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_no_scale_can_hold_are_refused(value: float) -> None:
    data = gaussian()
    data[3, 7] = value
    with pytest.raises(FormatError, match=r"not finite|too large"):
        quantize_tensor("w", FloatTensor(data), SCHEMES["int4"])


# the registry


@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_says_what_a_weight_takes(name: str) -> None:
    """Beside its codes and scales a matrix has a table, or what bitsandbytes says of its blocks: some hundred bytes."""
    data = gaussian(512, 1024)
    recipe = Recipe(name.removesuffix("-gptq"))  # the same codes, found without a text
    arrays, coded = code("model.layers.0.mlp.up_proj.weight", FloatTensor(data), recipe, None)
    stored = sum(array.nbytes for array in arrays.values())
    expected = SCHEMES[name].bits_a_weight * data.size / 8
    assert expected <= stored < expected + 512 * 4 + 1024  # one scale a row is counted as nothing
    assert coded is not None and coded.shape == data.shape
    read = SCHEMES[name].storage.entries(arrays, "it")["model.layers.0.mlp.up_proj.weight"].read()
    np.testing.assert_array_equal(dequantize(read), dequantize(coded))


def test_each_scheme_has_a_writer_and_each_codebook_its_values() -> None:
    assert {scheme.storage for scheme in SCHEMES.values()} == WRITERS.keys()
    assert TABLES.keys() == {*CODEBOOKS, *(scheme.codebook for scheme in SCHEMES.values() if scheme.codebook)}
