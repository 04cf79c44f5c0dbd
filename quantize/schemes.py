"""What a scheme makes of a float matrix: symmetric rounding to int8, or to the nearest of 16 values, per group of columns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from llamachat.config import QuantConfig
from llamachat.errors import ConfigError
from llamachat.formats import Checkpoint
from llamachat.tensors import CODEBOOKS, GROUP, Array, FloatTensor, QuantTensor, Tensor, TensorInfo, pack_nibbles, to_float32

SLAB = 1 << 22  # weights rounded at a time, so that temporaries stay small
OUTER = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Scheme:
    """How one matrix is coded; group None: one scale a row."""

    bits: Literal[4, 8]
    group: int | None
    codebook: str | None = None


SCHEMES = {
    "int8": Scheme(8, 32),
    "int4": Scheme(4, 32, "nf4"),
    "bnb-nf4": Scheme(4, 64, "nf4"),
    "bnb-fp4": Scheme(4, 64, "fp4"),
    "bnb-int8": Scheme(8, None),
}


def scheme_for(config: QuantConfig, name: str, shape: tuple[int, ...]) -> Scheme | None:
    """The scheme of a tensor, or None when it stays as it is: vectors, what `skip` matches, odd widths.

    Embedding and head go to int8 with our schemes and stay float with bitsandbytes', as that project does.
    """
    module = name.removesuffix(".weight")
    if len(shape) != 2 or any(fnmatchcase(module, f"*{pattern}*") for pattern in config.skip):
        return None
    if config.scheme not in SCHEMES:
        raise ConfigError(f"scheme {config.scheme} needs calibration", "it cannot be applied while loading", "use int4")
    scheme = SCHEMES[config.scheme]
    if name in OUTER:
        if config.scheme.startswith("bnb-"):
            return None
        scheme = SCHEMES["int8"]
    elif config.group_size and scheme.group:
        scheme = Scheme(scheme.bits, config.group_size, scheme.codebook)
    columns = shape[1]
    return None if columns % GROUP or (scheme.group and columns % scheme.group) else scheme


def quantize(data: Array, scheme: Scheme) -> QuantTensor:
    """float32 [rows, columns] -> codes with scales that make each group's largest magnitude exact."""
    rows, columns = data.shape
    group = scheme.group or columns
    grouped = data.reshape(rows, columns // group, group)
    peak = np.abs(grouped).max(-1)
    table = np.array(CODEBOOKS[scheme.codebook], np.float32) if scheme.codebook else None
    scale = (peak / (127 if table is None else np.abs(table).max())).astype(np.float32)
    unit = grouped / np.where(scale == 0, 1, scale)[..., None]
    if table is None:
        codes = np.rint(unit).astype(np.int8).reshape(rows, columns)
        return QuantTensor(codes, scale, group, 8)
    return QuantTensor(pack_nibbles(nearest(unit, table).reshape(rows, columns)), scale, group, 4, table)


def nearest(values: Array, table: Array) -> Array:
    """Index (uint8) of the nearest table entry of each value."""
    order = np.argsort(table, kind="stable")
    ordered = table[order]
    return order.astype(np.uint8)[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, values)]


class Quantized:
    """A checkpoint whose float matrices are quantized as they are read; see formats.Checkpoint."""

    def __init__(self, source: Checkpoint, config: QuantConfig) -> None:
        self.path, self.config, self.sampling = source.path, source.config, source.sampling
        self.chat_template, self.ignored, self.tokenizer = source.chat_template, source.ignored, source.tokenizer
        self._source, self._quant = source, config

    def index(self) -> Mapping[str, TensorInfo]:
        return {name: self._info(name, info) for name, info in self._source.index().items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._source.tensors():
            scheme = scheme_for(self._quant, name, tensor.shape)
            yield name, _in_slabs(tensor, scheme) if scheme and isinstance(tensor, FloatTensor) else tensor

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        scheme = scheme_for(self._quant, name, info.shape) if info.packing is None else None
        if scheme is None:
            return info
        packing = quantize(np.zeros((0, info.shape[1]), np.float32), scheme)
        row = quantize(np.zeros((1, info.shape[1]), np.float32), scheme)
        return TensorInfo(info.shape, row.nbytes * info.shape[0], packing)


def _in_slabs(tensor: FloatTensor, scheme: Scheme) -> QuantTensor:
    rows, columns = tensor.data.shape
    step = max(1, SLAB // columns)
    parts = [quantize(to_float32(tensor.data[at : at + step]), scheme) for at in range(0, rows, step)]
    codes, scale = (np.concatenate([getattr(part, field) for part in parts]) for field in ("codes", "scale"))
    return QuantTensor(codes, scale, parts[0].group, parts[0].bits, parts[0].table)
