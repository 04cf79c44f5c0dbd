"""A folder of large files that can all be had again: bounded, the longest unused go first. What is kept is in packed_weights.py
and generation/snapshot.py."""

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamachat.system import known, private

TORN = 3600  # seconds after which nobody is still writing a file
PART = ".part"


@dataclass(frozen=True)
class DiskCache:
    """`limit`: bytes of all files; `spare`: bytes that stay free on the disk."""

    folder: Path
    suffix: str
    limit: float
    spare: int

    def entries(self) -> list[Path]:
        """The files that are kept, the longest unused first."""
        return sorted(self.folder.glob("*" + self.suffix), key=known.last_use)

    def clear(self) -> int:
        """Delete them all; returns the bytes freed. Who has one mapped keeps it."""
        return _delete([*self.entries(), *self._torn()])

    def make_room(self, needed: int, limit: float | None = None, besides: Path | None = None) -> bool:
        """Delete the longest unused until so many bytes more may be written, in the place of `besides` if it is there.

        False, and nothing is deleted, where that would not do. Raises OSError where the folder cannot be had, or is not safe.
        """
        private.folder(self.folder)
        if trouble := private.trouble(self.folder):
            raise OSError(1, trouble, str(self.folder))
        _delete(path for path in self._torn() if time.time() - path.stat().st_mtime > TORN)
        sizes = {path: path.stat().st_size for path in self.entries() if path != besides and path.exists()}
        limit = self.limit if limit is None else limit
        if needed > limit or self.free() + sum(sizes.values()) < needed + self.spare:
            return False
        while sizes and (sum(sizes.values()) + needed > limit or self.free() < needed + self.spare):
            oldest = next(iter(sizes))
            _delete([oldest])
            del sizes[oldest]
        return self.free() >= needed + self.spare

    def free(self) -> int:
        """Bytes free on its disk."""
        return shutil.disk_usage(self.folder).free

    def _torn(self) -> list[Path]:
        """What is being written, and what kills left of that."""
        return [path for path in self.folder.iterdir() if path.suffix == PART] if self.folder.is_dir() else []


def _delete(paths: Iterable[Path]) -> int:
    """Returns the bytes freed; what somebody else just deleted counts nothing."""
    freed = 0
    for path in paths:
        with suppress(FileNotFoundError):
            known.forget(path)
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed
