"""Keys and values on disk, so that a dialog goes on, or a fixed beginning is used again, without a new prefill.

A file is one line of JSON (what is in it, and the sha256 of that and of the rest), then the log's ids and the engine's
arrays as they are. It is only ever read by the model, engine, kind of cache, window and dialog format that its name is a
fingerprint of. Anything wrong with it is no error: the tokens are computed anew.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamachat import paths
from llamachat.arena_cache import delete, fingerprint, make_room, remove_torn
from llamachat.cache import Cache
from llamachat.config import is_whole
from llamachat.engine import Engine
from llamachat.errors import FormatError
from llamachat.load import LoadedModel

LIMIT = 2_000_000_000  # bytes of all snapshots
SPARE = 1_000_000_000  # bytes that stay free on the disk
HEADER = 1 << 22  # bytes that a header may have
AXES = 8  # of an array
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32")
SUFFIX = ".kv"

Arrays = Mapping[str, NDArray[Any]]


def folder() -> Path:
    """Where snapshots are kept."""
    return paths.cache_dir() / "snapshots"


def entries() -> list[Path]:
    """The snapshots on disk, the longest unused first."""
    return sorted(folder().glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime)


def clear() -> int:
    """Delete them all; returns the bytes freed."""
    return delete([*entries(), *folder().glob("*.part")])


def place(model: LoadedModel, what: str) -> Path:
    """The file for `what` (a dialog, a prefix) with this very model, engine, kind of cache, window and format."""
    engine = model.engine
    template = model.entry.dialog, model.checkpoint.chat_template
    facts = (fingerprint(model.checkpoint), engine.describe(), engine.slots, template, what)
    return folder() / (hashlib.sha256(repr(facts).encode()).hexdigest()[:32] + SUFFIX)


def save(path: Path, engine: Engine, cache: Cache, about: Mapping[str, Any]) -> bool:
    """Keep the cache's content, and `about` it (JSON); False where there is nothing to keep or no room. Raises OSError."""
    if not cache.log or (
        cache.free and cache.plan(1).pinned
    ):  # what the next step would turn first is not as it will be
        return False
    slots = _slots(cache)
    if len(cache) * sum(array.nbytes for array in engine.export(slots[-1:]).values()) > LIMIT:
        return False  # before the memory for it is taken
    arrays = {"log": np.asarray(cache.log, np.int32), **engine.export(slots)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    parts = [array.data.cast("B") for array in arrays.values()]
    shapes = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    held = {"pinned": cache.pinned, "evicted": cache.evicted, "arrays": shapes, "about": about}
    header = json.dumps({**held, "sha256": _digest(held, parts)}).encode() + b"\n"
    if len(header) > HEADER or not _make_room(sum(part.nbytes for part in parts), path):
        return False
    _write(path, [header, *parts])
    return True


def restore(path: Path, engine: Engine, cache: Cache, about: Any = None) -> Any | None:
    """Put what was kept into an empty cache and its engine, and return what was said about it; None where that cannot be.

    `about`: nothing that was said to be about something else is taken.
    """
    assert not cache.log
    try:
        held, arrays = _read(path)
        if about is not None and held["about"] != about:
            return None
        log = arrays.pop("log").tolist()
        if len(log) > cache.size or held["pinned"] >= cache.size or max(log) >= engine.config.vocab_size:
            return None
        cache.pin(held["pinned"])
        cache.log, cache.evicted = log, held["evicted"]
        index = np.arange(len(log), dtype=np.int64)
        engine.restore(_slots(cache), index + cache.evicted, arrays)
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, FormatError):
        cache.log, cache.evicted = [], 0
        return None
    return held["about"]


def _digest(held: Mapping[str, Any], parts: Iterable[memoryview]) -> str:
    """Of the header, apart from this, and of what follows it."""
    digest = hashlib.sha256(json.dumps({name: held[name] for name in held if name != "sha256"}).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _slots(cache: Cache) -> NDArray[np.int64]:
    return cache.slots(np.arange(len(cache), dtype=np.int64))


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """All of it or nothing, readable by the owner only."""
    file, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")  # made with mode 0600
    try:
        with os.fdopen(file, "wb") as stream:
            stream.writelines(parts)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Raises ValueError and its like for anything that `save` did not write."""
    with path.open("rb") as file:
        line = file.readline(HEADER)
        held = json.loads(line)
        shapes = [(name, kind, shape) for name, kind, shape in held["arrays"]]
        sizes = [_size(kind, shape) for _, kind, shape in shapes]
        whole = len(line) + sum(sizes) == path.stat().st_size and sum(sizes) <= LIMIT
        if not whole or not {"pinned", "evicted", "about", "sha256"} < held.keys():
            raise ValueError
        body = np.fromfile(file, np.uint8, sum(sizes))
    if _digest(held, [body.data]) != held["sha256"]:
        raise ValueError
    arrays, at = {}, 0
    for (name, kind, shape), size in zip(shapes, sizes, strict=True):
        arrays[str(name)] = np.require(body[at : at + size].view(kind).reshape(shape), requirements="A")
        at += size
    return _checked(held, arrays), arrays


def _size(kind: object, shape: object) -> int:
    if kind not in TYPES or not isinstance(shape, list) or len(shape) > AXES:
        raise ValueError
    if not all(is_whole(n) and 0 <= n < 2**40 for n in shape):
        raise ValueError
    return math.prod(shape) * np.dtype(str(kind)).itemsize


def _checked(held: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The numbers must be such that a cache can have them; the engine looks at its arrays itself."""
    log, pinned, evicted = arrays["log"], held["pinned"], held["evicted"]
    if log.dtype != np.int32 or log.ndim != 1 or not is_whole(pinned) or not is_whole(evicted):
        raise ValueError
    if not 0 <= pinned <= len(log) or not 0 <= evicted < 2**40 or not len(log) or log.min() < 0:
        raise ValueError
    return held


def _make_room(needed: int, path: Path) -> bool:
    """Delete the longest unused snapshots until this one may be added; none, and False, when it never may."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_torn(folder())
    return make_room([each for each in entries() if each != path], needed, LIMIT, SPARE, _free)


def _free() -> int:
    return shutil.disk_usage(folder()).free
