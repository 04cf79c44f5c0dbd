"""Weights as they lie in memory before an engine takes them: float, or integer codes with scales. numpy only.

Every quantized format llamachat reads is one formula, `w[r, c] = table[code[r, c]] * scale[r, c // group] + minimum[...]`,
so there is one packed type, one bit layout and one exact definition of its value (`dequantize`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
GROUP = 32  # nibbles are laid out in groups of this many columns
CODEBOOKS = {  # bitsandbytes' (QLoRA, arXiv 2305.14314)
    "nf4": (-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105004, 0,
            0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1),
    "fp4": (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4, 0, -1 / 192, -2 / 3, -1, -1 / 3, -1 / 2, -1 / 6, -1 / 4),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor, before its bytes are touched."""

    shape: tuple[int, ...]
    nbytes: int  # as stored
    packing: "QuantTensor | None" = None  # one of no rows, coded as this tensor is; None: float


@dataclass(frozen=True)
class FloatTensor:
    """A float tensor; bfloat16, which numpy lacks, is held as its 16 bits in uint16."""

    data: Array  # float32, float16, or uint16 when bfloat16

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def rows(self, which: "Rows") -> "FloatTensor":
        """Only these rows, in this order."""
        return FloatTensor(self.data[which])


@dataclass(frozen=True)
class QuantTensor:
    """A matrix [rows, columns] of 4- or 8-bit codes, columns in groups that share a scale and perhaps a minimum.

    4 bits: `codes` is uint8 [rows, columns / 2]; in each group of 32 columns byte j holds column j in its low and column
    j + 16 in its high nibble (ggml's Q4_0 order), and `table` has the 16 values a code stands for.
    8 bits: `codes` is int8 [rows, columns], and a code stands for itself (`table` is None).
    """

    codes: Array
    scale: Array  # float32 or float16 [rows, columns / group]
    group: int
    bits: Literal[4, 8]
    table: Array | None = None  # float32 [16]
    minimum: Array | None = None  # like scale

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + (self.minimum.nbytes if self.minimum is not None else 0)

    @cached_property
    def affine(self) -> tuple[float, float] | None:
        """(step, offset) when the table is evenly spaced, so that table[i] = step * i + offset; else None."""
        if self.table is None:
            return 1.0, 0.0
        steps = np.diff(self.table)
        return (float(steps[0]), float(self.table[0])) if np.all(steps == steps[0]) else None

    def rows(self, which: "Rows") -> "QuantTensor":
        """Only these rows, in this order."""
        minimum = self.minimum if self.minimum is None else self.minimum[which]
        return replace(self, codes=self.codes[which], scale=self.scale[which], minimum=minimum)


Tensor = FloatTensor | QuantTensor
Rows = Sequence[int] | slice | Array


def to_float32(data: Array) -> Array:
    """float32 values of a FloatTensor's array (uint16 is bfloat16)."""
    if data.dtype == np.uint16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32, copy=False)


def unpack_nibbles(codes: Array) -> Array:
    """uint8 [rows, columns / 2] in the layout of QuantTensor -> one code a byte, [rows, columns]."""
    rows, width = codes.shape
    packed = codes.reshape(rows, width * 2 // GROUP, GROUP // 2)
    return np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(rows, width * 2)


def pack_nibbles(codes: Array) -> Array:
    """The inverse of unpack_nibbles; the number of columns must be a multiple of 32."""
    rows, columns = codes.shape
    halves = codes.astype(np.uint8, copy=False).reshape(rows, columns // GROUP, 2, GROUP // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, columns // 2)


def dequantize(tensor: Tensor) -> Array:
    """The exact float32 values of a tensor: the definition that every faster path is tested against."""
    if isinstance(tensor, FloatTensor):
        return to_float32(tensor.data)
    values = tensor.codes.astype(np.float32) if tensor.table is None else tensor.table[unpack_nibbles(tensor.codes)]
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // tensor.group, tensor.group) * tensor.scale.astype(np.float32)[..., None]
    if tensor.minimum is not None:
        grouped += tensor.minimum.astype(np.float32)[..., None]
    return grouped.reshape(rows, columns)


def half_split_rows(heads: int, head_dim: int, rotary_dim: int | None = None) -> Array:
    """Row order that turns interleaved RoPE pairs (2i, 2i + 1) of a query or key matrix into half-split pairs (i, i + d/2).

    Only the first `rotary_dim` rows of each head move. Meta, lit-llama and several of GGUF's architectures store
    interleaved pairs; canonical here is Hugging Face's half-split.
    """
    dim = rotary_dim or head_dim
    order = np.append(np.arange(dim).reshape(dim // 2, 2).T, np.arange(dim, head_dim))
    return (np.arange(heads)[:, None] * head_dim + order).reshape(-1)
