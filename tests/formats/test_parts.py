"""Parts of tensors have exactly the values of the whole ones."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from llamachat.core.tensors import FloatTensor, QuantTensor, Tensor, TensorInfo, dequantize, pack_nibbles
from llamachat.formats.parts import WHOLE, Part, covering, cut, cut_info, within

ROWS, COLUMNS = 6, 512
TABLE = np.linspace(-1, 1, 16, dtype=np.float32) ** 3
SPANS = [
    (0, 512),
    (0, 256),
    (256, 512),
    (64, 96),
    (96, 352),
    (224, 480),
    (16, 48),
    (0, 8),
    (40, 41),
    (500, 512),
]
CODINGS = [(bits, group, minimum) for bits in (4, 8) for group in (32, 256, 512) for minimum in (False, True)]


def coded(bits: int, group: int, minimum: bool) -> QuantTensor:
    rng = np.random.default_rng(bits + group)
    scale, low = rng.normal(size=(2, ROWS, COLUMNS // group)).astype(np.float32)
    if bits == 8:
        codes = rng.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8)
        return QuantTensor(codes, scale, group, 8, None, low if minimum else None)
    codes = pack_nibbles(rng.integers(0, 16, (ROWS, COLUMNS)))
    return QuantTensor(codes, scale.astype(np.float16), group, 4, TABLE, low.astype(np.float16) if minimum else None)


def made() -> Iterator[Tensor]:
    values = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    yield from map(FloatTensor, (values, values.astype(np.float16), values.view(np.uint16)[:, ::2]))
    yield from (coded(*coding) for coding in CODINGS)
    yield coded(8, 16, True)


every_tensor = pytest.mark.parametrize("tensor", list(made()))


@every_tensor
def test_a_part_has_exactly_the_values_of_the_whole(tensor: Tensor) -> None:
    whole = dequantize(tensor)
    for (start, stop), rows in product(SPANS, (None, slice(2, 5), slice(1, None, 2))):
        part = Part(rows, slice(start, stop))
        found = cut(tensor, part)
        right = whole[slice(None) if rows is None else rows, start:stop]
        assert found.shape == part.shape(tensor.shape) == right.shape
        np.testing.assert_array_equal(dequantize(found), right, strict=True)


@every_tensor
def test_a_part_of_multiples_of_32_columns_stays_packed_and_is_as_small_as_its_share(tensor: Tensor) -> None:
    for start, stop in SPANS[:6]:
        found = cut(tensor, Part(columns=slice(start, stop)))
        assert type(found) is type(tensor)
        if isinstance(found, QuantTensor) and isinstance(tensor, QuantTensor):
            assert found.group == tensor.group or tensor.group > 32
            assert found.codes.nbytes * COLUMNS == tensor.codes.nbytes * (stop - start)
    sixth = cut(tensor, Part(slice(3, 4)))
    assert type(sixth) is type(tensor) and sixth.nbytes * ROWS == tensor.nbytes


def test_one_scale_a_row_stays_one_as_kernels_want_it() -> None:
    found = cut(coded(8, COLUMNS, False), Part(columns=slice(96, 352)))
    assert isinstance(found, QuantTensor) and (found.group, found.scale.shape) == (256, (ROWS, 1))


def test_zeros_are_of_the_shape_and_without_memory() -> None:
    vector, matrix = (
        cut(FloatTensor(np.ones(9, np.float32)), Part(zero=True)),
        cut(coded(4, 32, True), Part(slice(2), zero=True)),
    )
    assert vector.shape == (9,) and matrix.shape == (2, COLUMNS)
    assert not dequantize(vector).any() and not dequantize(matrix).any()
    assert isinstance(matrix, FloatTensor) and matrix.data.strides == (0, 0)


@every_tensor
def test_a_header_of_a_part_is_that_of_the_part(tensor: Tensor) -> None:
    whole = TensorInfo(tensor.shape, tensor.nbytes, tensor.rows(slice(0)) if isinstance(tensor, QuantTensor) else None)
    for start, stop in SPANS[1:8]:
        part = Part(slice(1, 3), slice(start, stop))
        info, found = cut_info(whole, part), cut(tensor, part)
        assert info.shape == found.shape and info.nbytes == round(tensor.nbytes * (stop - start) / COLUMNS / 3)
        if isinstance(found, FloatTensor):
            assert info.packing is None
        else:
            assert info.packing is not None
            assert (info.packing.group, info.packing.bits) == (found.group, found.bits)
            assert info.packing.shape == (0, stop - start)
    assert cut_info(whole, Part(zero=True)).nbytes == 0


@pytest.mark.parametrize(("start", "stop"), SPANS)
def test_blocks_that_cover_a_part_are_whole_and_the_rest_is_the_part(start: int, stop: int) -> None:
    numbers = FloatTensor(np.arange(2 * 500, dtype=np.float32).reshape(2, 500))
    part = Part(slice(1, 2), slice(start, min(stop, 500)))
    outer, rest = covering(part, 500, 64)
    assert outer.columns is not None
    assert outer.columns.start % 64 == 0 and (outer.columns.stop % 64 == 0 or outer.columns.stop == 500)
    np.testing.assert_array_equal(dequantize(cut(cut(numbers, outer), rest)), dequantize(cut(numbers, part)))
    assert covering(Part(slice(1)), 500, 64) == (Part(slice(1)), WHOLE)


def test_parts_of_parts() -> None:
    numbers = list(range(20))
    for outer, inner in product((slice(None), slice(4, 17), slice(1, None, 3)), (None, slice(2, 5), slice(0, 0))):
        right = numbers[outer] if inner is None else numbers[outer][inner]
        assert numbers[within(20, outer, inner)] == right
