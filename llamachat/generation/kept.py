"""Names of the files of kept keys and values: what they are of can be told from them without the model that made them."""

import hashlib
from contextlib import suppress
from pathlib import Path

from llamachat import paths

SUFFIX = ".kv"


def folder() -> Path:
    return paths.cache_dir() / "snapshots"


def stem(what: str, key: str) -> str:
    """The name, without its suffix, of what was kept of `what` (a dialog, a prefix) by whatever has this key."""
    return f"{_mark(what)}-{key}"


def forget(what: str) -> int:
    """Delete all that was kept of it, by any model; returns the bytes freed. Raises OSError."""
    freed = 0
    for path in folder().glob(f"{_mark(what)}-*{SUFFIX}"):
        with suppress(FileNotFoundError):  # another chat has just made room
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _mark(what: str) -> str:
    return hashlib.sha256(what.encode(errors="replace")).hexdigest()[:16]
