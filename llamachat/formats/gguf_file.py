"""The GGUF container (the ggml project's docs/gguf.md): keys and tensors of version 2 and 3 files, whole or split.

Nothing in a header is trusted. It is read through a map; every count, length and offset is held against the bytes there
are before anything is allocated for it, and arrays are stepped over and decoded when first asked for.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import Array, QuantTensor, Tensor
from llamachat.errors import FormatError, reading
from llamachat.formats.ggml import SLAB, TYPES, UNSUPPORTED, Blocks, GGMLType, read_blocks, unpack
from llamachat.formats.lazy import float_part, map_file
from llamachat.formats.parts import WHOLE, Part, covering, cut, picked
from llamachat.system.mapped import let_go

MAGIC = b"GGUF"
# No honest file comes near these; they bound the time and memory that a dishonest one can cost.
MAX_HEADER = 1 << 26  # bytes
MAX_FIRST = 1 << 20  # of them, those before the vocabulary
MAX_ELEMENTS = 1 << 22  # of all arrays
MAX_ENTRIES = 1 << 16  # keys, and tensors
MANY, STRETCH = 64, 1 << 16  # texts from which on they are looked for at once, in so many bytes

FLOAT32, STRING, ARRAY = 6, 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", FLOAT32: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SCALARS = {kind: Struct("<" + code) for kind, code in NUMBERS.items()}
U32, U64 = SCALARS[4], SCALARS[10]
OVERRUN, NOT_UTF8 = "its header runs past its end", "a text in its header is not UTF-8"
MIXED = "they are not parts of one model"


class Metadata(Mapping[str, Any]):
    """A header's keys and values; an array is decoded to a list at its first use."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, partial):
            value = self._values[key] = value()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def add(self, key: str, value: Any) -> None:
        """A partial is called when its value is first asked for."""
        self._values[key] = value


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a header describes it: within the file's bounds, of a type that is read."""

    name: str
    kind: GGMLType
    shape: tuple[int, ...]
    path: Path
    data: mmap
    offset: int  # from the file's beginning

    @property
    def nbytes(self) -> int:
        return self.kind.nbytes(self.shape)

    def some(self, rows: slice, number: int | None = None) -> "StoredTensor":
        """A run of its rows, or of those of one tensor in a stack of them."""
        shape = self.shape if number is None else self.shape[1:]
        start, stop, step = rows.indices(shape[0])
        assert step == 1
        row = self.kind.nbytes((1, *shape[1:]))
        offset = self.offset + row * (start + (number or 0) * shape[0])
        return replace(self, shape=(stop - start, *shape[1:]), offset=offset)

    def blocks(self) -> Blocks | None:
        """As it lies there; None: it has no blocks, or is no matrix."""
        if self.kind.split is None or len(self.shape) != 2:
            return None
        return Blocks(self.kind, self.shape, self.path, self.name, self.data, self.offset)

    def read(self, part: Part = WHOLE) -> Tensor:
        """Floats as they lie in the map; blocks through a stream, as mapped pages would count beside the result."""
        if self.kind.split is None:
            flat = np.frombuffer(self.data, self.kind.layout[0], math.prod(self.shape), self.offset)
            return float_part(flat.reshape(self.shape), part)
        outer, rest = covering(part, self.shape[1], self.kind.columns)
        return cut(self._unpacked(*map(picked, self.shape, (outer.rows, outer.columns))), rest)

    def _unpacked(self, rows: range, columns: range) -> QuantTensor:
        """A run of rows, of columns that are whole blocks."""
        assert rows.step == columns.step == 1
        where = f"tensor {shown(self.name)} of {self.path}"
        if len(columns) < self.shape[1]:
            return unpack(self._runs(rows, columns), self.kind, len(rows), len(columns), where)
        with reading(where), self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + self.kind.nbytes((rows.start, self.shape[1])))
            return read_blocks(file, self.kind, len(rows), len(columns), where)

    def _runs(self, rows: range, columns: range) -> Iterator[Array]:
        """Their blocks, of some rows at a time, from the map: a call to the system for each of many short runs takes longer."""
        row, start, stop = (self.kind.nbytes((1, count)) for count in (self.shape[1], columns.start, columns.stop))
        step = max(1, SLAB // row)
        buffer = np.empty((step, stop - start), np.uint8)
        for first in range(rows.start, rows.stop, step):
            count, at = min(step, rows.stop - first), self.offset + first * row
            slab = buffer[:count]
            slab[:] = np.frombuffer(self.data, np.uint8, count * row, at).reshape(count, row)[:, start:stop]
            yield slab.reshape(-1).view(self.kind.layout)
            let_go(
                self.data, self.offset, at + count * row - self.offset
            )  # the system maps pages before those touched, too


class _Header:
    """A cursor over a file's header that cannot be led out of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, map_file(path), 0
        self.limit = min(len(self.data), MAX_HEADER)
        self.elements = 0  # of arrays so far

    def damaged(self, cause: str) -> FormatError:
        return FormatError(f"{self.path}: {cause}", "the file is damaged or not honest", "download it again")

    def skip(self, count: int) -> int:
        """Step over `count` bytes; where they begin."""
        start, self.at = self.at, self.at + count
        if self.at > self.limit:
            raise self.damaged(OVERRUN)
        return start

    def number(self, kind: Struct) -> Any:
        return kind.unpack_from(self.data, self.skip(kind.size))[0]

    def count(self, of: str, most: int) -> int:
        count = int(self.number(U64))
        if count > most:
            raise self.damaged(f"it claims {count} {of}")
        return count

    def text(self) -> str:
        (text,) = self.texts_at(self.skip_texts(1), 1)
        return text

    def value(self) -> Any:
        kind = self.number(U32)
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.damaged(f"a value in its header is of type {kind}, which there is not")
        value = self.number(SCALARS[kind])
        return float(str(np.float32(value))) if kind == FLOAT32 else value  # 1e-5, not 9.999999747378752e-06

    def array(self) -> "partial[list[Any]]":
        """Step over an array: what decodes it later. No array of arrays, as in llama.cpp: nothing uses them."""
        kind, count = self.number(U32), self.count("array elements", MAX_ELEMENTS - self.elements)
        self.elements += count
        if kind == STRING:
            starts = self.starts(count)
            if starts is None:
                return partial(self.texts_at, self.skip_texts(count), count)
            first, end = self.skip(int(starts[-1])), self.at
            return partial(self.texts_between, first, end, starts[:-1])
        if kind not in SCALARS:
            raise self.damaged(f"an array in its header has elements of type {kind}")
        return partial(self.numbers, "<" + NUMBERS[kind], self.skip(count * SCALARS[kind].size), count)

    def starts(self, count: int) -> Array | None:
        """Of texts from here on, where each one's length stands, and where the last one ends, counted from here; found at once,
        as vocabularies have hundreds of thousands. None where there are few, or one is empty or longer than 255 bytes: a length
        is then not just a byte and seven zeros.
        """
        found, number, left = list[Array](), 0, self.limit - self.at
        if not MANY <= count <= left:
            return None
        for at in range(0, left - 7, STRETCH):
            data = np.frombuffer(self.data, np.uint8, min(STRETCH + 7, left - at), self.at + at)
            zero = data == 0
            two = zero[:-1] & zero[1:]
            four = two[:-2] & two[2:]
            found.append(np.flatnonzero(four[1:-3] & four[4:] & ~zero[: len(four) - 4]) + at)
            number += len(found[-1])
            if number >= count:
                break
        starts = np.concatenate(found)[:count]
        ends = starts + np.frombuffer(self.data, np.uint8, left, self.at)[starts] + 8
        chained = len(starts) == count and starts[0] == 0 and np.array_equal(starts[1:], ends[:-1])
        return np.append(starts, ends[-1]) if chained and ends[-1] <= left else None

    def skip_texts(self, count: int) -> int:
        """Step over texts, each after its length in 8 bytes; where they begin."""
        length, data, at, last = U64.unpack_from, self.data, self.at, self.limit - U64.size
        for _ in range(count):
            if at > last:
                raise self.damaged(OVERRUN)
            at += 8 + length(data, at)[0]
        return self.skip(at - self.at)

    def texts_between(self, first: int, end: int, starts: Array) -> list[str]:
        """Those whose `starts` are known: all are decoded at once, and parted at a zero that is left of each length."""
        data = np.frombuffer(self.data, np.uint8, end - first, first).copy()
        data[starts] = 0
        kept = data != 0
        if np.count_nonzero(kept) < len(data) - 8 * len(starts):  # a text has zeros itself
            return self.texts_at(first, len(starts))
        kept[starts] = True
        try:
            texts: str = data[kept].tobytes().decode()
        except UnicodeDecodeError as error:
            raise self.damaged(NOT_UTF8) from error
        return texts.split("\0")[1:]

    def texts_at(self, end: int, count: int) -> list[str]:
        length, data, found = U64.unpack_from, self.data, []
        try:
            for _ in range(count):
                start = end + 8
                end = start + length(data, end)[0]
                found.append(data[start:end].decode())
        except UnicodeDecodeError as error:
            raise self.damaged(NOT_UTF8) from error
        return found

    def numbers(self, code: str, start: int, count: int) -> list[Any]:
        values: list[Any] = np.frombuffer(self.data, code, count, start).tolist()
        return values


def _begun(path: Path) -> _Header:
    """A cursor behind magic number and version."""
    header = _Header(path)
    if header.data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"{path} is not a GGUF file", "it cannot be opened as one")
    header.skip(len(MAGIC))
    version = header.number(U32)
    if version not in (2, 3):
        kind = "is big-endian" if version & 0xFFFF == 0 else f"has version {version}"
        raise FormatError(f"{path} {kind}", "only little-endian GGUF 2 and 3 is read", "convert it anew")
    return header


def first_keys(path: Path) -> Metadata:
    """The keys before the vocabulary's: what the model is, without a look at the rest, which need not be there yet. Raises
    FormatError."""
    header = _begun(path)
    header.limit = min(header.limit, MAX_FIRST)
    header.count("tensors", MAX_ENTRIES)
    metadata = Metadata()
    for _ in range(header.count("keys", MAX_ENTRIES)):
        if (key := header.text()).startswith("tokenizer."):
            break
        metadata.add(key, header.value())
    return metadata


def _read_header(path: Path) -> tuple[Metadata, dict[str, StoredTensor]]:
    header = _begun(path)
    tensors, keys = header.count("tensors", MAX_ENTRIES), header.count("keys", MAX_ENTRIES)
    metadata = Metadata()
    for _ in range(keys):
        key = header.text()
        if key in metadata:
            raise header.damaged(f"key {shown(key)} is there twice")
        metadata.add(key, header.value())
    return metadata, _tensor_table(header, tensors, metadata.get("general.alignment", 32))


def _tensor_table(header: _Header, count: int, alignment: Any) -> dict[str, StoredTensor]:
    if type(alignment) is not int or not 0 < alignment <= MAX_HEADER or alignment % 8:
        raise header.damaged("general.alignment is not a multiple of 8")
    described = [_described(header, alignment) for _ in range(count)]
    base = header.at + -header.at % alignment
    end, table = base, {}
    for name, kind, shape, offset in sorted(described, key=lambda entry: entry[3]):
        tensor = StoredTensor(name, kind, shape, header.path, header.data, base + offset)
        if name in table or tensor.offset < end:
            raise header.damaged(f"tensor {shown(name)} is there twice, or lies over another one")
        end = tensor.offset + tensor.nbytes
        if end > len(header.data):
            raise header.damaged(f"tensor {shown(name)} of {tensor.nbytes} bytes does not fit in the file")
        table[name] = tensor
    return table


def _described(header: _Header, alignment: int) -> tuple[str, GGMLType, tuple[int, ...], int]:
    """Name, type, shape (rows first, which GGUF has last) and offset."""
    name, rank = header.text(), header.number(U32)
    if not 1 <= rank <= 4:
        raise header.damaged(f"tensor {shown(name)} has {rank} dimensions")
    shape = tuple(reversed([header.number(U64) for _ in range(rank)]))
    number, offset = header.number(U32), header.number(U64)
    kind = TYPES.get(number)
    if kind is None:
        what = f"tensor {shown(name)} of {header.path} is of type {UNSUPPORTED.get(number, number)}"
        raise FormatError(what, "it cannot be read", f"use one of {', '.join(kind.name for kind in TYPES.values())}")
    if 0 in shape or shape[-1] % kind.columns or (kind.split is not None and rank == 1):
        raise header.damaged(f"tensor {shown(name)} of type {kind.name} cannot have the shape {shape}")
    if offset % alignment:
        raise header.damaged(f"tensor {shown(name)} is not aligned")
    return name, kind, shape, offset


def read_parts(path: Path) -> tuple[Metadata, dict[str, StoredTensor]]:
    """Keys, and tensors by their names in the file; of split files the first part's keys and the tensors of all."""
    metadata, stored = _read_header(path)
    paths = part_paths(path, metadata)
    if len(paths) == 1:
        return metadata, stored
    parts = [_part(each, number, len(paths)) for number, each in enumerate(paths)]
    merged = {name: tensor for _, tensors in parts for name, tensor in tensors.items()}
    if len(merged) != sum(len(tensors) for _, tensors in parts) or len(merged) != metadata.get("split.tensors.count"):
        raise FormatError(f"{path} and its other parts do not add up", MIXED, "download them again")
    return parts[0][0], merged


def part_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The file, or all those that it is one of, by any one's keys. Raises FormatError where one is missing."""
    count = metadata.get("split.count", 1)
    if count in (0, 1):
        return [path]
    match = re.fullmatch(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", path.name)
    if not match or int(match[3]) != count:
        name = "NAME-00001-of-00003.gguf"
        raise FormatError(f"{path} is one of several parts", "the others cannot be found", f"name each like {name}")
    paths = [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}.gguf") for part in range(1, int(match[3]) + 1)]
    for each in paths:
        if not each.is_file():
            raise FormatError(f"{each} is missing", "the model is incomplete", "fetch all its parts into one folder")
    return paths


def _part(path: Path, number: int, count: int) -> tuple[Metadata, dict[str, StoredTensor]]:
    metadata, stored = _read_header(path)
    if (metadata.get("split.no"), metadata.get("split.count")) != (number, count):
        raise FormatError(f"{path} is not part {number + 1} of {count}", MIXED, "download them again")
    return metadata, stored
