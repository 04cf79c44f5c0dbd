"""SCHEMES: how matrices can be quantized, one row a scheme. Whatever lists schemes, or asks one what it is, reads the rows.

A scheme is a row here. Where it is kept as none before it, that is a STORAGE with its reader here and its writer in
quantize/coding.py; where its codes are found as none before, that is a function in quantize/. Imports nothing heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llamachat.core.tensors import Array
    from llamachat.formats.lazy import LazyTensor

GROUP = 32  # of any group's size a divisor; core.tensors lays nibbles out by it
Entries = dict[str, "LazyTensor"]


def _read_ours(arrays: "Mapping[str, Array]", where: str) -> Entries:
    from llamachat.formats.prequantized import ours

    return ours.entries(arrays, where)


def _read_bitsandbytes(arrays: "Mapping[str, Array]", where: str) -> Entries:
    from llamachat.formats.prequantized import bnb

    return bnb.entries(arrays, where)


def _read_mxfp4(arrays: "Mapping[str, Array]", where: str) -> Entries:
    from llamachat.formats.prequantized import mxfp4

    return mxfp4.entries(arrays, where)


@dataclass(frozen=True)
class Storage:
    """A way to keep quantized matrices: `method` is config.json's quant_method, `entries` its reader.

    `entries` takes a model's arrays by name, and the folder's name for errors. Raises FormatError.
    """

    method: str
    entries: "Callable[[Mapping[str, Array], str], Entries]"


OURS = Storage("llamachat", _read_ours)
BITSANDBYTES = Storage("bitsandbytes", _read_bitsandbytes)
MXFP4 = Storage("mxfp4", _read_mxfp4)  # which is read only


@dataclass(frozen=True)
class Scheme:
    """How one matrix is coded; group None: one scale a row. Without `search` the largest weight decides the scale."""

    bits: Literal[4, 8]
    group: int | None
    codebook: str | None = None
    search: bool = True
    calibrated: bool = False  # made with a text that shows what the activations are like
    any_width: bool = False  # bitsandbytes' blocks run on over the ends of rows
    storage: Storage = OURS

    @property
    def foreign(self) -> bool:
        """Whether the output is in another project's own serialisation."""
        return self.storage is not OURS

    @property
    def bits_a_weight(self) -> float:
        """With the scales, which are of 16 bits where they are searched, else of 32; one a row counts as nothing."""
        return self.bits + ((16 if self.search else 32) / self.group if self.group else 0)

    def fits(self, columns: int) -> bool:
        """Whether so many columns can be coded this way."""
        return self.any_width or (columns % GROUP == 0 and columns % (self.group or GROUP) == 0)


SCHEMES = {
    "int8": Scheme(8, 32),
    "int4": Scheme(4, 32, "gauss"),
    "int4-gptq": Scheme(4, 32, "gauss", calibrated=True),
    "bnb-nf4": Scheme(4, 64, "nf4", search=False, any_width=True, storage=BITSANDBYTES),
    "bnb-fp4": Scheme(4, 64, "fp4", search=False, any_width=True, storage=BITSANDBYTES),
    "bnb-int8": Scheme(8, None, search=False, any_width=True, storage=BITSANDBYTES),
}
STORAGES = {name: scheme.storage for name, scheme in SCHEMES.items()} | {MXFP4.method: MXFP4}  # of all that is read
OWN = tuple(name for name, scheme in SCHEMES.items() if not scheme.foreign)  # may stand beside each other in one model
CODEBOOKS = ("gauss", "nf4", "iq4nl", "int4", "affine")  # that may be chosen; their values are in quantize/schemes.py
