"""Packed weights on disk: made at a model's first start, mapped at every later one."""

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llamachat import paths
from llamachat.engines.memory import size
from llamachat.engines.native.pack import Packable
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import FormatError
from llamachat.formats import Checkpoint
from llamachat.models.disk_cache import DiskCache
from llamachat.models.keys import weights_key
from llamachat.system import known, private

LIMIT = 64_000_000_000  # bytes of all files
SPARE = 2_000_000_000  # bytes that stay free on the disk


def store() -> DiskCache:
    """Where packed weights are kept."""
    return DiskCache(paths.cache_dir() / "packed", ".arena", LIMIT, SPARE)


def place(checkpoint: Checkpoint) -> Path:
    """The file for the packed weights of this checkpoint as it is now. Raises OSError."""
    return store().folder / f"{weights_key(checkpoint)}.arena"


def cached(
    checkpoint: Checkpoint, tensors: Callable[[], Iterator[tuple[str, Packable]]], say: Callable[[str], None]
) -> PackedWeights:
    """The packed weights of a checkpoint, packed into the cache folder if they are not there whole; if a file was, `say` is told.

    Where the disk is full or may not be written, they are packed into memory, which `say` is told. Raises FormatError where the
    model's files change meanwhile.
    """
    path = place(checkpoint)
    if (weights := _kept(path, checkpoint, say)) is not None:
        return weights
    try:
        _make_room(sum(info.nbytes for info in checkpoint.index().values()))
        PackedWeights.write(tensors(), path, path.stem)
    except OSError as error:
        say(f"packed weights cannot be kept in {path.parent} ({error.strerror}); they are packed anew at every start")
        return PackedWeights.build(tensors())
    if place(checkpoint) != path:
        path.unlink()
        raise FormatError(f"{checkpoint.path} changed while it was read", "it was not loaded", "start again")
    weights = PackedWeights.open(path, path.stem)
    _remember(path, weights)
    return weights


def _kept(path: Path, checkpoint: Checkpoint, say: Callable[[str], None]) -> PackedWeights | None:
    """The packed weights that are there, if nothing is wrong with them; they are read whole where they may have changed."""
    try:
        if trouble := private.trouble(path):
            raise FormatError(trouble)
        weights = PackedWeights.open(path, path.stem)
        weights.require(checkpoint.config.tensor_shapes())
        if not known.is_known(path, weights.digest):
            weights.verify()
            _remember(path, weights)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        say(f"the packed weights that were kept are not used: {error}; they are packed anew")
        return None
    known.use(path)
    return weights


def _remember(path: Path, weights: PackedWeights) -> None:
    with suppress(OSError):  # a cache that may not be written: it is read again next time
        known.remember(path, weights.digest)


def _make_room(needed: int) -> None:
    """For a file of so many bytes; one that is larger than all may be is kept alone. Raises OSError."""
    kept = store()
    if not kept.make_room(needed, max(LIMIT, needed)):
        raise OSError(errno.ENOSPC, f"{size(kept.free())} are free")
