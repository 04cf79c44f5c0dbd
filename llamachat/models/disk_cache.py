"""A folder of large files that can all be had again: bounded, the longest unused go first. What is kept is in packed_weights.py
and generation/snapshot.py."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import UsageError
from llamachat.system import known, private

try:
    import fcntl
except ImportError:  # Windows, where a half-written file is nobody's when it is old enough
    fcntl = None  # type: ignore[assignment]

TORN = 3600  # seconds after which nobody is still writing a file
PART = ".part"


@contextmanager
def deleting(consequence: str) -> Iterator[None]:
    """Raises UsageError for what the disk does not let us delete."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be deleted: {error.strerror}", consequence) from error


@dataclass(frozen=True)
class DiskCache:
    """`limit`: bytes of all files; `spare`: bytes that stay free on the disk."""

    folder: Path
    suffix: str
    limit: float
    spare: int

    def entries(self) -> list[Path]:
        """The files that are kept, the longest unused first. What another user has is left alone."""
        return sorted(filter(private.is_mine, self.folder.glob("*" + self.suffix)), key=known.last_use)

    def clear(self) -> int:
        """Delete them all; returns the bytes freed. Who has one mapped keeps it."""
        return self.delete([*self.entries(), *self._torn()])

    def cut(self) -> int:
        """Delete the longest unused until the limit holds; returns the bytes freed."""
        freed, sizes = 0, self._sizes()
        while sum(sizes.values()) > self.limit:
            oldest = next(iter(sizes))
            freed += self.delete([oldest])
            del sizes[oldest]
        return freed

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else writes here, as long as the context: what is half written then is nobody's, and goes. Raises
        OSError."""
        private.folder(self.folder)
        if fcntl is None:
            yield True
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.delete(self._torn())
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(handle)

    def make_room(self, needed: int, limit: float | None = None, besides: Path | None = None) -> bool:
        """Delete the longest unused until so many bytes more may be written, in the place of `besides` if it is there.

        False, and nothing is deleted, where that would not do. Raises OSError where the folder cannot be had, or is not safe.
        """
        private.folder(self.folder)
        if trouble := private.trouble(self.folder):
            raise OSError(1, trouble, str(self.folder))
        self.delete(path for path in self._torn() if time.time() - path.stat().st_mtime > TORN)
        sizes = {path: size for path, size in self._sizes().items() if path != besides}
        limit = self.limit if limit is None else limit
        if needed > limit or self.free() + sum(sizes.values()) < needed + self.spare:
            return False
        while sizes and (sum(sizes.values()) + needed > limit or self.free() < needed + self.spare):
            oldest = next(iter(sizes))
            self.delete([oldest])
            del sizes[oldest]
        return self.free() >= needed + self.spare

    @staticmethod
    def delete(paths: Iterable[Path]) -> int:
        """Returns the bytes freed; what somebody else just deleted counts nothing."""
        freed = 0
        for path in paths:
            with suppress(FileNotFoundError):
                known.forget(path)
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def free(self) -> int:
        """Bytes free on its disk."""
        there = next(each for each in (self.folder, *self.folder.parents) if each.exists())
        return shutil.disk_usage(there).free

    def held(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes().values())

    def _sizes(self) -> dict[Path, int]:
        """The longest unused first."""
        sizes = dict[Path, int]()
        for path in self.entries():
            with suppress(FileNotFoundError):  # somebody else has just made room
                sizes[path] = path.stat().st_size
        return sizes

    def _torn(self) -> list[Path]:
        """What is being written, and what kills left of that."""
        return list(filter(private.is_mine, self.folder.glob("*" + PART)))
