"""Packed weights: made in memory at a start, and kept on disk where that makes the next one quicker (see packed_copy.py), from
where they are mapped."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamachat import paths
from llamachat.checks import require
from llamachat.engines import memory
from llamachat.engines.native.pack import Packable, pack, packed_bytes
from llamachat.engines.native.packed_file import PackedWeights, about
from llamachat.errors import DoesNotFitError, FormatError, UsageError
from llamachat.events import Progress
from llamachat.formats import Checkpoint
from llamachat.models.disk_cache import DiskCache
from llamachat.models.keys import code, weights_key
from llamachat.system import known, private
from llamachat.system.amounts import parse_size, size

SHARE = 10  # the cache has one part in so many of the disk that is free or its own, unless it is told how much
SPARE = 2_000_000_000  # bytes that stay free on the disk
OFF = "off"
STALE = 7 * 24 * 3600  # seconds unused after which what another version packed is deleted

Tensors = Callable[[], Iterator[tuple[str, Packable]]]


def limit_of(asked: str | None) -> int | None:
    """Bytes that the cache may have, of what --pack-cache was given; None: a share of the disk. Raises UsageError."""
    if asked is None:
        return None
    limit = 0 if asked.strip().lower() == OFF else parse_size(asked)
    require(limit is not None, "pack-cache", asked, "a size such as 5GB or 500MB, or off", UsageError)
    return limit


def store(limit: int | None = None) -> DiskCache:
    """Where packed weights are kept, in so many bytes."""
    kept = DiskCache(paths.cache_dir() / "packed", ".arena", 0, SPARE)
    most = (kept.free() + kept.held()) // SHARE if limit is None else limit
    return DiskCache(kept.folder, kept.suffix, most, SPARE)


def place(checkpoint: Checkpoint) -> Path:
    """The file for the packed weights of this checkpoint as it is now. Raises OSError."""
    return store(0).folder / f"{weights_key(checkpoint)}.arena"


def made_of(path: Path) -> dict[str, str] | None:
    """Name and path of the model that a kept file was packed from; None where it does not say."""
    with suppress(OSError, ValueError, FormatError):
        facts = about(path)
        return facts if facts and {"name", "path", "code"} <= facts.keys() else None
    return None


def tidy(kept: DiskCache) -> int:
    """Delete what no start will map again; returns the bytes freed."""
    return kept.delete(filter(_is_stale, kept.entries()))


def _is_stale(path: Path) -> bool:
    """Whether it is in another version's layout, or another version packed it and has not used it for long."""
    with suppress(OSError, ValueError, FormatError):
        facts = about(path)
        return facts is None or (facts.get("code") != code() and time.time() - known.last_use(path) > STALE)
    return False


@dataclass(frozen=True)
class Fresh:
    """Weights that have just been packed into memory. `path`: the file that they would be kept in; `seconds`: what it took."""

    weights: PackedWeights
    path: Path
    about: dict[str, str]
    seconds: float


@dataclass
class Packer:
    """Packs the weights of a model that goes by a name, or has them packed already; `fresh`: what it has packed into memory."""

    name: str
    limit: int | None  # of the cache: see store
    progress: Progress
    fresh: Fresh | None = None

    def __call__(self, checkpoint: Checkpoint, tensors: Tensors, say: Callable[[str], None]) -> PackedWeights:
        """`say` is told where a file that was kept cannot be used. Raises DoesNotFitError where neither memory nor the cache can
        hold them, FormatError where the model's files change meanwhile, OSError."""
        path = place(checkpoint)
        if (weights := _kept(path, checkpoint, say)) is not None:
            return weights
        expected = sum(packed_bytes(info) for info in checkpoint.index().values())
        facts = {"name": self.name, "path": str(checkpoint.path), "code": code()}

        def told(done: int) -> None:
            self.progress("packing", min(done, expected), expected)

        if expected > memory.available_memory():
            return self._packed_on_disk(path, checkpoint, tensors, facts, expected, told)
        begin = time.perf_counter()
        weights = PackedWeights.build(tensors(), expected, told)
        self.fresh = Fresh(weights, path, facts, time.perf_counter() - begin)
        _require_same(path, checkpoint)
        return weights

    def _packed_on_disk(
        self,
        path: Path,
        checkpoint: Checkpoint,
        tensors: Tensors,
        facts: dict[str, str],
        expected: int,
        told: Callable[[int], None],
    ) -> PackedWeights:
        """Of a model that is larger than memory, which the system then reads as it is needed."""
        kept = store(self.limit)
        try:
            with kept.alone():
                tidy(kept)
                if not kept.make_room(expected):
                    raise OSError(errno.ENOSPC, f"the cache may have {size(kept.limit)}, {size(kept.free())} are free")
                packed = ((name, pack(tensor)) for name, tensor in tensors())
                known.remember(path, PackedWeights.write(packed, path, path.stem, facts, told))
        except OSError as error:
            cause = f"{size(expected)} of packed weights fit neither in memory nor in {path.parent} ({error.strerror})"
            remedy = f"make room, and `llamachat config set pack-cache {size(expected * 1.1).replace(' ', '')}`"
            raise DoesNotFitError(cause, "the model was not loaded", remedy) from error
        try:
            _require_same(path, checkpoint)
        except FormatError:
            kept.delete([path])
            raise
        return PackedWeights.open(path, path.stem)


def _require_same(path: Path, checkpoint: Checkpoint) -> None:
    """Raises FormatError where this is no longer the checkpoint's place."""
    if place(checkpoint) != path:
        raise FormatError(f"{checkpoint.path} changed while it was read", "it was not loaded", "start again")


def _kept(path: Path, checkpoint: Checkpoint, say: Callable[[str], None]) -> PackedWeights | None:
    """The packed weights that are there, if nothing is wrong with them; they are read whole where they may have changed. What
    is wrong goes."""
    try:
        if trouble := private.trouble(path):
            raise FormatError(trouble)
        weights = PackedWeights.open(path, path.stem)
        weights.require(checkpoint.config.tensor_shapes())
        if not known.is_known(path, weights.digest):
            weights.verify()
            remember(path, weights.digest)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        say(f"the packed weights that were kept are not used: {error}; they are packed anew")
        with suppress(OSError):
            DiskCache.delete([path])
        return None
    known.use(path)
    return weights


def remember(path: Path, digest: str) -> None:
    """That a kept file has it."""
    with suppress(OSError):  # a cache that may not be written: it is read again next time
        known.remember(path, digest)
