"""All packed weights of a model, in memory or in a file that is mapped.

A file is the packed tensors, each from a multiple of 4096 bytes on, then a JSON index of them (what the file was made for
and of, and of each tensor its header and its bytes' place and sha256), then the index's sha256 and length and a magic number.
Nothing in a file is believed: `open` checks the index, `verify` the bytes.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from llamachat.checks import LARGEST, is_number, is_whole, shown
from llamachat.core.tensors import Array
from llamachat.engines.native.pack import (
    BF16,
    BLOCKS,
    EXPONENTS,
    F16,
    F32,
    HALVES,
    PAGE,
    Q4,
    Q8,
    SUPER,
    Header,
    Packable,
    Packed,
    bytes_of,
    pack,
)
from llamachat.engines.native.room import Arena
from llamachat.errors import FormatError
from llamachat.system import private
from llamachat.system.mapped import map_file, prefer_huge_pages
from llamachat.system.metadata import parse_json

MAGIC = b"llamachat arena6"
BUFFER = 1 << 25  # bytes; long writes: Linux then keeps the file in huge pages, which are read a quarter faster
SYNC = 1 << 25  # bytes after which the disk is waited for: what is told is done, and others' writes find room
MAX_INDEX = 64 << 20  # bytes; a thousand layers take some 3 MB
SIZES = max(LARGEST.values())  # no row or column number is larger
DIGEST = re.compile(r"[0-9a-f]{64}")
TRAILER = struct.Struct("<32sQ16s")
MOST_FACTS, LONGEST = 16, 1 << 15  # of what a file was made of; characters of one

Told = Callable[[int], None]
_NOT_OURS = "it does not end as packed weights do"
_UNKNOWN = "{} is packed in no way that there is"


@dataclass(frozen=True)
class PackedWeights:
    """Packed tensors by canonical name; the bytes are 64-byte aligned."""

    tensors: Mapping[str, Packed]
    digests: Mapping[str, str] = field(default_factory=dict)  # of a file's tensors, sha256
    digest: str = ""  # of a file's index, and so of all that is in it

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for _, data in self.tensors.values())

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises FormatError unless these are the tensors, with these shapes."""
        held = {
            name: (header.rows, header.columns) if header.rows else (header.columns,)
            for name, (header, _) in self.tensors.items()
        }
        if held != shapes:
            wrong = sorted(name for name in held.keys() | shapes if held.get(name) != shapes.get(name))
            raise FormatError(
                f"the packed weights of {shown(wrong[0])} are not those of this model", remedy="pack the model again"
            )

    def verify(self) -> None:
        """Read a file's tensors whole. Raises FormatError for one whose bytes are not those that were packed."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda name: _sha256(self.tensors[name][1]), self.digests)
            for (name, expected), digest in zip(self.digests.items(), found, strict=True):
                if digest != expected:
                    raise FormatError(f"the packed weights of {name} are damaged", remedy="pack the model again")

    @classmethod
    def build(
        cls, tensors: Iterable[tuple[str, Packable]], expected: int = 0, told: Told = lambda done: None
    ) -> "PackedWeights":
        """Packs into memory. `expected`: bytes that they will have, as far as known; `told` is called with those so far."""
        room, packed, done = Arena(expected), dict[str, Packed](), 0
        for name, tensor in tensors:
            packed[name] = pack(tensor, room)
            done += packed[name][1].nbytes
            told(done)
        return cls(packed)

    @staticmethod
    def write(
        packed: Iterable[tuple[str, Packed]],
        path: Path,
        key: str = "",
        about: Mapping[str, str] | None = None,
        told: Told = lambda done: None,
    ) -> str:
        """Puts packed tensors into a file, made of what is said `about` it; it appears under its name only when the disk has all
        of it. Returns its `digest`. `told` is called with the bytes written so far; what it raises ends it. Raises OSError.
        """
        with private.writing(path, sync=True, buffering=BUFFER) as file:
            index = {name: _append(file, *each, told) for name, each in packed}
            text = json.dumps({"key": key, "about": dict(about or {}), "tensors": index}).encode()
            digest = hashlib.sha256(text)
            file.write(text + TRAILER.pack(digest.digest(), len(text), MAGIC))
        return digest.hexdigest()

    @classmethod
    def open(cls, path: Path, key: str = "") -> "PackedWeights":
        """Maps a file that `write` made with this key. Raises OSError, FormatError when it is another or damaged."""
        try:
            with path.open("rb") as file:
                mapped = map_file(file)
            prefer_huge_pages(mapped)  # see BUFFER
            return cls(*parsed(np.frombuffer(mapped, np.uint8), key))
        except (ValueError, struct.error, FormatError) as error:
            raise FormatError(
                f"{path} is damaged ({error})", "the packed weights cannot be used", "delete it"
            ) from error


def about(path: Path) -> dict[str, str] | None:
    """What a file of `write` was said to be made of; None of one in another version's layout. Raises OSError, ValueError where
    it is damaged, and FormatError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TRAILER.size))
        digest, length, magic = _trailer(file.read())
        if magic != MAGIC and magic.startswith(MAGIC[:-1]):
            return None
        if magic != MAGIC or length > min(MAX_INDEX, size - TRAILER.size):
            raise ValueError(_NOT_OURS)
        file.seek(size - TRAILER.size - length)
        return dict(_index(file.read(length), digest)["about"])


