"""Float matrices as bitsandbytes itself stores them, so that transformers loads the result; see formats/bnb.py for the layout."""

import warnings
from typing import Any

import numpy as np

from llamachat.tensors import Array
from quantize.recipe import Recipe


def bnb_entries(name: str, data: Array, recipe: Recipe) -> dict[str, Array]:
    """The arrays, by name, of a float32 matrix `name` (X.weight) in one of the bnb-* schemes."""
    if recipe.scheme == "bnb-int8":
        return _int8(name, data)
    return _four_bit(name, data, recipe.scheme.removeprefix("bnb-"), recipe.group_size or 64, recipe.double_quant)


def _int8(name: str, data: Array) -> dict[str, Array]:
    """Rows scaled to their largest magnitude (LLM.int8(), arXiv 2208.07339)."""
    peak = np.abs(data).max(1)
    codes = np.rint(data * (np.float32(127) / np.where(peak == 0, 1, peak))[:, None]).astype(np.int8)
    module = name.removesuffix("weight")
    return {name: codes, f"{module}SCB": peak, f"{module}weight_format": np.zeros((), np.uint8)}


def _four_bit(name: str, data: Array, kind: str, block: int, double: bool) -> dict[str, Array]:
    """bitsandbytes' own function and serialisation."""
    import torch

    from llamachat.engine.linear import bitsandbytes

    functional: Any = bitsandbytes().functional
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        codes, state = functional.quantize_4bit(
            torch.from_numpy(data), blocksize=block, quant_type=kind, compress_statistics=double
        )
    state.dtype = torch.float32
    parts = {f"{name}.{part}": tensor.numpy() for part, tensor in state.as_dict(packed=True).items()}
    return {name: codes.numpy(), **parts}
