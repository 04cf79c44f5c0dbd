"""Weights in the layout of the native kernels (native/c/packed.h). numpy only."""

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from llamachat.core.tensors import Array, FloatTensor, QuantTensor, Tensor, TensorInfo, to_float32
from llamachat.engines.native.abi import Blocks as NativeBlocks
from llamachat.engines.native.abi import Matrix, Source, address, native_library
from llamachat.errors import FormatError
from llamachat.formats.ggml import IQ4, MXFP4, TYPES, BlockInfo, Blocks, not_finite
from llamachat.formats.parts import Part, Parts

F32, F16, BF16, Q8, Q4, Q2, Q3, Q5, Q6 = range(9)  # kinds, as in packed.h, and scalings
HALVES, EXPONENTS, BYTES, NIBBLES, SIXES = range(5)
LANES, TILE, SUPER, PAGE = 16, 64, 256, 4096
NUMBERS = {kind: number for number, kind in TYPES.items()}
Packable = Tensor | Blocks
Reader = Callable[[Parts], Iterator[tuple[str, Tensor]]]
Room = Callable[[int], Array]  # gives so many zero bytes, 64-byte aligned
Packed = tuple["Header", Array]


@dataclass(frozen=True)
class Header:
    """What is needed to read a packed tensor besides its bytes; a vector is float32, zero up to a multiple of 64."""

    rows: int  # 0: a vector
    columns: int
    kind: int = F32
    scaling: int = HALVES
    subs: int = 2  # scales per 64 columns of a row
    minimum: bool = False
    first: int = 0  # what code 0, or an entry 0 of the table, stands for
    unit: float = 1.0
    table: tuple[int, ...] = ()
    low: tuple[int, ...] = ()  # 256ths beside the table, where 8 bits are too coarse

    def matrix(self, data: Array | None = None, bias: Array | None = None) -> Matrix:
        """For the C side; the arrays must outlive it."""
        return Matrix(
            None if data is None else data.ctypes.data,
            0 if data is None else data.nbytes,
            None if bias is None else bias.ctypes.data,
            self.rows,
            self.columns,
            self.kind,
            self.scaling,
            self.subs,
            self.minimum,
            self.first,
            self.unit,
            (ctypes.c_uint8 * 16)(*self.table),
            (ctypes.c_uint8 * 16)(*self.low),
            bool(self.table),
            bool(self.low),
        )


