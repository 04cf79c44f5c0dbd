"""Bytes of what a recipe makes of a model, told before it is made."""

from collections.abc import Mapping
from math import prod

import numpy as np

from llamachat.core.tensors import TensorInfo
from llamachat.formats.prequantized.ours import packed_entries
from quantize.recipe import Recipe
from quantize.schemes import Scheme, quantize
from quantize.writer import beginning


def header_room(index: Mapping[str, TensorInfo], recipe: Recipe) -> int:
    """What the header of the output may take."""
    return sum((6 if recipe.scheme_for(name, info.shape) else 1) * (128 + len(name)) for name, info in index.items())


def output_bytes(index: Mapping[str, TensorInfo], recipe: Recipe) -> int:
    """Of the file of weights that one of our own schemes writes."""
    parts = (stored_bytes(info, recipe.scheme_for(name, info.shape)) for name, info in index.items())
    return beginning(header_room(index, recipe)) + sum(parts)


def stored_bytes(info: TensorInfo, scheme: Scheme | None) -> int:
    """Of a tensor as it will be coded; of one that was and is to be float, as float32."""
    if scheme is None:
        return info.nbytes if info.packing is None else 4 * prod(info.shape)
    rows, columns = info.shape
    one, two = (_of_zeros(count, columns, scheme) for count in (1, 2))
    return one + (rows - 1) * (two - one)


def _of_zeros(rows: int, columns: int, scheme: Scheme) -> int:
    arrays = packed_entries("", quantize(np.zeros((rows, columns), np.float32), scheme))
    return sum(array.nbytes for array in arrays.values())
