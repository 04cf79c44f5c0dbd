"""Parts of tensors: what one of several processes has of a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from llamachat.core.tensors import GROUP, Array, FloatTensor, QuantTensor, Tensor, TensorInfo, dequantize

NARROWEST = 16  # columns of a group that is split: scales of smaller ones take as much memory as floats


@dataclass(frozen=True)
class Part:
    """Which rows (or elements of a vector) and which columns of a tensor; None: all. `zero`: not its values but zeros.

    Rows may be every nth; columns are a run.
    """

    rows: slice | None = None
    columns: slice | None = None
    zero: bool = False

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """That of the part of a tensor of this shape."""
        axes = (self.rows, self.columns, *[None] * len(whole))
        return tuple(len(picked(length, which)) for length, which in zip(whole, axes, strict=False))


WHOLE = Part()
Parts = Mapping[str, Part]  # by the names of tensors; of others the whole


def picked(length: int, which: slice | None) -> range:
    """The numbers, of so many, that a slice picks."""
    return range(length)[slice(None) if which is None else which]


def within(length: int, outer: slice, inner: slice | None) -> slice:
    """What `inner` picks of what `outer` picks of so many."""
    numbers = picked(length, outer)[slice(None) if inner is None else inner]
    return slice(numbers.start, numbers.stop, numbers.step)


def zeros(shape: tuple[int, ...]) -> FloatTensor:
    """One zero, repeated without memory."""
    return FloatTensor(np.broadcast_to(np.zeros((), np.float16), shape))


def cut(tensor: Tensor, part: Part) -> Tensor:
    """Exactly these of its values: dequantize(cut(t, p)) is dequantize(t)[p.rows, p.columns]. Floats are a view of them.

    A group of columns that is cut becomes smaller ones with the same scale. Columns that the layout of codes cannot begin or end
    with (of 4 bits they are multiples of 32) are given as floats, which take their memory.
    """
    if part.zero:
        return zeros(part.shape(tensor.shape))
    tensor = tensor if part.rows is None else tensor.rows(part.rows)
    return tensor if part.columns is None else _columns(tensor, picked(tensor.shape[1], part.columns))


def _columns(tensor: Tensor, columns: range) -> Tensor:
    which = slice(columns.start, columns.stop)
    if isinstance(tensor, FloatTensor):
        return FloatTensor(taken(tensor.data, Part(columns=which)))
    if len(columns) == tensor.shape[1]:
        return tensor
    group = _group(tensor, columns)
    if group is None:
        unit = GROUP if tensor.group % GROUP == 0 else math.lcm(tensor.group, GROUP)
        outer, rest = covering(Part(columns=which), tensor.shape[1], unit)
        return FloatTensor(dequantize(cut(tensor, outer))[:, rest.columns])
    codes = tensor.codes[:, columns.start * tensor.bits // 8 : columns.stop * tensor.bits // 8]
    scale, minimum = (
        each if each is None else _scales(each, tensor.group, group, columns) for each in (tensor.scale, tensor.minimum)
    )
    assert scale is not None
    return replace(tensor, codes=np.ascontiguousarray(codes), scale=scale, minimum=minimum, group=group)


def _group(tensor: QuantTensor, columns: range) -> int | None:
    """How many of these columns share a scale then; None: their codes cannot be cut there."""
    if tensor.bits == 4 and (columns.start % GROUP or columns.stop % GROUP):
        return None
    if tensor.bits == 8 and columns.start // tensor.group == (columns.stop - 1) // tensor.group:
        return len(columns)  # one scale a row, as kernels want it
    group = math.gcd(tensor.group, columns.start, columns.stop)
    return group if group >= min(tensor.group, NARROWEST) else None


def _scales(scale: Array, group: int, smaller: int, columns: range) -> Array:
    """[rows, columns of the whole / group] -> [rows, these columns / smaller]."""
    start = columns.start // group
    some = scale[:, start : -(-columns.stop // group)]
    if len(columns) != smaller or some.shape[1] != 1:
        first = (columns.start - start * group) // smaller
        some = np.repeat(some, group // smaller, axis=1)[:, first : first + len(columns) // smaller]
    return np.ascontiguousarray(some)


def covering(part: Part, columns: int, unit: int) -> tuple[Part, Part]:
    """A part in whole blocks of `unit` columns, and the part of that which is the wanted one."""
    if part.columns is None:
        return part, WHOLE
    wanted = picked(columns, part.columns)
    start, stop = wanted.start // unit * unit, min(columns, -(-wanted.stop // unit) * unit)
    return replace(part, columns=slice(start, stop)), Part(columns=slice(wanted.start - start, wanted.stop - start))


def in_blocks(part: Part, columns: int, unit: int) -> tuple[Part, Part]:
    """The same where an array has such blocks in place of columns: what of it, and the part of that."""
    outer, rest = covering(part, columns, unit)
    if outer.columns is not None:
        outer = replace(outer, columns=slice(outer.columns.start // unit, -(-outer.columns.stop // unit)))
    return outer, rest


def taken(array: Array, part: Part) -> Array:
    """A view of the part of an array of two axes or more, or of a vector."""
    rows = array if part.rows is None else array[part.rows]
    return rows if part.columns is None else rows[:, part.columns]


def cut_info(info: TensorInfo, part: Part) -> TensorInfo:
    """What a header would say of the part."""
    shape = part.shape(info.shape)
    like: Tensor | None = info.packing
    if info.packing is not None and part.columns is not None:
        like = cut(info.packing, Part(columns=part.columns))
    share = 0 if part.zero else math.prod(shape) / math.prod(info.shape)
    return TensorInfo(shape, round(info.nbytes * share), like if isinstance(like, QuantTensor) else None)
