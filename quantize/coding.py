"""One tensor -> what is stored of it, and a checkpoint's tensors layer by layer."""

import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from llamachat.core.tensors import Array, FloatTensor, QuantTensor, Tensor, dequantize, to_float32
from llamachat.formats import Checkpoint
from llamachat.formats.parts import Part
from llamachat.formats.prequantized import bnb
from llamachat.formats.prequantized.ours import packed_entries
from llamachat.formats.prequantized.schemes import BITSANDBYTES, OURS, Scheme, Storage
from quantize.bnb import bnb_entries
from quantize.recipe import Recipe
from quantize.schemes import not_finite, quantize_tensor

Coded = tuple[str, Tensor, dict[str, Array], Tensor | None]  # name, as it was, as it is stored, what that means
Written = tuple[dict[str, Array], Tensor]


def code(
    name: str, tensor: Tensor, recipe: Recipe, threads: int | None, activity: Array | None = None
) -> tuple[dict[str, Array], Tensor | None]:
    """A tensor as it is stored, and the matrix that this stands for if it was quantized. activity: see schemes.quantize."""
    scheme = recipe.scheme_for(name, tensor.shape)
    if scheme is None:
        values = FloatTensor(dequantize(tensor)) if isinstance(tensor, QuantTensor) else tensor
        _check(name, values.data)
        return {name: values.data}, None
    return WRITERS[scheme.storage](name, tensor, scheme, recipe, threads, activity)


def _ours(
    name: str, tensor: Tensor, scheme: Scheme, recipe: Recipe, threads: int | None, activity: Array | None
) -> Written:
    values = tensor if isinstance(tensor, FloatTensor) else FloatTensor(dequantize(tensor))
    coded = quantize_tensor(name, values, scheme, threads, activity)
    return packed_entries(name, coded), coded


def _bitsandbytes(
    name: str, tensor: Tensor, scheme: Scheme, recipe: Recipe, threads: int | None, activity: Array | None
) -> Written:
    data = dequantize(tensor)
    _check(name, data)
    arrays = bnb_entries(name, data, scheme, recipe.double_quant, threads)
    return arrays, bnb.entries(arrays, "the output")[name].read()


WRITERS: Mapping[Storage, Callable[[str, Tensor, Scheme, Recipe, int | None, Array | None], Written]] = {
    OURS: _ours,
    BITSANDBYTES: _bitsandbytes,
}


def _check(name: str, data: Array) -> None:
    if not np.isfinite(to_float32(data)).all():
        raise not_finite(name)


def by_layer(source: Checkpoint) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """("model.layers.3.", its tensors), and what belongs to no layer under ""."""
    for prefix, group in groupby(source.tensors(), lambda pair: _layer(pair[0])):
        yield prefix, dict(group)


def _layer(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:3]) + "." if parts[1] == "layers" else ""


def only(source: Checkpoint, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """These tensors, without reading any other; each is let go of when the next is asked for."""
    others = {name: Part(zero=True) for name in source.index().keys() - set(wanted)}
    for name, tensor in source.tensors(others):
        if name not in others:
            yield name, tensor
            release(tensor)


def release(tensor: Tensor) -> None:
    """Let the system take back the pages of a mapped tensor, which count as ours as long as they are mapped."""
    for array in (tensor.data,) if isinstance(tensor, FloatTensor) else (tensor.codes, tensor.scale):
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)
