"""Packed weights on disk: made at a model's first start, mapped at every later one. Bounded, the longest unused go first."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from llamachat import paths
from llamachat.engine.pack import MAGIC, Arena
from llamachat.errors import FormatError
from llamachat.fit import size
from llamachat.formats import Checkpoint
from llamachat.tensors import Tensor

LIMIT = 64_000_000_000  # bytes of all arenas
SPARE = 2_000_000_000  # bytes that stay free on the disk
TORN = 3600  # seconds after which nobody is still writing a file
SAMPLES, SAMPLE = 64, 4096  # of each file: so many pieces of so many bytes go into the fingerprint
SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")


def cached(
    checkpoint: Checkpoint, tensors: Callable[[], Iterator[tuple[str, Tensor]]], say: Callable[[str], None]
) -> Arena:
    """The arena of a checkpoint, packed into the cache folder if it is not there.

    Where the disk is full or may not be written, it is packed into memory, which `say` is told.
    """
    path = folder() / f"{fingerprint(checkpoint)}.arena"
    with suppress(OSError, FormatError):  # not there, or damaged: made anew
        arena = Arena.open(path)
        os.utime(path)
        return arena
    try:
        _make_room(sum(info.nbytes for info in checkpoint.index().values()))
        Arena.write(tensors(), path)
    except OSError as error:
        say(f"packed weights cannot be kept in {path.parent} ({error.strerror}); they are packed anew at every start")
        return Arena.build(tensors())
    return Arena.open(path)


def folder() -> Path:
    """Where arenas are kept."""
    return paths.cache_dir() / "packed"


def entries() -> list[Path]:
    """The arenas on disk, the longest unused first."""
    return sorted(folder().glob("*.arena"), key=lambda path: path.stat().st_mtime)


def clear() -> int:
    """Delete all arenas; returns the bytes freed. A running chat keeps what it has mapped."""
    return delete([*entries(), *folder().glob("*.part")])


def delete(paths: Iterable[Path]) -> int:
    """Delete files; returns the bytes freed."""
    freed = 0
    for path in paths:
        freed += path.stat().st_size
        path.unlink()
    return freed


def fingerprint(checkpoint: Checkpoint) -> str:
    """Of the packed layout, of how the tensors are coded, and of each weights file: its size, time and pieces of it."""
    state = hashlib.sha256(MAGIC)
    state.update(repr(getattr(checkpoint, "recipe", None)).encode())  # of weights that are quantized while loading
    for name, info in checkpoint.index().items():
        coding = info.packing and (info.packing.bits, info.packing.group, info.packing.table is not None)
        state.update(repr((name, info.shape, info.nbytes, coding)).encode())
    for file in _files(checkpoint.path):
        facts = file.stat()
        state.update(repr((file.name, facts.st_size, facts.st_mtime_ns)).encode())
        with file.open("rb") as stream:
            for piece in range(SAMPLES):
                stream.seek(facts.st_size * piece // SAMPLES)
                state.update(stream.read(SAMPLE))
    return state.hexdigest()[:32]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".pth", ".json")
        return sorted(file for file in path.iterdir() if file.suffix in kinds and file.is_file())
    split = SPLIT.fullmatch(path.name)
    return sorted(path.parent.glob(f"{split[1]}-*.gguf")) if split else [path]


def _make_room(needed: int) -> None:
    """For an arena of so many bytes. Raises OSError where there never is any."""
    folder().mkdir(parents=True, exist_ok=True)
    remove_torn(folder())
    if not make_room(entries(), needed, max(LIMIT, needed), SPARE, _free):
        raise OSError(28, f"{size(_free())} are free")


def make_room(held: Sequence[Path], needed: int, limit: float, spare: int, free: Callable[[], int]) -> bool:
    """Delete the first of `held` until so many bytes more make at most `limit`, and leave `spare` of the disk free.

    False, and nothing is deleted, where that would not do.
    """
    sizes = {path: path.stat().st_size for path in held}
    if needed > limit or free() + sum(sizes.values()) < needed + spare:
        return False
    while sizes and (sum(sizes.values()) + needed > limit or free() < needed + spare):
        oldest = next(iter(sizes))
        oldest.unlink(missing_ok=True)
        del sizes[oldest]
    return free() >= needed + spare


def remove_torn(folder: Path) -> None:
    """Delete what kills left of files that were being written."""
    for path in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > TORN:
                path.unlink()


def _free() -> int:
    return shutil.disk_usage(folder()).free
