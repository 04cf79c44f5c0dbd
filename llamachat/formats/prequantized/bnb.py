"""Weights that bitsandbytes quantized, as transformers saves them, to QuantTensor.

4 bits (QLoRA, arXiv 2305.14314): `X.weight` holds the flattened matrix's codes two a byte, the first high;
`X.weight.absmax` one scale per block of `blocksize` codes, itself 8-bit coded when `X.weight.nested_absmax` is there;
`X.weight.quant_map` the 16 values, `X.weight.quant_state.bitsandbytes__nf4|fp4` the rest as JSON.
8 bits (LLM.int8(), arXiv 2208.07339): `X.weight` int8 and `X.SCB`, each row's largest magnitude, which is code 127.

A matrix whose width 32 does not divide has no place in QuantTensor's layout: its values are given as floats, exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import GROUP, Array, FloatTensor, QuantTensor, Tensor, TensorInfo, pack_nibbles
from llamachat.errors import FormatError
from llamachat.formats.lazy import LazyTensor, float_entry, listed, packing
from llamachat.formats.parts import Part, cut, in_blocks, picked, taken
from llamachat.system.metadata import parse_json

STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
FOUR_BIT = {"", "absmax", "quant_map"}
NESTED = {"nested_absmax", "nested_quant_map"}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def entries(arrays: Mapping[str, Array], where: str) -> dict[str, LazyTensor]:
    """Canonical name -> tensor, the float ones included. Raises FormatError when parts are missing or do not fit."""
    weights: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        weight, part = _split(name)
        weights.setdefault(weight, {})[part] = array
    return {name: _entry(name, parts, where) for name, parts in weights.items()}


def _split(name: str) -> tuple[str, str]:
    """The weight and which part of it: ("a.weight", "absmax") of a.weight.absmax, ("a.weight", "SCB") of a.SCB."""
    for part in ("SCB", "weight_format"):
        if name.endswith(f".{part}"):
            return name.removesuffix(part) + "weight", part
    weight, found, part = name.partition(".weight.")
    return (f"{weight}.weight", part) if found else (name, "")


def _entry(name: str, parts: dict[str, Array], where: str) -> LazyTensor:
    kinds = parts.keys()
    nbytes = sum(array.nbytes for array in parts.values())
    if kinds == {""}:
        return float_entry(name, parts[""])
    if {"", "SCB"} <= kinds <= {"", "SCB", "weight_format"}:
        _check_int8(name, parts, where)
        columns = parts[""].shape[1]
        if columns % GROUP:
            return LazyTensor(TensorInfo(parts[""].shape, nbytes), partial(_int8_floats, parts))
        return LazyTensor(TensorInfo(parts[""].shape, nbytes, packing(columns, columns, 8)), partial(_int8, parts))
    state = [key for key in STATES if key in kinds]
    if len(state) == 1 and kinds - {*state} in (FOUR_BIT, FOUR_BIT | NESTED):
        raw = parse_json(parts[state[0]].tobytes(), f"the quantization state of {shown(name)} in {where}", FormatError)
        rows, columns = _check_four_bit(name, parts, raw, where)
        if columns % GROUP:
            return LazyTensor(
                TensorInfo((rows, columns), nbytes), partial(_four_bit_floats, parts, raw, (rows, columns))
            )
        # blocks run on over the ends of rows; the widest group of columns that no boundary of either cuts:
        coded = packing(columns, math.gcd(columns, raw["blocksize"]), 4, np.array(parts["quant_map"]))
        return LazyTensor(TensorInfo((rows, columns), nbytes, coded), partial(_four_bit, parts, raw, rows, coded))
    raise FormatError(
        f"{shown(name)} in {where} consists of {listed(sorted(kinds))}", "bitsandbytes writes no such one"
    )


def _check_int8(name: str, parts: dict[str, Array], where: str) -> None:
    codes, scale, layout = parts[""], parts["SCB"], parts.get("weight_format", np.uint8(0))
    if codes.dtype != np.int8 or codes.ndim != 2 or scale.dtype != np.float32 or scale.shape != codes.shape[:1]:
        raise FormatError(f"{shown(name)} in {where} does not fit its SCB", "it is not an LLM.int8() weight")
    if np.any(layout != 0):
        raise FormatError(f"{shown(name)} in {where} is in a GPU's tile order", "only row order is read")


def _int8(parts: dict[str, Array], part: Part) -> Tensor:
    codes, scale = (taken(parts[""], Part(part.rows)), _int8_scale(parts, part))
    return cut(QuantTensor(codes, scale, group=codes.shape[1], bits=8), Part(columns=part.columns))


def _int8_floats(parts: dict[str, Array], part: Part) -> FloatTensor:
    return FloatTensor(taken(parts[""], part).astype(np.float32) * _int8_scale(parts, part))


def _int8_scale(parts: dict[str, Array], part: Part) -> Array:
    return (taken(parts["SCB"], Part(part.rows)) * np.float32(1 / 127))[:, None]


def _check_four_bit(name: str, parts: dict[str, Array], state: dict[str, Any], where: str) -> tuple[int, int]:
    """The matrix's shape, once everything fits it."""
    match state:
        case {"shape": [int(rows), int(columns)], "blocksize": int(size)} if size in BLOCK_SIZES and rows > 0 < columns:
            blocks = -(-rows * columns // size)
        case _:
            raise FormatError(f"the quantization state of {shown(name)} in {where} gives no usable shape or block size")
    nested = "nested_absmax" in parts
    expected = {"absmax": (np.uint8 if nested else np.float32, blocks), "quant_map": (np.float32, 16)}
    if nested:
        match state:
            case {"nested_blocksize": int(outer), "nested_offset": float()} if outer in BLOCK_SIZES:
                expected |= {"nested_absmax": (np.float32, -(-blocks // outer)), "nested_quant_map": (np.float32, 256)}
            case _:
                raise FormatError(f"the quantization state of {shown(name)} in {where} gives no usable nested scales")
    fits = all(parts[part].dtype == dtype and parts[part].shape == (n,) for part, (dtype, n) in expected.items())
    if not fits or parts[""].nbytes != -(-rows * columns // 2) or not np.all(np.isfinite(parts["quant_map"])):
        raise FormatError(f"{shown(name)} in {where} has not the parts of a {rows} x {columns} matrix", "it is damaged")
    return rows, columns


def _four_bit(parts: dict[str, Array], state: dict[str, Any], rows: int, coded: QuantTensor, part: Part) -> Tensor:
    """A part in whole groups is read."""
    columns, group = coded.shape[1], coded.group
    outer, rest = in_blocks(part, columns, group)
    pairs = taken(_pairs(parts).reshape(rows, columns // group, group // 2), outer)
    codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(len(pairs), -1)
    first = np.array(picked(rows, outer.rows))[:, None] * (columns // group)
    groups = first + np.array(picked(columns // group, outer.columns))
    scale = _absmax(parts, state, groups * group // state["blocksize"])
    return cut(replace(coded, codes=pack_nibbles(codes), scale=scale), rest)


def _four_bit_floats(parts: dict[str, Array], state: dict[str, Any], shape: tuple[int, int], part: Part) -> FloatTensor:
    """Whole rows are read, as they begin anywhere within a block."""
    columns, size = shape[1], state["blocksize"]
    rows = picked(shape[0], part.rows)
    start, stop = rows.start * columns, (rows[-1] + 1) * columns
    pairs = _pairs(parts)[start // 2 : -(-stop // 2)]
    codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(-1)[start % 2 :][: stop - start]
    blocks = np.arange(start // size, -(-stop // size))
    scale = np.repeat(_absmax(parts, state, blocks), size)[start % size :][: stop - start]
    values = (parts["quant_map"][codes] * scale).reshape(-1, columns)
    return FloatTensor(taken(values[:: rows.step], Part(columns=part.columns)))


def _pairs(parts: dict[str, Array]) -> Array:
    """The flattened matrix, two codes a byte."""
    return np.ascontiguousarray(parts[""]).reshape(-1).view(np.uint8)


def _absmax(parts: dict[str, Array], state: dict[str, Any], blocks: Array) -> Array:
    """The scales of these blocks."""
    if "nested_absmax" not in parts:
        return parts["absmax"][blocks]
    outer = parts["nested_absmax"][blocks // state["nested_blocksize"]]
    scales: Array = parts["nested_quant_map"][parts["absmax"][blocks]] * outer + np.float32(state["nested_offset"])
    return scales
