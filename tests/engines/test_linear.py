"""Every linear kernel against the exact product x @ dequantize(w)^T, and what is chosen for which weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core.tensors import CODEBOOKS, FloatTensor, QuantTensor, Tensor, dequantize, pack_nibbles
from llamachat.engines.torch.linear import Dense, Linear, Stacked, bitsandbytes, kernel_for, make_linear

CPU = torch.device("cpu")
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
CODES = np.arange(16, dtype=np.float32)
KINDS: dict[str, tuple[int, int, Any, bool, str]] = {  # bits, group (0: the row), table, minimum, kernel in bfloat16
    "Q4_0": (4, 32, CODES - 8, False, "torch int4"),
    "Q4_1": (4, 32, CODES, True, "torch int4"),
    "int4 by 128": (4, 128, CODES / 8 - 1, False, "torch int4"),
    "int8 by row": (8, 0, None, False, "torch int8"),
    "Q8_0": (8, 32, None, False, "torch int4 x 2"),
    "Q5_1": (8, 32, None, True, "torch int4 x 2"),
    "IQ4_NL": (4, 32, IQ4_NL, False, "torch int4 x 2"),
    "NF4": (4, 64, np.array(CODEBOOKS["nf4"], np.float32), False, "bitsandbytes 4-bit"),
    "FP4": (4, 32, np.array(CODEBOOKS["fp4"], np.float32), False, "bitsandbytes 4-bit"),
    "Q6_K": (8, 16, None, False, "dense bfloat16"),
    "int8 by row, offset": (8, 0, None, True, "dense bfloat16"),
    "codebook": (4, 32, np.sin(CODES), False, "dense bfloat16"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def quantized(kind: str, rows: int, columns: int, seed: int = 0) -> QuantTensor:
    bits, group, table, offset, _ = KINDS[kind]
    rng, group = np.random.default_rng(seed), group or columns
    codes = rng.integers(-128, 128, (rows, columns), dtype=np.int8)
    shape = rows, columns // group
    scale = rng.uniform(0.5, 2, shape).astype(np.float16)
    minimum = rng.uniform(-9, -6, shape).astype(np.float16) if offset else None
    return QuantTensor(codes if bits == 8 else pack_nibbles(codes & 15), scale, group, bits, table, minimum)  # type: ignore[arg-type]


def reach(tensor: Tensor) -> np.ndarray:
    """The largest magnitudes that a weight's parts could have: what rounding errors are measured against."""
    if isinstance(tensor, FloatTensor):
        return np.abs(dequantize(tensor))
    most = 128 if tensor.table is None else np.abs(tensor.table).max()
    bound = most * tensor.scale.astype(np.float32) + (0 if tensor.minimum is None else np.abs(tensor.minimum))
    return bound.repeat(tensor.group, axis=1)


def check(linear: Linear, parts: list[Tensor], tokens: int, dtype: torch.dtype, epsilon: float, bias: Any = 0) -> None:
    columns = parts[0].shape[1]
    x = torch.from_numpy(np.random.default_rng(tokens).standard_normal((tokens, columns))).to(dtype)
    y, exact = linear(x), x.double().numpy()
    assert y.dtype == dtype
    weight, bound = (np.concatenate([f(part) for part in parts]).astype(np.float64) for f in (dequantize, reach))
    error = np.abs(y.double().numpy() - (exact @ weight.T + bias))
    assert np.all(error <= epsilon * (np.abs(exact) @ bound.T + np.abs(bias)))


@kinds
@settings(deadline=None, max_examples=15)
@given(blocks=st.integers(1, 12), wide=st.integers(1, 3), tokens=st.integers(1, 40), seed=st.integers(0, 99))
def test_kernel_computes_the_dequantized_product(kind: str, blocks: int, wide: int, tokens: int, seed: int) -> None:
    tensor = quantized(kind, 16 * blocks, 128 * wide, seed)
    check(make_linear([tensor], [], CPU, torch.bfloat16), [tensor], tokens, torch.bfloat16, 2**-7)


@kinds
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 70), columns=st.integers(1, 5), tokens=st.integers(1, 9))
def test_odd_sizes_are_right_too(kind: str, rows: int, columns: int, tokens: int) -> None:
    tensor = quantized(kind, rows, columns * max(32, KINDS[kind][1]))
    check(make_linear([tensor], [], CPU, torch.bfloat16), [tensor], tokens, torch.bfloat16, 2**-7)


def test_columns_that_the_int8_kernel_gets_wrong_are_kept_from_it() -> None:
    tensor = QuantTensor(np.ones((32, 72), np.int8), np.ones((32, 1), np.float32), 72, 8)
    check(make_linear([tensor], [], CPU, torch.bfloat16), [tensor], 3, torch.bfloat16, 2**-7)


