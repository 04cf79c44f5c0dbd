"""Weights in the layout of the native kernels (native/engine.h). numpy only."""

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from llamachat.engine.build import library
from llamachat.tensors import Array, FloatTensor, QuantTensor, Tensor, TensorInfo, to_float32

F32, F16, BF16, Q8, Q4 = range(5)
LANES, TILE, PAGE = 16, 64, 4096


class Matrix(ctypes.Structure):
    """engine.h's Matrix."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("subs", ctypes.c_int32),
        ("minimum", ctypes.c_int32),
        ("unit", ctypes.c_float),
        ("table", ctypes.c_uint8 * 16),
    ]


class Source(ctypes.Structure):
    """pack.c's Source."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("group", ctypes.c_int32),
        ("half", ctypes.c_int32),
        ("factor", ctypes.c_float),
        ("offset", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Head:
    """What is needed to read a packed tensor besides its bytes; a vector is float32, zero up to a multiple of 64."""

    rows: int  # 0: a vector
    columns: int
    kind: int = F32
    subs: int = 2  # scales per 64 columns of a row
    minimum: bool = False
    unit: float = 1.0
    table: tuple[int, ...] = ()

    def matrix(self, data: Array | None = None, bias: Array | None = None) -> Matrix:
        """For the C side; the arrays must outlive it."""
        return Matrix(
            None if data is None else data.ctypes.data,
            None if bias is None else bias.ctypes.data,
            self.rows,
            self.columns,
            self.kind,
            self.subs,
            self.minimum,
            self.unit,
            (ctypes.c_uint8 * 16)(*self.table),
        )


@cache
def native_library() -> ctypes.CDLL:
    """The compiled kernels. Raises build.BuildError where they cannot be had."""
    lib = ctypes.CDLL(str(library()))
    lib.packed_bytes.restype = ctypes.c_size_t
    return lib


def bytes_of(head: Head) -> int:
    if head.rows == 0:
        return -(-head.columns // TILE) * TILE * 4
    return int(native_library().packed_bytes(ctypes.byref(head.matrix())))


def packed_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor once packed, from its header; floats are taken as stored."""
    if len(info.shape) == 1:
        return bytes_of(Head(0, info.shape[0]))
    rows, columns = info.shape
    if info.packing is None:
        return bytes_of(Head(rows, columns, F32 if info.nbytes == 4 * rows * columns else F16))
    return bytes_of(replace(_plan(info.packing)[0], rows=rows))


def pack(tensor: Tensor) -> tuple[Head, Array]:
    """A tensor in the kernels' layout. Codes are taken as they are; see `_codes` for tables that are not integers."""
    if len(tensor.shape) == 1:
        assert isinstance(tensor, FloatTensor)
        out = aligned(bytes_of(head := Head(0, tensor.shape[0])))
        out.view(np.float32)[: tensor.shape[0]] = to_float32(tensor.data)
        return head, out
    head, source, kept = _plan(tensor)
    out = aligned(bytes_of(head))
    native_library().pack_matrix(ctypes.byref(head.matrix()), ctypes.byref(source), ctypes.c_void_p(out.ctypes.data))
    del kept
    return head, out


def aligned(nbytes: int) -> Array:
    raw = np.zeros(nbytes + TILE, np.uint8)
    start = -raw.ctypes.data % TILE
    return raw[start : start + nbytes]


def _plan(tensor: Tensor) -> tuple[Head, Source, list[Array]]:
    """How to pack a matrix; the arrays are what `Source` points to."""
    rows, columns = tensor.shape
    if isinstance(tensor, FloatTensor):
        data = np.ascontiguousarray(tensor.data)
        kind = {"float32": F32, "float16": F16, "uint16": BF16}[data.dtype.name]
        return Head(rows, columns, kind), Source(data.ctypes.data, None, None, columns, 0, 1.0, 0.0), [data]
    assert tensor.group % 16 == 0 or tensor.group >= columns, f"groups of {tensor.group} columns"
    table, factor, offset = _codes(tensor)
    kept = [np.ascontiguousarray(part) for part in (tensor.codes, tensor.scale, tensor.minimum) if part is not None]
    half = kept[1].dtype == np.float16
    minimum = tensor.minimum is not None or offset != 0.0
    unit = 1.0 if half and factor == 1.0 and offset == 0.0 else _unit(tensor, factor, offset)
    group = columns if tensor.group >= columns else tensor.group
    subs = 2 if group % 32 == 0 or group == columns else 4
    head = Head(rows, columns, Q4 if tensor.bits == 4 else Q8, subs, minimum, unit, table)
    pointers = [part.ctypes.data for part in kept]
    source = Source(pointers[0], pointers[1], pointers[2] if len(pointers) > 2 else None, group, half, factor, offset)
    return head, source, kept


def _codes(tensor: QuantTensor) -> tuple[tuple[int, ...], float, float]:
    """The table as int8 (plus 128), with factor and offset so that value = scale * (factor * int8 + offset) + minimum.

    Evenly spaced tables and those of integers are exact. Others (NF4) are rounded to multiples of the factor that fits
    best, about 1/200 of the largest entry: an eighth of the step between the entries themselves or less.
    """
    if tensor.table is None:
        return (), 1.0, 0.0
    table = tensor.table.astype(np.float64)
    if tensor.affine is not None and tensor.affine[0] != 0.0:
        step, offset = tensor.affine
        whole = offset / step
        if whole == round(whole) and -128 <= whole <= 112:
            return tuple(int(code + whole) + 128 for code in range(16)), step, 0.0
        return tuple(code + 128 for code in range(16)), step, offset
    most = float(np.abs(table).max()) or 1.0
    factors = np.concatenate([[1.0] if most <= 127 else [], most / np.linspace(127.0, 64.0, 2048)])
    errors = [float(np.square(np.round(table / factor) * factor - table).sum()) for factor in factors]
    factor = float(factors[int(np.argmin(errors))])
    return tuple(int(code) + 128 for code in np.clip(np.round(table / factor), -128, 127)), factor, 0.0


def _unit(tensor: QuantTensor, factor: float, offset: float) -> float:
    """A power of two that brings the largest scale or minimum to 2^14..2^15, so that fp16 rounds them by 2^-11."""
    scale = tensor.scale.astype(np.float32)
    largest = float(np.abs(scale).max(initial=0.0)) * abs(factor)
    if tensor.minimum is not None or offset != 0.0:
        low = scale * offset if tensor.minimum is None else tensor.minimum.astype(np.float32) + scale * offset
        largest = max(largest, float(np.abs(low).max(initial=0.0)))
    return math.ldexp(1.0, math.frexp(largest)[1] - 15) if largest > 0.0 else 1.0
