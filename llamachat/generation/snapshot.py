"""Keys and values on disk, so that a dialog goes on, or a fixed beginning is used again, without a new prefill.

A file is one line of JSON (what is in it, and the sha256 of that and of the rest), then the log's ids and the engine's
arrays as they are. It is only ever read by the model, adapters, engine, kind of cache, window and dialog format that its name
is a key of. Anything wrong with it is no error: it is told, and the tokens are computed anew.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamachat.checks import is_whole
from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.errors import FormatError
from llamachat.generation import kept
from llamachat.models.disk_cache import DiskCache
from llamachat.models.keys import key, text_key
from llamachat.models.load import LoadedModel
from llamachat.system import private
from llamachat.system.metadata import is_record, parse_json

LIMIT = 2_000_000_000  # bytes of all snapshots
SPARE = 1_000_000_000  # bytes that stay free on the disk
HEADER = 1 << 22  # bytes that a header may have
AXES = 8  # of an array
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32")
FIELDS = {"key": str, "pinned": int, "evicted": int, "arrays": list, "about": dict, "sha256": str}  # of a header

Arrays = Mapping[str, NDArray[Any]]


def store() -> DiskCache:
    """Where snapshots are kept."""
    return DiskCache(kept.folder(), kept.SUFFIX, LIMIT, SPARE)


def place(model: LoadedModel, what: str) -> Path:
    """The file for `what` (a dialog, a prefix) with this very model, adapters, tokenizer, engine, kind of cache, window and
    format.

    Raises OSError where the model's files have gone.
    """
    engine, entry = model.engine, model.entry
    made = key([text_key(model.checkpoint), model.adapters.key, engine.describe(), engine.slots, entry.dialog, what])
    return store().folder / (kept.stem(what, made) + kept.SUFFIX)


def save(path: Path, engine: Engine, cache: Cache, about: Mapping[str, Any]) -> bool:
    """Keep the cache's content, and `about` it (JSON); False where there is nothing to keep or no room. Raises OSError."""
    if not cache.log or (
        cache.free and cache.plan(1).pinned
    ):  # what the next step would rotate first is not as it will be
        return False
    slots = _slots(cache)
    if len(cache) * sum(array.nbytes for array in engine.save_kv(slots[-1:]).values()) > LIMIT:
        return False  # before the memory for it is taken
    arrays = {"log": np.asarray(cache.log, np.int32), **engine.save_kv(slots)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    parts = [array.data.cast("B") for array in arrays.values()]
    shapes = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    held = {"key": path.stem, "pinned": cache.pinned, "evicted": cache.evicted, "arrays": shapes, "about": about}
    header = json.dumps({**held, "sha256": digest(held, parts)}).encode() + b"\n"
    if len(header) > HEADER or not store().make_room(sum(part.nbytes for part in parts), besides=path):
        return False
    with private.writing(path) as file:
        file.writelines([header, *parts])
    return True


def restore(path: Path, engine: Engine, cache: Cache, say: Callable[[str], None]) -> Any | None:
    """Put what was kept into an empty cache and its engine, and return what was said about it; None where that cannot be.

    `say` is told where something is wrong with what was kept.
    """
    assert not cache.log
    try:
        if trouble := private.trouble(path):
            raise FormatError(trouble)
        held, arrays = _read(path)
        log = arrays.pop("log").tolist()
        if len(log) > cache.size or held["pinned"] >= cache.size or max(log) >= engine.config.vocab_size:
            raise FormatError(f"{path} does not fit this model")
        cache.pin(held["pinned"])
        cache.log, cache.evicted = log, held["evicted"]
        index = np.arange(len(log), dtype=np.int64)
        engine.load_kv(_slots(cache), index + cache.evicted, arrays)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, FormatError) as error:
        cache.log, cache.evicted = [], 0
        say(f"the keys and values that were kept are not used: {error}; they are computed anew")
        return None
    return held["about"]


def digest(held: Mapping[str, Any], parts: Iterable[memoryview]) -> str:
    """Of the header, apart from this, and of what follows it."""
    digest = hashlib.sha256(json.dumps({name: held[name] for name in held if name != "sha256"}).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _slots(cache: Cache) -> NDArray[np.int64]:
    return cache.slots(np.arange(len(cache), dtype=np.int64))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Raises OSError, ValueError and FormatError for anything that `save` did not write there."""
    with path.open("rb") as file:
        line = file.readline(HEADER)
        held = parse_json(line, str(path), FormatError)
        if not is_record(held, FIELDS) or held["key"] != path.stem:
            raise damaged(path)
        sizes = {name: (kind, shape, _size(path, kind, shape)) for name, kind, shape in _listed(path, held["arrays"])}
        body_size = sum(size for _, _, size in sizes.values())
        if len(line) + body_size != path.stat().st_size or body_size > LIMIT:
            raise damaged(path)
        body = np.fromfile(file, np.uint8, body_size)
    if digest(held, [body.data]) != held["sha256"]:
        raise damaged(path)
    arrays, at = {}, 0
    for name, (kind, shape, size) in sizes.items():
        arrays[name] = np.require(body[at : at + size].view(kind).reshape(shape), requirements="A")
        at += size
    _check(path, held, arrays)
    return held, arrays


def damaged(path: Path) -> FormatError:
    """What is there is nothing that `save` wrote."""
    return FormatError(f"{path} is damaged")


def _listed(path: Path, listing: list[Any]) -> list[tuple[str, str, list[int]]]:
    """(name, type, shape) of each array, no name twice."""
    if not all(isinstance(entry, list) and len(entry) == 3 for entry in listing):
        raise damaged(path)
    names = [name for name, _, _ in listing]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise damaged(path)
    return [(name, kind, shape) for name, kind, shape in listing]


def _size(path: Path, kind: object, shape: object) -> int:
    if kind not in TYPES or not isinstance(shape, list) or len(shape) > AXES:
        raise damaged(path)
    if not all(is_whole(n) and 0 <= n < 2**40 for n in shape):
        raise damaged(path)
    return math.prod(shape) * np.dtype(str(kind)).itemsize


def _check(path: Path, held: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """The numbers must be such that a cache can have them; the engine looks at its arrays itself, and who asked at `about`."""
    log, pinned, evicted = arrays.get("log"), held["pinned"], held["evicted"]
    if log is None or log.dtype != np.int32 or log.ndim != 1 or not len(log) or log.min() < 0:
        raise damaged(path)
    if not 0 <= pinned <= len(log) or not 0 <= evicted < 2**40:
        raise damaged(path)
