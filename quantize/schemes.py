"""What a scheme makes of a float matrix: a scale per group of columns, and per weight a codebook's entry or an integer.

The scale of a group is searched: of a few candidates, of either sign, the one whose codes explain most of the group in
the least-squares sense, with the scale that fits those codes best. A negative scale turns the codebook around, so an
asymmetric codebook serves groups whose largest weight is of either sign.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from llamachat.core.tensors import (
    CODEBOOKS,
    Array,
    FloatTensor,
    QuantTensor,
    pack_nibbles,
    to_float32,
)
from llamachat.errors import FormatError
from llamachat.formats.prequantized.schemes import SCHEMES as SCHEMES
from llamachat.formats.prequantized.schemes import Scheme as Scheme

SLAB = 1 << 17  # weights rounded at a time, on however many threads
OUTER = ("model.embed_tokens.weight", "lm_head.weight")

# 4-bit codebooks. "gauss": the 16 whole numbers that lose least of Gaussian weights in groups of 32 when the scale is
# searched as here (alternating search and conditional means, as Lloyd's algorithm does); whole, so that kernels that
# multiply in int8 use it exactly. "iq4nl" is ggml's.
TABLES: dict[str, tuple[float, ...]] = {
    "gauss": (-125, -92, -71, -54, -39, -26, -14, -2, 9, 21, 33, 46, 61, 79, 100, 127),
    "iq4nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "int4": tuple(range(-8, 8)),
    "affine": tuple(range(16)),  # with a minimum a group
    **CODEBOOKS,
}
# Scales tried, as multiples of the one that makes the largest weight exact.
PLAIN, CODED = (1.0,), (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
WHOLE = (1.0, 1.008, 1.016, 1.024, 1.032, 1.04, 1.048, 1.056)  # smaller scales would cut the largest weight off
STEPS, REACH = 4096, 1.35  # resolution and reach of the lookup that replaces a search among 16 values


class Grid(NamedTuple):
    """A codebook made ready: `codes` and `values` by position on a fine ruler; values in units of the largest."""

    unit: float  # the codebook's largest magnitude
    codes: Array  # int8
    values: Array  # float32

    def at(self, unit: Array) -> Array:
        """Positions of values in units of the codebook's largest; beyond the ruler's ends they are held there."""
        return (unit * STEPS + len(self.codes) // 2).astype(np.int32)


@cache
def grid(codebook: str | None) -> Grid:
    """None: whole numbers from -127 to 127."""
    half = round(STEPS * REACH)
    unit = (np.arange(2 * half + 1) - half + 0.5) / STEPS  # positions are rounded down
    if codebook is None:
        codes = np.clip(np.rint(unit * 127), -127, 127).astype(np.int8)
        return Grid(127.0, codes, (codes / 127).astype(np.float32))
    table = np.array(TABLES[codebook], np.float32)
    largest = float(np.abs(table).max())
    codes = nearest(unit.astype(np.float32), table / largest).astype(np.int8)
    return Grid(largest, codes, table[codes] / np.float32(largest))


def nearest(values: Array, table: Array) -> Array:
    """Index (uint8) of the nearest table entry of each value."""
    order = np.argsort(table, kind="stable")
    ordered = table[order]
    return order.astype(np.uint8)[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, values)]


def quantize(data: Array, scheme: Scheme, activity: Array | None = None) -> QuantTensor:
    """float32 [rows, columns] -> codes, with a float16 scale for each group, or without search a float32 one.

    `activity` [columns]: how large the square of what each column is multiplied with is, if that is known: with a codebook
    errors count by it.
    """
    rows, columns = data.shape
    group = scheme.group or columns
    grouped = data.reshape(-1, group)
    if scheme.codebook == "affine":
        codes, scale, minimum = _affine(grouped)
        return _packed(codes, scale, data.shape, group, scheme, minimum.reshape(rows, -1))
    factors = PLAIN if not scheme.search else CODED if scheme.codebook else WHOLE
    ruler = grid(scheme.codebook)
    weights = None if activity is None or scheme.codebook is None else np.tile(activity.reshape(-1, group), (rows, 1))
    scale = search(grouped, scheme.codebook, factors, weights) / np.float32(ruler.unit)
    if scheme.search:
        scale = half(scale)
    inverse = 1 / np.where(scale == 0, 1, scale * np.float32(ruler.unit)).astype(np.float32)
    codes = np.take(ruler.codes, ruler.at(grouped * inverse[:, None]), mode="clip")
    return _packed(codes, scale, data.shape, group, scheme)


def search(grouped: Array, codebook: str | None, factors: tuple[float, ...], weights: Array | None = None) -> Array:
    """[n, group] -> [n]: for each group the value that the codebook's largest magnitude is to stand for.

    `weights` [n, group]: how much the square of each error counts, if not all alike.
    """
    n = np.arange(len(grouped))
    peak = grouped[n, np.abs(grouped).argmax(1)]
    if factors == PLAIN:
        return np.asarray(np.abs(peak))
    ruler = grid(codebook)
    unit = grouped / np.where(peak == 0, 1, peak)[:, None]
    best, scale = np.zeros_like(peak), np.zeros_like(peak)
    for factor in factors if codebook is None else [sign * each for each in factors for sign in (1, -1)]:
        values = np.take(ruler.values, ruler.at(unit * np.float32(1 / factor)), mode="clip")
        heavy = values if weights is None else values * weights
        shared, own = np.einsum("ij,ij->i", heavy, unit), np.einsum("ij,ij->i", heavy, values)
        fitted = shared / np.maximum(own, np.float32(1e-20))
        better = fitted * shared > best  # how much of the group's energy is explained
        best, scale = np.where(better, fitted * shared, best), np.where(better, fitted, scale)
    return np.asarray(scale * peak)


def half(scale: Array) -> Array:
    """float32 -> float16, which must be able to hold it."""
    with np.errstate(over="ignore"):
        halved = scale.astype(np.float16)
    if not np.isfinite(halved).all():
        raise FormatError("weights are too large for float16 scales", "the model is most likely damaged")
    return np.asarray(halved)


def _affine(grouped: Array) -> tuple[Array, Array, Array]:
    """Codes, step and minimum of evenly spaced values from each group's least to its greatest."""
    low, high = half(grouped.min(1)), grouped.max(1)
    scale = half((high - low) / np.float32(15))
    step = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.clip(np.rint((grouped - low[:, None]) / step[:, None]), 0, 15).astype(np.int8), scale, low