@kinds
def test_kernel_is_the_one_the_table_promises_and_takes_the_memory_it_plans(kind: str) -> None:
    tensor, name = quantized(kind, 96, 384), KINDS[kind][-1]
    if name.startswith("bitsandbytes") and not torch.cpu._is_avx512_bf16_supported():
        name = "dense bfloat16"
    linear = make_linear([tensor], [], CPU, torch.bfloat16)
    kernel = kernel_for(tensor, 96, CPU, torch.bfloat16)
    assert linear.kernel == name
    assert linear.nbytes == 96 * 384 * (kernel.bits(tensor) if kernel else 16) / 8


@kinds
def test_in_float32_weights_have_exactly_the_dequantized_values(kind: str) -> None:
    tensor = quantized(kind, 40, 256)
    linear = make_linear([tensor], [], CPU, torch.float32)
    assert isinstance(linear, Dense)
    np.testing.assert_array_equal(linear.weight.numpy(), dequantize(tensor))


@pytest.mark.parametrize("dtype, epsilon", [(torch.float32, 2**-20), (torch.float16, 2**-9), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("stored", [np.float32, np.float16, np.uint16])
def test_float_weights_of_every_kind(stored: Any, dtype: torch.dtype, epsilon: float) -> None:
    values = np.random.default_rng(0).standard_normal((33, 57), dtype=np.float32)
    data = (values.view(np.uint32) >> 16).astype(np.uint16) if stored == np.uint16 else values.astype(stored)
    data.flags.writeable = False  # as files are mapped
    tensor = FloatTensor(data)
    check(make_linear([tensor], [], CPU, dtype), [tensor], 5, dtype, epsilon)


def test_a_bias_is_added_to_all_stacked_parts() -> None:
    parts: list[Tensor] = [quantized("Q4_0", rows, 64, rows) for rows in (32, 16)]
    biases = [np.linspace(-9, 9, rows).astype(np.float32) for rows in (32, 16)]
    linear = make_linear(parts, [FloatTensor(bias) for bias in biases], CPU, torch.bfloat16)
    check(linear, parts, 4, torch.bfloat16, 2**-7, np.concatenate(biases))


@kinds
def test_parts_of_one_packing_become_one_matrix(kind: str) -> None:
    parts: list[Tensor] = [quantized(kind, rows, 256, rows) for rows in (32, 64, 96)]
    linear = make_linear(parts, [], CPU, torch.bfloat16)
    assert not isinstance(linear, Stacked)
    check(linear, parts, 7, torch.bfloat16, 2**-7)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=4), st.integers(1, 5))
def test_parts_of_any_packing_stand_one_below_the_other(names: list[str], tokens: int) -> None:
    parts: list[Tensor] = [quantized(kind, 32 * (i + 1), 128, i) for i, kind in enumerate(names)]
    parts.insert(1, FloatTensor(np.random.default_rng(0).standard_normal((5, 128), dtype=np.float32)))
    check(make_linear(parts, [], CPU, torch.bfloat16), parts, tokens, torch.bfloat16, 2**-7)


def test_packings_that_differ_in_table_or_minimum_are_not_mixed_up() -> None:
    shifted = QuantTensor(quantized("Q4_0", 32, 64).codes, np.ones((32, 2), np.float16), 32, 4, CODES - 3)
    parts: list[Tensor] = [quantized("Q4_0", 32, 64), shifted, quantized("Q4_1", 32, 64)]
    check(make_linear(parts, [], CPU, torch.bfloat16), parts, 3, torch.bfloat16, 2**-7)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.engines.torch.linear.SLAB", 1)
    for kind in KINDS:
        parts: list[Tensor] = [quantized(kind, 160, 128, seed) for seed in (1, 2)]
        check(make_linear(parts, [], CPU, torch.bfloat16), parts, 2, torch.bfloat16, 2**-7)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codebooks_are_those_of_bitsandbytes(kind: str) -> None:
    theirs = bitsandbytes().functional.get_4bit_type(kind, device="cpu")
    np.testing.assert_allclose(np.array(CODEBOOKS[kind], np.float32), theirs.numpy(), atol=1e-7)


def test_bitsandbytes_is_kept_from_fetching_code_from_a_hub(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    raise SystemExit('reached for the hub')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from llamachat.engines.torch.linear import bitsandbytes\n"
        "bitsandbytes().functional\n"
        "import kernels; print(kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(tmp_path / "kernels.py")  # and others may still use the package
