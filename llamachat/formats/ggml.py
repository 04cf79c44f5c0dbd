"""ggml's block types (the ggml project, ggml-common.h) unpacked to QuantTensor without re-quantizing, bit for bit."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO, FileIO
from mmap import mmap
from pathlib import Path

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import Array, QuantTensor, TensorInfo
from llamachat.errors import FormatError
from llamachat.system.mapped import let_go

SLAB = 1 << 18  # bytes unpacked at a time, so that temporaries stay in the processor's cache
Pieces = tuple[Array, ...]  # of n blocks: codes [n, ...], scale [n, groups], and perhaps a minimum like scale


@dataclass(frozen=True, eq=False)  # one object a type
class GGMLType:
    """A way to store rows of numbers: blocks of `columns` values, each block `layout` wide."""

    name: str
    columns: int
    layout: np.dtype[np.void]
    split: Callable[[Array], Pieces] | None = None  # None: plain floats, used as they lie
    table: Array | None = None  # float32 [16]: what a 4-bit code stands for

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Stored bytes of a tensor whose last axis is a whole number of blocks."""
        return math.prod(shape) // self.columns * self.layout.itemsize  # of Python's integers: it cannot overflow


@dataclass(frozen=True)
class Blocks:
    """A matrix of a type that has blocks, as it lies in a file: rows of whole blocks, for who reads these itself."""

    kind: GGMLType
    stored: tuple[int, int]  # rows and columns that lie there
    path: Path
    name: str
    data: mmap
    offset: int
    order: Array | None = None  # the stored row that each row is

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.stored
        return rows if self.order is None else len(self.order), columns

    @property
    def nbytes(self) -> int:
        return self.kind.nbytes(self.stored)

    def where(self) -> str:
        return f"tensor {shown(self.name)} of {self.path}"

    def bytes(self) -> Array:
        """All that is stored, from the map."""
        return np.frombuffer(self.data, np.uint8, self.nbytes, self.offset)

    def let_go(self) -> None:
        """See mapped.let_go; of what is stored."""
        let_go(self.data, self.offset, self.nbytes)


@dataclass(frozen=True)
class BlockInfo(TensorInfo):
    """Of a tensor whose blocks can be had as they are."""

    blocks: Blocks | None = None


@cache
def packing(kind: GGMLType, columns: int) -> QuantTensor | None:
    """TensorInfo's packing of a matrix: that of a row of zeros."""
    if kind.split is None:
        return None
    return read_blocks(BytesIO(bytes(kind.nbytes((1, columns)))), kind, 1, columns, "zeros").rows(slice(0))


