"""A checkpoint as a table of tensors that are read when asked for: what the readers of all formats share."""

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llamachat.checks import shown
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Array, FloatTensor, QuantTensor, Tensor, TensorInfo
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, reader, reading
from llamachat.families.family import Layout
from llamachat.formats.ggml import BlockInfo
from llamachat.formats.labels import Labels
from llamachat.formats.parts import WHOLE, Part, Parts, taken, zeros
from llamachat.system import mapped

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16))


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's shape and stored size, and how to get a part of it."""

    info: TensorInfo
    source: Callable[[Part], Tensor]

    def read(self, part: Part = WHOLE) -> Tensor:
        """What parts.cut gives of the whole. Of a part no more is read than the format's blocks that hold it."""
        return zeros(part.shape(self.info.shape)) if part.zero else self.source(part)


@dataclass
class LazyCheckpoint:
    """See formats.Checkpoint, which this is one of."""

    path: Path
    config: ModelSpec
    entries: Mapping[str, LazyTensor]
    tokenizer_folder: Path
    sampling: Mapping[str, Any]
    ignored: tuple[str, ...]
    files: tuple[Path, ...]
    chat_template: str | None = None
    pooling: str | None = None
    labels: Labels | None = None
    recipe: None = None
    layout: Layout = field(default_factory=Layout)

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        from llamachat.tokenizers.open import files_in

        return files_in(self.tokenizer_folder)

    def index(self) -> Mapping[str, TensorInfo]:
        return {name: entry.info for name, entry in self.entries.items()}

    def tensors(self, parts: Parts | None = None) -> Iterator[tuple[str, Tensor]]:
        return read_all(self.entries, self.path, parts)

    def tokenizer(self) -> Tokenizer:
        from llamachat.tokenizers.open import open_folder

        return open_folder(self.tokenizer_folder)


def read_all(
    entries: Mapping[str, LazyTensor], where: Path, parts: Parts | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, or the part of it, as it is asked for. Raises FormatError for one that cannot be read."""
    for name, entry in entries.items():
        with reading(f"tensor {shown(name)} of {where}"):
            tensor = entry.read((parts or {}).get(name, WHOLE))
        yield name, tensor


def float_entry(name: str, array: Array) -> LazyTensor:
    """A float array as it lies in its file."""
    if array.dtype not in FLOATS:
        raise FormatError(f"tensor {shown(name)} holds {array.dtype}", "it is not a float weight")
    return LazyTensor(TensorInfo(array.shape, array.nbytes), partial(float_part, array))


def float_part(array: Array, part: Part) -> FloatTensor:
    """Of a float array in a file: rows as they lie there, and a copy of columns."""
    return FloatTensor(aligned(taken(array, part)))


def reordered(lazy: LazyTensor, order: Array, info: TensorInfo) -> LazyTensor:
    """Some rows of a tensor in this order. Of a part of them are read those from the first to the last that it has."""
    if isinstance(info, BlockInfo) and info.blocks is not None:
        info = replace(info, blocks=replace(info.blocks, order=order))

    def source(part: Part) -> Tensor:
        rows = order if part.rows is None else order[part.rows]
        first = int(rows.min())
        return lazy.read(replace(part, rows=slice(first, int(rows.max()) + 1))).rows(rows - first)

    return LazyTensor(info, source)


def aligned(array: Array) -> Array:
    """The array itself, or a copy if it lies crookedly in its file."""
    return np.require(array, requirements=["C", "A"])


def packing(
    columns: int, group: int, bits: Literal[4, 8], table: Array | None = None, minimum: bool = False
) -> QuantTensor:
    """TensorInfo's packing of a matrix with float32 scales."""
    codes = np.zeros((0, columns * bits // 8), np.uint8 if bits == 4 else np.int8)
    scale = np.zeros((0, columns // group), np.float32)
    return QuantTensor(codes, scale, group, bits, table, scale if minimum else None)


def matched(entries: Mapping[str, LazyTensor], config: ModelSpec, where: Path) -> dict[str, LazyTensor]:
    """The entries in the model's order. Raises FormatError unless they are exactly the tensors that it has."""
    mixtures = config.num_hidden_layers - len(set(config.dense_layers)) if config.experts else 0
    least = max(config.num_hidden_layers, mixtures * (config.experts.count if config.experts else 0))
    if least > len(entries):  # before a list of millions of tensors is made
        raise FormatError(
            f"{where} has {len(entries)} tensors for {config.num_hidden_layers} layers", "it is incomplete"
        )
    shapes = config.tensor_shapes()
    if missing := sorted(shapes.keys() - entries.keys()):
        raise FormatError(f"{where} lacks {listed(missing)}", "the model is incomplete", "fetch its files again")
    if unknown := sorted(entries.keys() - shapes.keys()):
        raise FormatError(f"{where} holds {listed(unknown)}", "a model of this configuration has no such tensor")
    for name, shape in shapes.items():
        if entries[name].info.shape != shape:
            found = entries[name].info.shape
            raise FormatError(f"{shown(name)} in {where} is {found}", f"the configuration asks for {shape}")
    return {name: entries[name] for name in shapes}


def tokenizer_home(folder: Path) -> Path:
    """Where the tokenizer lies: beside the weights, or one folder up, as in releases of several sizes."""
    up = folder.resolve().parent
    return up if not (folder / "tokenizer.model").is_file() and (up / "tokenizer.model").is_file() else folder


def refuse_empty(path: Path) -> None:
    """Raises FormatError for a file without a byte, as a download leaves it that never began."""
    if path.is_file() and path.stat().st_size == 0:
        raise FormatError(f"{path} is empty", "there is nothing to read", "fetch it again")


@reader
def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, read-only, loaded by the system page by page as they are touched. Raises FormatError."""
    refuse_empty(path)
    with path.open("rb") as file:
        return mapped.map_file(file)


def listed(names: list[str]) -> str:
    """A few of the names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + rest