def _packed(
    codes: Array, scale: Array, shape: tuple[int, ...], group: int, scheme: Scheme, minimum: Array | None = None
) -> QuantTensor:
    codes, scale = codes.reshape(shape), scale.reshape(len(codes.reshape(shape)), -1)
    if scheme.codebook is None:
        return QuantTensor(codes, scale, group, 8)
    table = np.array(TABLES[scheme.codebook], np.float32)
    return QuantTensor(pack_nibbles(codes), scale, group, 4, table, minimum)


def quantize_tensor(
    name: str, tensor: FloatTensor, scheme: Scheme, threads: int | None = None, activity: Array | None = None
) -> QuantTensor:
    """A whole matrix, some rows at a time on several threads. Raises FormatError for weights that are not finite."""
    rows, columns = tensor.data.shape
    step = max(1, SLAB // columns)

    def part(start: int) -> QuantTensor:
        data = to_float32(tensor.data[start : start + step])
        if not np.isfinite(data).all():
            raise not_finite(name)
        return quantize(data, scheme, activity)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        parts = list(pool.map(part, range(0, rows, step)))
    codes, scale = (np.concatenate([getattr(part, field) for part in parts]) for field in ("codes", "scale"))
    minima = [part.minimum for part in parts if part.minimum is not None]
    return replace(parts[0], codes=codes, scale=scale, minimum=np.concatenate(minima) if minima else None)


def not_finite(name: str) -> FormatError:
    return FormatError(f"tensor {name} has values that are not finite", "the model is damaged", "fetch it again")
