"""Float matrices as bitsandbytes itself stores them, so that transformers loads the result: see formats/bnb.py.

The codes are found here, on all threads and without its many passes; scales of scales and serialisation are its own.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from llamachat.core.tensors import Array
from llamachat.formats.prequantized.schemes import Scheme
from quantize.schemes import SLAB, nearest

LEAST = np.float32(1e-38)  # what bitsandbytes divides by where all is zero


def bnb_entries(
    name: str, data: Array, scheme: Scheme, double: bool = False, threads: int | None = None
) -> dict[str, Array]:
    """The arrays, by name, of a float32 matrix `name` (X.weight) in one of the bnb-* schemes; `double`: 8-bit scales."""
    if scheme.codebook is None or scheme.group is None:
        return _int8(name, data)
    return _four_bit(name, data, scheme.codebook, scheme.group, double, threads)


def _int8(name: str, data: Array) -> dict[str, Array]:
    """Rows scaled to their largest magnitude (LLM.int8(), arXiv 2208.07339)."""
    peak = np.abs(data).max(1)
    codes = np.rint(data * (np.float32(127) / np.where(peak == 0, 1, peak))[:, None]).astype(np.int8)
    module = name.removesuffix("weight")
    return {name: codes, f"{module}SCB": peak, f"{module}weight_format": np.zeros((), np.uint8)}


def _four_bit(name: str, data: Array, kind: str, block: int, double: bool, threads: int | None) -> dict[str, Array]:
    """Blocks of the flattened matrix, over the ends of its rows; two codes a byte, the first high."""
    import torch

    from llamachat.engines.torch.linear import bitsandbytes

    functional: Any = bitsandbytes().functional
    table = functional.get_4bit_type(kind, device="cpu")
    codes, peak = _coded(data.reshape(-1), table.numpy(), block, threads)
    absmax, nested = torch.tensor(peak), {}
    if double:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            offset = absmax.mean()
            absmax, state2 = functional.quantize_blockwise(absmax - offset, blocksize=256)
        nested = {"offset": offset, "state2": state2}
    state = functional.QuantState(
        absmax=absmax,
        shape=torch.Size(data.shape),
        code=table,
        blocksize=block,
        quant_type=kind,
        dtype=torch.float32,
        **nested,
    )
    parts = {f"{name}.{part}": tensor.numpy() for part, tensor in state.as_dict(packed=True).items()}
    return {name: codes[:, None], **parts}


def _coded(flat: Array, table: Array, block: int, threads: int | None) -> tuple[Array, Array]:
    """Packed codes [(n + 1) / 2] and each block's largest magnitude, to the bit those of bitsandbytes.

    The last block may be shorter. It is divided by its peak, which is at least LEAST; others are multiplied by one over
    theirs. Where the codes are an odd number, that of 0 fills the last byte.
    """
    step = SLAB // block * block

    def part(start: int) -> tuple[Array, Array]:
        values = flat[start : start + step]
        whole = len(values) // block * block
        blocks, rest = values[:whole].reshape(-1, block), values[whole:]
        peak = np.abs(blocks).max(1)
        scaled = (blocks * (1 / np.maximum(peak, LEAST))[:, None]).reshape(-1)
        if len(rest):
            last = np.maximum(np.abs(rest).max(keepdims=True), LEAST)
            peak, scaled = np.append(peak, last), np.append(scaled, rest / last)
        codes = nearest(np.pad(scaled, (0, len(scaled) % 2)), table)
        return codes[::2] << 4 | codes[1::2], peak

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        parts = list(pool.map(part, range(0, len(flat), step)))
    codes, peak = (np.concatenate(each) for each in zip(*parts, strict=True))
    return codes, peak
