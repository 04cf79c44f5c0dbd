"""Weights in the layout of the native kernels (native/engine.h): packed once, kept in a file, mapped from then on.

An arena file is the packed tensors, each from a multiple of 4096 bytes on, then a JSON index of them, then the index's
length and a magic number. numpy only.
"""

import ctypes
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from llamachat.engine.build import library
from llamachat.errors import FormatError, reading
from llamachat.tensors import Array, FloatTensor, QuantTensor, Tensor, TensorInfo, to_float32

F32, F16, BF16, Q8, Q4 = range(5)
LANES, TILE, PAGE = 16, 64, 4096
MAGIC = b"llamachat arena1"
BUFFER = 1 << 27  # long writes: Linux then keeps the file in huge pages, which are read a quarter faster
_TRAILER = struct.Struct("<Q16s")


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


@dataclass(frozen=True)
class Arena:
    """All packed tensors of a model by canonical name; the bytes are 64-byte aligned."""

    tensors: Mapping[str, tuple[Head, Array]]

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for _, data in self.tensors.values())

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises FormatError unless these are the tensors, with these shapes."""
        held = {
            name: (head.rows, head.columns) if head.rows else (head.columns,)
            for name, (head, _) in self.tensors.items()
        }
        if held != shapes:
            wrong = sorted(name for name in held.keys() | shapes if held.get(name) != shapes.get(name))
            raise FormatError(
                f"the packed weights of {wrong[0]} are not those of this model", remedy="pack the model again"
            )

    @classmethod
    def build(cls, tensors: Iterable[tuple[str, Tensor]]) -> "Arena":
        """Packs into memory."""
        return cls({name: pack(tensor) for name, tensor in tensors})

    @staticmethod
    def write(tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
        """Packs into a file, one tensor at a time; the file appears under its name only when complete."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb", buffering=BUFFER) as file:
                index = {name: _append(file, *pack(tensor)) for name, tensor in tensors}
                text = json.dumps(index).encode()
                file.write(text + _TRAILER.pack(len(text), MAGIC))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> "Arena":
        """Maps a file that `write` made. Raises FormatError when it is not one, or damaged."""
        with reading(f"{path} is damaged", FormatError, "the packed weights cannot be used", "delete it", (OSError,)):
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with suppress(AttributeError, OSError):  # neither known nor allowed everywhere
                mapped.madvise(mmap.MADV_HUGEPAGE)  # for what is not in memory yet; see BUFFER
            data = np.frombuffer(mapped, np.uint8)
            length, magic = _TRAILER.unpack(data[-_TRAILER.size :].tobytes())
            end = len(data) - _TRAILER.size
            if magic != MAGIC or length > end:
                raise ValueError("not an arena")
            index = json.loads(data[end - length : end].tobytes())
            return cls({name: _entry(data[: end - length], **entry) for name, entry in index.items()})


def _append(file: IO[bytes], head: Head, data: Array) -> dict[str, Any]:
    file.write(bytes(-file.tell() % PAGE))
    start = file.tell()
    file.write(data.data)
    return {"start": start, **asdict(head)}


def _entry(data: Array, start: int, table: list[int], **fields: Any) -> tuple[Head, Array]:
    head = Head(**fields, table=tuple(table))
    end = start + bytes_of(head)
    if (
        start % TILE
        or not 0 <= start <= end <= len(data)
        or head.rows < 0
        or head.columns < 1
        or head.subs not in (2, 4)
    ):
        raise ValueError("a tensor lies outside the file")
    return head, data[start:end]


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
