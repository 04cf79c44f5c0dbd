"""Safetensors files, mapped: an 8-byte header length, a JSON header, then the tensors' bytes without gaps.

Read here rather than by the safetensors package: it gives numpy no bfloat16, copies each tensor that it gives, takes a name
twice, and reads a header of 60 MB, which anyone may send, for most of a minute into 600 MB. Tests compare the two.
Format: https://github.com/huggingface/safetensors#format
"""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import Array
from llamachat.errors import FormatError, reader
from llamachat.formats.lazy import map_file
from llamachat.system.metadata import parse_json

HEADER_LIMIT = 16 << 20  # bytes; 100,000 tensors take less, and JSON takes up to 30 times its size in memory
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


@reader
def read_safetensors(path: Path) -> dict[str, Array]:
    """Each tensor by name as a read-only view of the mapped file, bfloat16 as uint16. Raises FormatError on damage."""
    data = np.frombuffer(map_file(path), np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(HEADER_LIMIT, data.size - 8):
        raise _damaged(path, f"its header claims {length:,} bytes")
    header = parse_json(data[8 : 8 + length].tobytes(), f"the header of {path}", FormatError)
    header.pop("__metadata__", None)
    body, arrays, end = data[8 + length :], {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        start, stop = _offsets(path, name, entry)
        if start != end or stop > body.size:
            raise _damaged(path, f"the bytes of {shown(name)} are not where they must be")
        arrays[name], end = _view(path, name, entry, body[start:stop]), stop
    if end != body.size:
        raise _damaged(path, f"it has {body.size - end:,} bytes that belong to no tensor")
    return arrays


def _view(path: Path, name: str, entry: dict[str, Any], data: Array) -> Array:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{shown(name)} in {path} is of type {shown(dtype)}", "that type is not read")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 < n <= data.size for n in shape):
        raise _damaged(path, f"{shown(name)} has no usable shape")
    if prod(shape) * DTYPES[dtype].itemsize != data.size:
        raise _damaged(path, f"{shown(name)} of shape {shape} does not take {data.size:,} bytes")
    view: Array = data.view(DTYPES[dtype]).reshape(shape)
    return view


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(start), int(stop)]} if 0 <= start <= stop:
            return start, stop
    raise _damaged(path, f"{shown(name)} has no usable offsets")


def _damaged(path: Path, cause: str) -> FormatError:
    return FormatError(f"{path}: {cause}", "the file is damaged or incomplete", "fetch it again")
