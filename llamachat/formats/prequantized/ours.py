"""Our own format: a Hugging Face folder whose config.json has `"quantization_config": {"quant_method": "llamachat"}`.

A quantized matrix X is stored as the fields of its QuantTensor, so reading maps it and changes nothing: `X.codes`
(uint8 [rows, columns / 2] for 4 bits in QuantTensor's nibble order, int8 [rows, columns] for 8), `X.scale`
[rows, columns / group], `X.minimum` (like scale) if it has one, `X.table` (float32 [16]) for 4 bits. Bits and group
follow from the shapes. Other tensors lie under their plain names. `manifest.json` is {"sha256": {file name: digest}} of
all the folder's other files.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import GROUP, Array, FloatTensor, QuantTensor, Tensor, TensorInfo
from llamachat.errors import FormatError
from llamachat.formats.lazy import LazyTensor, aligned, float_entry, listed
from llamachat.formats.parts import Part, cut
from llamachat.system.metadata import read_json

PARTS = ("codes", "scale", "minimum", "table")
MANIFEST = "manifest.json"


def packed_entries(name: str, tensor: Tensor) -> dict[str, Array]:
    """The arrays, by name, that a tensor is stored as (uint16 stands for bfloat16)."""
    if isinstance(tensor, FloatTensor):
        return {name: tensor.data}
    parts = {part: getattr(tensor, part) for part in PARTS}
    return {f"{name}.{part}": array for part, array in parts.items() if array is not None}


def entries(arrays: Mapping[str, Array], where: str) -> dict[str, LazyTensor]:
    """The inverse of packed_entries over a whole model. Raises FormatError when parts are missing or do not fit."""
    weights: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        weight, _, part = name.rpartition(".")
        weight, part = (weight, part) if part in PARTS else (name, "")
        weights.setdefault(weight, {})[part] = array
    return {name: _entry(name, parts, where) for name, parts in weights.items()}


def _entry(name: str, parts: dict[str, Array], where: str) -> LazyTensor:
    if parts.keys() == {""}:
        return float_entry(name, parts[""])
    if "" in parts or not {"codes", "scale"} <= parts.keys():
        raise FormatError(f"{shown(name)} in {where} consists of {listed(sorted(parts))}", "it is not a packed weight")
    if not _fits(**parts):
        raise FormatError(f"the parts of {shown(name)} in {where} do not fit together", "it is damaged")
    nbytes = sum(array.nbytes for array in parts.values())

    def source(part: Part) -> Tensor:
        tensor = cut(_tensor(**parts), part)
        return tensor if isinstance(tensor, FloatTensor) else _aligned(tensor)

    packing = _tensor(**{part: array if part == "table" else array[:0] for part, array in parts.items()})
    return LazyTensor(TensorInfo(_tensor(**parts).shape, nbytes, packing), source)


def _aligned(tensor: QuantTensor) -> QuantTensor:
    table, minimum = (each if each is None else aligned(each) for each in (tensor.table, tensor.minimum))
    return replace(tensor, codes=aligned(tensor.codes), scale=aligned(tensor.scale), table=table, minimum=minimum)


def _fits(codes: Array, scale: Array, minimum: Array | None = None, table: Array | None = None) -> bool:
    """Whether these are the fields of a QuantTensor."""
    if codes.dtype != (np.int8 if table is None else np.uint8) or codes.ndim != 2 or scale.ndim != 2:
        return False
    columns = codes.shape[1] * (1 if table is None else 2)
    group, rest = divmod(columns, scale.shape[1])
    if rest or group % GROUP or len(scale) != len(codes) or scale.dtype not in (np.float32, np.float16):
        return False
    if table is not None and not (table.dtype == np.float32 and table.shape == (16,) and np.all(np.isfinite(table))):
        return False
    return minimum is None or (minimum.shape == scale.shape and minimum.dtype == scale.dtype)


def _tensor(codes: Array, scale: Array, minimum: Array | None = None, table: Array | None = None) -> QuantTensor:
    columns = codes.shape[1] * (1 if table is None else 2)
    return QuantTensor(codes, scale, columns // scale.shape[1], 8 if table is None else 4, table, minimum)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each of the folder's files but the manifest, in hex."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: _sha256(path) for path in files}


def expected(folder: Path) -> dict[str, str]:
    """What the manifest says they are. Raises FormatError and ConfigError."""
    listed = read_json(folder / MANIFEST).get("sha256")
    if not isinstance(listed, dict) or not all(isinstance(each, str) for each in listed.values()):
        raise FormatError(f"{folder / MANIFEST} lists no files")
    return listed


def verify(folder: Path) -> None:
    """Read every file and compare it with the manifest. Raises FormatError for one that is missing or differs."""
    listed_digests, found = expected(folder), digests(folder)
    names = listed_digests.keys() | found.keys()
    if wrong := sorted(name for name in names if listed_digests.get(name) != found.get(name)):
        raise FormatError(
            f"{folder}: {listed(wrong)} differs from the manifest", "the model is damaged", "convert it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
