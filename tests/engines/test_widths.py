"""ggml's types at their own widths in the native layout: exact, as small as in the file, and multiplied as defined."""

import mmap
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.bench.shapes import config_of
from llamachat.core.tensors import Array, TensorInfo, dequantize
from llamachat.engines.native import build
from llamachat.engines.native.engine import single_product, single_rows, usable_kernels
from llamachat.engines.native.pack import BLOCKS, pack, packed_bytes
from llamachat.errors import FormatError
from llamachat.formats.ggml import TYPES, BlockInfo, Blocks, read_blocks

if build.compiler() is None and not (build.SOURCES / build.LIBRARY).exists():
    pytest.skip("no C compiler and no compiled library", allow_module_level=True)

KERNELS = usable_kernels()
NAMES = {TYPES[number].name: number for number in BLOCKS}


def random_blocks(name: str, rows: int, columns: int, seed: int) -> Blocks:
    """Random codes and integers; scales of all sizes that fp16 has, minima too."""
    kind, rng = TYPES[NAMES[name]], np.random.default_rng(seed)
    columns = -(-columns // kind.columns) * kind.columns
    raw = rng.integers(0, 256, kind.nbytes((rows, columns)), dtype=np.uint8)
    blocks = raw.view(kind.layout)
    for field in ("d", "m", "dmin"):
        if field in kind.layout.fields:
            blocks[field] = (rng.standard_normal(len(blocks)) * 2.0 ** rng.integers(-20, 4)).astype(np.float16)
    if "e" in kind.layout.fields:
        blocks["e"] = rng.integers(rng.integers(0, 120), 131, len(blocks))
    held = mmap.mmap(-1, len(raw))
    held.write(raw.tobytes())
    return Blocks(kind, (rows, columns), Path("file"), "matrix", held, 0)


def values(blocks: Blocks) -> Array:
    """As formats/ggml.py defines them."""
    tensor = read_blocks(BytesIO(blocks.bytes().tobytes()), blocks.kind, *blocks.stored, "file")
    exact = dequantize(tensor)
    return exact if blocks.order is None else exact[blocks.order]


cases = st.tuples(st.sampled_from(list(NAMES)), st.integers(1, 70), st.integers(1, 600), st.integers(0, 2**32))


@settings(deadline=None, max_examples=60)
@given(case=cases)
def test_packed_rows_are_the_blocks_values_to_the_last_bit(case: tuple[str, int, int, int]) -> None:
    blocks = random_blocks(*case)
    order = np.random.default_rng(case[3]).permutation(case[1]).astype(np.int32)
    for each in (blocks, replace(blocks, order=order)):
        header, data = pack(each)
        for kernels in KERNELS:
            assert np.array_equal(single_rows(header, data, range(case[1]), kernels), values(each))


def rounded(x: Array, fine: bool) -> Array:
    """Activations as the engine rounds them, exactly, in float64: 127 steps (times 256 if fine) to the largest of 32."""
    grouped = x.reshape(len(x), -1, 32)
    scale = np.abs(grouped).max(-1, keepdims=True) / np.float32(127)
    steps = grouped * (np.float32(1) / scale)
    whole = np.rint(steps)
    codes = whole + np.clip(np.rint((steps - whole) * 256), -127, 127) / 256 if fine else whole
    return (codes * scale.astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize("fine", [False, True])
@settings(deadline=None, max_examples=60)
@given(case=cases, tokens=st.integers(1, 19), extreme=st.booleans())
def test_products_equal_their_definition_and_each_other(
    fine: bool, case: tuple[str, int, int, int], tokens: int, extreme: bool
) -> None:
    blocks = random_blocks(*case)
    x = np.random.default_rng(case[3] + 1).standard_normal((tokens, blocks.shape[1])).astype(np.float32)
    x = np.sign(x) if extreme else x
    exact, inputs = values(blocks).astype(np.float64), rounded(x, fine)
    header, data = pack(blocks)
    minimum = np.abs(exact).max() * blocks.shape[1] ** 0.5
    first = None
    for kernels in KERNELS:
        out = single_product(header, data, x, kernels, fine=fine, threads=2)
        alone = np.concatenate([single_product(header, data, row[None], kernels, fine=fine) for row in x])
        assert np.array_equal(out, alone)
        assert first is None or kernels == "portable" or np.array_equal(out, first)
        first = out
        assert np.abs(out - inputs @ exact.T).max() <= 4e-6 * minimum * np.abs(inputs).max()


@pytest.mark.parametrize("name", NAMES)
def test_packed_bytes_are_the_files_and_known_from_headers(name: str) -> None:
    blocks = random_blocks(name, 64, 1024, 0)
    _, data = pack(blocks)
    assert data.nbytes == packed_bytes(BlockInfo(blocks.shape, blocks.nbytes, None, blocks)) <= 1.03 * blocks.nbytes
    assert packed_bytes(TensorInfo((1024,), 4096)) == 4096


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_packed_is_as_large_as_before(name: str) -> None:
    """A model of 1B with norms in float32 and all matrices of a type, from headers."""
    kind, held, stored, packed = TYPES[NAMES[name]], mmap.mmap(-1, 1), 0, 0
    for shape in config_of("1b").tensor_shapes().values():
        rows, columns = shape if len(shape) == 2 else (0, shape[0])
        blocks = Blocks(kind, (rows, columns), Path("file"), "matrix", held, 0) if rows else None
        info = BlockInfo(shape, kind.nbytes(shape) if rows else 4 * columns, None, blocks)
        stored, packed = stored + info.nbytes, packed + packed_bytes(info)
    assert packed <= 1.03 * stored


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MXFP4"])
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_refused_in_one_line(name: str, wrong: float) -> None:
    blocks = random_blocks(name, 20, 512, 1)
    raw = blocks.bytes().copy().view(blocks.kind.layout)
    raw["d"][-1] = wrong
    held = mmap.mmap(-1, raw.nbytes)
    held.write(raw.tobytes())
    with pytest.raises(FormatError, match="a scale in tensor 'matrix' of file is infinite or not a number"):
        pack(replace(blocks, data=held))