def read_blocks(file: FileIO | BytesIO, kind: GGMLType, rows: int, columns: int, where: str) -> QuantTensor:
    """Unpack a matrix from where `file` stands. Raises FormatError when it ends early or a scale is not finite."""
    return unpack(_slabs(file, kind, rows * columns // kind.columns, where), kind, rows, columns, where)


def _slabs(file: FileIO | BytesIO, kind: GGMLType, blocks: int, where: str) -> Iterator[Array]:
    buffer = np.empty(max(1, min(blocks, SLAB // kind.layout.itemsize)), kind.layout)
    for start in range(0, blocks, len(buffer)):
        slab = buffer[: blocks - start]
        if file.readinto(slab.view(np.uint8).data) != slab.nbytes:
            raise FormatError(f"the file ends within {where}", "it was cut off", "download it again")
        yield slab


def unpack(slabs: Iterable[Array], kind: GGMLType, rows: int, columns: int, where: str) -> QuantTensor:
    """A matrix whose blocks come some at a time. Raises FormatError when a scale is not finite."""
    whole: Pieces = ()
    done = 0
    for slab in slabs:
        pieces, blocks = _split_finite(kind, slab, where), rows * columns // kind.columns
        whole = whole or tuple(np.empty((blocks, *piece.shape[1:]), piece.dtype) for piece in pieces)
        for target, piece in zip(whole, pieces, strict=True):
            target[done : done + len(slab)] = piece
        done += len(slab)
    return _tensor(kind, rows, whole)


def _split_finite(kind: GGMLType, slab: Array, where: str) -> Pieces:
    assert kind.split is not None
    with np.errstate(all="ignore"):
        pieces = kind.split(slab)
    if not all(np.isfinite(piece).all() for piece in pieces[1:]):
        raise not_finite(where)
    return pieces


def not_finite(where: str) -> FormatError:
    """What such a scale is refused with."""
    return FormatError(f"a scale in {where} is infinite or not a number", "the file is damaged", "download it again")


def _tensor(kind: GGMLType, rows: int, whole: Pieces) -> QuantTensor:
    codes, scale, *rest = whole
    group = kind.columns // scale.shape[1]
    minimum = rest[0].reshape(rows, -1) if rest else None
    if kind.table is None:
        return QuantTensor(codes.view(np.int8).reshape(rows, -1), scale.reshape(rows, -1), group, 8, None, minimum)
    return QuantTensor(codes.view(np.uint8).reshape(rows, -1), scale.reshape(rows, -1), group, 4, kind.table, minimum)


def _plain(blocks: Array) -> Pieces:
    """Q4_0, IQ4_NL, Q8_0: codes that are ours already."""
    return blocks["qs"][:, None], blocks["d"][:, None]


def _plain_affine(blocks: Array) -> Pieces:
    """Q4_1."""
    return blocks["qs"][:, None], blocks["d"][:, None], blocks["m"][:, None]


def _nibbles(packed: Array) -> Array:
    """Bytes [..., n] -> codes [..., 2, n]: the low nibbles, then the high ones."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def _crumbs(packed: Array) -> Array:
    """Bytes [..., n] -> 2-bit codes [..., 4, n], lowest bits first."""
    codes: Array = packed[..., None, :] >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    return codes


def _bits(packed: Array) -> Array:
    """Bytes [..., n] -> bits [..., 8, n], lowest first."""
    bits: Array = packed[..., None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return bits


def _five_bits(blocks: Array) -> Array:
    """Q5_0 and Q5_1: a fifth bit for each column in one 32-bit word."""
    high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
    codes: Array = _nibbles(blocks["qs"]).reshape(-1, 32) | high << 4
    return codes


def _q5_0(blocks: Array) -> Pieces:
    return _five_bits(blocks) - np.uint8(16), blocks["d"][:, None]


def _q5_1(blocks: Array) -> Pieces:
    return _five_bits(blocks), blocks["d"][:, None], blocks["m"][:, None]


def _scaled(blocks: Array, field: str, factors: Array) -> Array:
    """A K type's float32 scales: the block's half-precision scale times an integer for each group."""
    scales: Array = np.multiply(blocks[field][:, None], factors, dtype=np.float32)
    return scales


def _q2_k(blocks: Array) -> Pieces:
    codes = _crumbs(blocks["qs"].reshape(-1, 2, 32)).reshape(-1, 256)
    scale, minimum = _nibbles(blocks["scales"]).swapaxes(0, 1)
    return codes, _scaled(blocks, "d", scale), -_scaled(blocks, "dmin", minimum)


def _q3_k(blocks: Array) -> Pieces:
    low = _crumbs(blocks["qs"].reshape(-1, 2, 32)).reshape(-1, 256)
    codes = (low | _bits(blocks["hmask"]).reshape(-1, 256) << 2) - np.uint8(4)
    packed = blocks["scales"]  # 16 scales of 6 bits: nibbles in 8 bytes, the upper two bits in 4
    six = _nibbles(packed[:, :8]).reshape(-1, 16) | _crumbs(packed[:, 8:]).reshape(-1, 16) << 4
    return codes, _scaled(blocks, "d", six.view(np.int8) - np.int8(32))


def _six_bit_pairs(packed: Array) -> tuple[Array, Array]:
    """Q4_K, Q5_K: 12 bytes -> 8 scales and 8 minimums of 6 bits; the last four of each lie in two pieces."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, last & 15 | first >> 2 & 48], axis=-1)
    minimum = np.concatenate([second & 63, last >> 4 | second >> 2 & 48], axis=-1)
    return scale, minimum


def _pair_scales(blocks: Array) -> Pieces:
    scale, minimum = _six_bit_pairs(blocks["scales"])
    return _scaled(blocks, "d", scale), -_scaled(blocks, "dmin", minimum)


def _q4_k(blocks: Array) -> Pieces:
    """32 bytes hold two groups, one in each nibble; ours keeps a group's halves in the nibbles of its own 16 bytes."""
    packed = blocks["qs"].reshape(-1, 4, 2, 16)
    left, right = packed[:, :, 0], packed[:, :, 1]
    codes = np.stack([left & 15 | right << 4, left >> 4 | right & 240], axis=-2)
    return codes.reshape(-1, 128), *_pair_scales(blocks)


def _q5_k(blocks: Array) -> Pieces:
    low, high = _nibbles(blocks["qs"].reshape(-1, 4, 32)), _bits(blocks["qh"])
    return low.reshape(-1, 256) | high.reshape(-1, 256) << 4, *_pair_scales(blocks)


def _q6_k(blocks: Array) -> Pieces:
    low = _nibbles(blocks["ql"].reshape(-1, 2, 64)).reshape(-1, 256)
    high = _crumbs(blocks["qh"].reshape(-1, 2, 32)).reshape(-1, 256)
    return (low | high << 4) - np.uint8(32), _scaled(blocks, "d", blocks["scales"])


def half_powers(exponents: Array) -> Array:
    """E8M0: a byte e is 2^(e - 127); as float32, and halved as MXFP4's values are doubled here."""
    powers: Array = np.ldexp(np.float32(0.5), exponents.astype(np.int32) - 127)
    return powers


def _mxfp4(blocks: Array) -> Pieces:
    return blocks["qs"][:, None], half_powers(blocks["e"])[:, None]


def _iq4_xs(blocks: Array) -> Pieces:
    low = np.stack([blocks["scales_l"] & 15, blocks["scales_l"] >> 4], axis=-1).reshape(-1, 8)
    high = (blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    return blocks["qs"], _scaled(blocks, "d", (low | high << 4).view(np.int8) - np.int8(32))


_SYMMETRIC = np.arange(-8, 8, dtype=np.float32)
_AFFINE = np.arange(16, dtype=np.float32)
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

# E2M1, doubled, so that all are whole: as ggml's
MXFP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _layout(fields: str) -> np.dtype[np.void]:
    """E.g. "d:<f2 qs:V16" -> a packed structured type; void fields are copied whole, twice as fast as rows of bytes."""
    return np.dtype([(name, kind) for name, kind in (field.split(":") for field in fields.split())])


TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, _layout("values:<f4")),
    1: GGMLType("F16", 1, _layout("values:<f2")),
    2: GGMLType("Q4_0", 32, _layout("d:<f2 qs:V16"), _plain, _SYMMETRIC),
    3: GGMLType("Q4_1", 32, _layout("d:<f2 m:<f2 qs:V16"), _plain_affine, _AFFINE),
    6: GGMLType("Q5_0", 32, _layout("d:<f2 qh:4u1 qs:16u1"), _q5_0),
    7: GGMLType("Q5_1", 32, _layout("d:<f2 m:<f2 qh:4u1 qs:16u1"), _q5_1),
    8: GGMLType("Q8_0", 32, _layout("d:<f2 qs:V32"), _plain),
    10: GGMLType("Q2_K", 256, _layout("scales:16u1 qs:64u1 d:<f2 dmin:<f2"), _q2_k),
    11: GGMLType("Q3_K", 256, _layout("hmask:32u1 qs:64u1 scales:12u1 d:<f2"), _q3_k),
    12: GGMLType("Q4_K", 256, _layout("d:<f2 dmin:<f2 scales:12u1 qs:128u1"), _q4_k, _AFFINE),
    13: GGMLType("Q5_K", 256, _layout("d:<f2 dmin:<f2 scales:12u1 qh:32u1 qs:128u1"), _q5_k),
    14: GGMLType("Q6_K", 256, _layout("ql:128u1 qh:64u1 scales:16i1 d:<f2"), _q6_k),
    20: GGMLType("IQ4_NL", 32, _layout("d:<f2 qs:V16"), _plain, IQ4),
    23: GGMLType("IQ4_XS", 256, _layout("d:<f2 scales_h:<u2 scales_l:4u1 qs:128u1"), _iq4_xs, IQ4),
    39: GGMLType("MXFP4", 32, _layout("e:u1 qs:V16"), _mxfp4, MXFP4),
    30: GGMLType("BF16", 1, _layout("values:<u2")),
}

# The other types that GGUF files are found with, so that an error can name them.
UNSUPPORTED: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip
