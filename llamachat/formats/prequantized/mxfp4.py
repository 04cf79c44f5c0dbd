"""gpt-oss's own files: matrices of all experts of a layer in MXFP4 (OCP Microscaling Formats 1.0), the rest in bfloat16.

A stack X of matrices is `X_blocks`, uint8 [experts, rows, columns / 32, 16], two neighbouring columns a byte, the first in its
low nibble, and `X_scales`, uint8 [experts, rows, columns / 32], a power of two for each group of 32.
"""

from collections.abc import Mapping

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import GROUP, Array, QuantTensor, Tensor, TensorInfo, pack_nibbles
from llamachat.errors import FormatError
from llamachat.formats.ggml import MXFP4, half_powers
from llamachat.formats.lazy import LazyTensor, float_entry, packing
from llamachat.formats.parts import Part, cut, in_blocks, taken

BLOCKS, SCALES = "_blocks", "_scales"


def entries(arrays: Mapping[str, Array], where: str) -> dict[str, LazyTensor]:
    """Each expert's matrix of its own, unpacked when it is asked for. Raises FormatError for parts that do not fit."""
    found = dict[str, LazyTensor]()
    for name, array in arrays.items():
        stack = name.removesuffix(BLOCKS)
        if name.endswith(BLOCKS):
            found |= _experts(stack, array, arrays.get(stack + SCALES), where)
        elif not (name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in arrays):
            found[name] = float_entry(name, array)
    return found


def _experts(stack: str, blocks: Array, scales: Array | None, where: str) -> dict[str, LazyTensor]:
    fits = scales is not None and blocks.shape == (*scales.shape, GROUP // 2) and blocks.ndim == 4
    if scales is None or not fits or {blocks.dtype, scales.dtype} != {np.dtype(np.uint8)} or not blocks.size:
        raise FormatError(f"the parts of {shown(stack)} in {where} do not fit together", "it is damaged")
    prefix, _, module = stack.rpartition("experts.")
    pairs = enumerate(zip(blocks, scales, strict=True))
    return {f"{prefix}experts.{number}.{module}.weight": _matrix(*pair) for number, pair in pairs}


def _matrix(blocks: Array, scales: Array) -> LazyTensor:
    rows, groups, _ = blocks.shape
    columns = groups * GROUP

    def source(part: Part) -> Tensor:
        outer, rest = in_blocks(part, columns, GROUP)
        some = taken(blocks, outer)
        codes = np.stack((some & 15, some >> 4), -1).reshape(len(some), -1)
        return cut(QuantTensor(pack_nibbles(codes), half_powers(taken(scales, outer)), GROUP, 4, MXFP4), rest)

    return LazyTensor(
        TensorInfo((rows, columns), blocks.nbytes + scales.nbytes, packing(columns, GROUP, 4, MXFP4)), source
    )