@cache  # a model has hundreds of tensors, and few kinds of them
def bytes_of(header: Header) -> int:
    if header.rows == 0:
        return -(-header.columns // TILE) * TILE * 4
    return int(native_library().packed_bytes(header.matrix()))


def packed_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor once packed, from its header; floats are taken as stored."""
    if len(info.shape) == 1:
        return bytes_of(Header(0, info.shape[0]))
    rows, columns = info.shape
    if isinstance(info, BlockInfo) and info.blocks is not None:
        return bytes_of(_of_blocks(info.blocks))
    if info.packing is None:
        return bytes_of(Header(rows, columns, F32 if info.nbytes == 4 * rows * columns else F16))
    return bytes_of(replace(_plan(info.packing)[0], rows=rows))


def as_stored(index: Mapping[str, TensorInfo], tensors: Reader) -> Iterator[tuple[str, Packable]]:
    """A checkpoint's tensors for `pack`: blocks as they lie in its files, the others read."""
    blocks = {
        name: info.blocks for name, info in index.items() if isinstance(info, BlockInfo) and info.blocks is not None
    }
    for name, tensor in tensors(dict.fromkeys(blocks, Part(zero=True))):
        yield name, blocks.get(name, tensor)


def aligned(nbytes: int) -> Array:
    """See Room."""
    raw = np.zeros(nbytes + TILE, np.uint8)
    start = -raw.ctypes.data % TILE
    return raw[start : start + nbytes]


def pack(tensor: Packable, room: Room = aligned) -> Packed:
    """A tensor in the kernels' layout. Codes are taken as they are; see `_codes` for tables that are not integers."""
    if isinstance(tensor, Blocks):
        return _pack_blocks(tensor, room)
    if len(tensor.shape) == 1:
        assert isinstance(tensor, FloatTensor)
        out = room(bytes_of(header := Header(0, tensor.shape[0])))
        out.view(np.float32)[: tensor.shape[0]] = to_float32(tensor.data)
        return header, out
    header, source, kept = _plan(tensor)
    out = room(bytes_of(header))
    fault = native_library().pack_matrix(header.matrix(out), source, address(out))
    del kept
    if fault:
        raise FormatError(
            f"a matrix of {tensor.shape[0]} x {tensor.shape[1]} has {fault.decode()}", "it cannot be used"
        )
    return header, out


def _pack_blocks(tensor: Blocks, room: Room) -> Packed:
    header, stored = _of_blocks(tensor), tensor.bytes()
    order = None if tensor.order is None else np.ascontiguousarray(tensor.order, np.int32)
    places = address(stored), None if order is None else address(order)
    source = NativeBlocks(*places, stored.nbytes, tensor.stored[0], NUMBERS[tensor.kind])
    out = room(bytes_of(header))
    fault = native_library().pack_blocks(header.matrix(out), source, address(out))
    del stored
    tensor.let_go()
    if fault == b"values that are not finite":
        raise not_finite(tensor.where())
    if fault:
        raise FormatError(f"{tensor.where()} has {fault.decode()}", "it cannot be used")
    return header, out


def _of_blocks(tensor: Blocks) -> Header:
    rows, columns = tensor.shape
    return replace(BLOCKS[NUMBERS[tensor.kind]], rows=rows, columns=columns)


def _plan(tensor: Tensor) -> tuple[Header, Source, list[Array]]:
    """How to pack a matrix; the arrays are what `Source` points to."""
    rows, columns = tensor.shape
    if isinstance(tensor, FloatTensor):
        data = np.ascontiguousarray(tensor.data)
        kind = {"float32": F32, "float16": F16, "uint16": BF16}[data.dtype.name]
        source = Source(data.ctypes.data, None, None, data.nbytes, 0, columns, 0, 1.0, 0.0)
        return Header(rows, columns, kind), source, [data]
    first, table, low, factor, offset = _codes(tensor)
    kept = [np.ascontiguousarray(part) for part in (tensor.codes, tensor.scale, tensor.minimum) if part is not None]
    half = kept[1].dtype == np.float16
    minimum = tensor.minimum is not None or offset != 0.0
    unit = 1.0 if half and factor == 1.0 and offset == 0.0 else _unit(tensor, factor, offset)
    group = columns if tensor.group >= columns else tensor.group
    subs = 2 if group % 32 == 0 or group == columns else 4
    kind = Q4 if tensor.bits == 4 else Q8
    header = Header(rows, columns, kind, HALVES, subs, minimum, first, unit, table, low)
    pointers = [part.ctypes.data for part in kept]
    lowest = pointers[2] if len(pointers) > 2 else None
    source = Source(pointers[0], pointers[1], lowest, kept[0].nbytes, kept[1].size, group, half, factor, offset)
    return header, source, kept


def unpackable(tensor: QuantTensor, columns: int) -> str | None:
    """Why a matrix coded like this one cannot be packed, or None. The C side checks it again."""
    if tensor.group >= columns or tensor.group % 32 == 0:
        return None
    if tensor.group % 16:
        return f"groups of {tensor.group} columns"
    return "a table of its own for groups of 16 columns" if _codes(tensor)[2] else None


def _codes(tensor: QuantTensor) -> tuple[int, tuple[int, ...], tuple[int, ...], float, float]:
    """What code 0 stands for; or a table of numbers (minus what its entry 0 stands for) and, where 8 bits are too coarse, 256ths
    of it (plus 128); with factor and offset so that value = scale * (factor * (number + low / 256) + offset) + minimum.

    Evenly spaced tables, those of integers and FP4's are exact; others (NF4) are rounded by 1/65,000 of the largest entry or
    less. With 8 bits alone (1/250) models whose channels differ much lose several times what int8 weights cost them.
    """
    if tensor.table is None:
        return -128, (), (), 1.0, 0.0
    table = tensor.table.astype(np.float64)
    if tensor.affine is not None and tensor.affine[0] != 0.0:
        step, offset = tensor.affine
        whole = offset / step
        if whole == round(whole) and -128 <= whole <= 112:
            return int(whole), (), (), step, 0.0
        return 0, (), (), step, offset
    most = float(np.abs(table).max()) or 1.0
    for parts in (1, 2):  # MXFP4 counts in halves
        if most * parts <= 127 and np.array_equal(table * parts, np.round(table * parts)):
            first, numbers = _numbers(table * parts)
            return first, numbers, (), 1.0 / parts, 0.0
    steps = np.arange(127 * 256, 126 * 256, -1)  # to the largest entry; 169 * 192 makes FP4 exact
    errors = [float(np.abs(np.round(table / most * n) / n - table / most).sum()) for n in steps]
    count = int(steps[int(np.argmin(errors))])
    codes = np.round(table / most * count).astype(np.int64)
    high = (codes + 128) >> 8
    low = codes - 256 * high + 128
    return -128, tuple((high + 128).tolist()), tuple(low.tolist()), most / count * 256, 0.0


def _numbers(table: Array) -> tuple[int, tuple[int, ...]]:
    """Whole numbers as the least one and what they are above it, if that is little; else as bytes above -128."""
    least = int(table.min())
    first = least if table.max() - least <= 31 else -128
    return first, tuple(int(number) - first for number in table)


def _unit(tensor: QuantTensor, factor: float, offset: float) -> float:
    """A power of two that brings the largest scale or minimum to 2^14..2^15, so that fp16 rounds them by 2^-11."""
    scale = tensor.scale.astype(np.float32)
    largest = float(np.abs(scale).max(initial=0.0)) * abs(factor)
    if tensor.minimum is not None or offset != 0.0:
        low = scale * offset if tensor.minimum is None else tensor.minimum.astype(np.float32) + scale * offset
        largest = max(largest, float(np.abs(low).max(initial=0.0)))
    return math.ldexp(1.0, math.frexp(largest)[1] - 15) if largest > 0.0 else 1.0


BLOCKS = {  # ggml's number of a type -> how a matrix of it is packed from the blocks themselves, as in blocks.c
    2: Header(0, 0, Q4, first=-8),  # Q4_0
    3: Header(0, 0, Q4, minimum=True),  # Q4_1
    6: Header(0, 0, Q5, first=-16),  # Q5_0
    7: Header(0, 0, Q5, minimum=True),  # Q5_1
    8: Header(0, 0, Q8, first=-128),  # Q8_0
    10: Header(0, 0, Q2, NIBBLES, 4, minimum=True),  # Q2_K
    11: Header(0, 0, Q3, SIXES, 4, first=-4),  # Q3_K
    12: Header(0, 0, Q4, BYTES, minimum=True),  # Q4_K
    13: Header(0, 0, Q5, BYTES, minimum=True),  # Q5_K
    14: Header(0, 0, Q6, BYTES, 4, first=-32),  # Q6_K
    20: Header(0, 0, Q4, first=-128, table=_numbers(IQ4)[1]),  # IQ4_NL
    23: Header(0, 0, Q4, BYTES, first=-128, table=_numbers(IQ4)[1]),  # IQ4_XS
    39: Header(0, 0, Q4, EXPONENTS, first=-12, table=_numbers(MXFP4)[1]),  # MXFP4
}