def _append(file: IO[bytes], header: Header, data: Array, told: Told) -> dict[str, Any]:
    file.write(bytes(-file.tell() % PAGE))
    start, digest = file.tell(), hashlib.sha256()
    for at in range(0, len(data), BUFFER):
        part, done = data[at : at + BUFFER].data, file.tell()
        digest.update(part)
        file.write(part)
        if file.tell() // SYNC > done // SYNC:
            file.flush()
            os.fsync(file.fileno())
        told(file.tell())
    return {"start": start, "sha256": digest.hexdigest(), **asdict(header)}


def _sha256(data: Array) -> str:
    return hashlib.sha256(data.data).hexdigest()


def parsed(data: Array, key: str) -> tuple[dict[str, tuple[Header, Array]], dict[str, str], str]:
    """Raises ValueError and FormatError."""
    digest, length, magic = _trailer(data[-TRAILER.size :].tobytes())
    end = len(data) - TRAILER.size - length
    if magic != MAGIC or length > MAX_INDEX or end < 0:
        raise ValueError(_NOT_OURS)
    index = _index(data[end : end + length].tobytes(), digest)
    if index["key"] != key:
        raise ValueError("it is of something else")
    tensors, last = {}, 0
    for name, entry in index["tensors"].items():
        tensors[name] = _entry(name, entry, last, data[:end])
        last = entry["start"] + len(tensors[name][1])
    return tensors, {name: entry["sha256"] for name, entry in index["tensors"].items()}, digest.hex()


def _trailer(data: bytes) -> tuple[bytes, int, bytes]:
    """sha256 and length of the index, and the magic number."""
    if len(data) < TRAILER.size:
        raise ValueError(_NOT_OURS)
    digest, length, magic = TRAILER.unpack(data)
    return digest, length, magic


def _index(text: bytes, digest: bytes) -> dict[str, Any]:
    """Raises ValueError and FormatError unless it has the parts that `write` gives it."""
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("its index is not the one that was written")
    index = parse_json(text, "its index", FormatError)
    if index.keys() != {"key", "about", "tensors"} or not isinstance(index["tensors"], dict):
        raise ValueError("it is of something else")
    facts = index["about"]
    if not isinstance(facts, dict) or len(facts) > MOST_FACTS:
        raise ValueError("it is made of nothing that is known")
    if not all(isinstance(fact, str) and len(fact) <= LONGEST for fact in (*facts, *facts.values())):
        raise ValueError("it is made of nothing that is known")
    return index


def _entry(name: str, entry: object, last: int, data: Array) -> tuple[Header, Array]:
    """A tensor that begins behind the `last` byte of the one before."""
    if not isinstance(entry, dict) or entry.keys() != {"start", "sha256", *Header.__dataclass_fields__}:
        raise ValueError(f"{shown(name)} has other fields than a tensor")
    start, digest = entry["start"], entry["sha256"]
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"{shown(name)} has no digest")
    header = _header(name, {field: entry[field] for field in Header.__dataclass_fields__})
    size = bytes_of(header)
    if not is_whole(start) or start % PAGE or not last <= start <= len(data) - size:
        raise ValueError(f"{shown(name)} does not lie in it")
    return header, data[start : start + size]


def _header(name: str, fields: dict[str, Any]) -> Header:
    """Raises ValueError for what `pack` never makes: the C side believes it."""
    rows, columns, kind, scaling, subs, minimum, first, unit, table, low = fields.values()
    good = is_whole(rows) and is_whole(columns) and 0 <= rows <= SIZES and 0 < columns <= SIZES
    good = good and all(is_whole(number) for number in (kind, scaling, subs, first)) and -128 <= first <= 112
    good = good and isinstance(minimum, bool) and is_number(unit) and 2.0**-149 <= unit < 2.0**128  # as float32
    for codes in (table, low):
        good = good and isinstance(codes, list) and all(is_whole(code) and 0 <= code <= 255 for code in codes)
    if not good:
        raise ValueError(_UNKNOWN.format(shown(name)))
    header = Header(**{**fields, "table": tuple(table), "low": tuple(low), "unit": float(unit)})
    if not (_is_float(header) or _is_of_tensor(header) or _is_of_blocks(header)):
        raise ValueError(_UNKNOWN.format(shown(name)))
    return header


def _is_float(header: Header) -> bool:
    kinds = (F32, F16, BF16) if header.rows else (F32,)
    return header in [Header(header.rows, header.columns, kind) for kind in kinds]


def _is_of_tensor(header: Header) -> bool:
    """Of a QuantTensor's codes."""
    table, low = len(header.table), len(header.low)
    eight = header.kind == Q8 and header.first == -128 and table == low == 0
    four = header.kind == Q4 and table in (0, 16) and low in (0, table if header.subs == 2 else 0)
    return (eight or four) and header.rows > 0 and header.scaling == HALVES and header.subs in (2, 4)


def _is_of_blocks(header: Header) -> bool:
    whole = header.scaling in (HALVES, EXPONENTS) or header.columns % SUPER == 0
    return header.rows > 0 and whole and replace(header, rows=0, columns=0) in BLOCKS.values()
