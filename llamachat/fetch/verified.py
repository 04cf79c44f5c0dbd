"""Files that were fetched: is there room for one, is it whole, and is anyone else fetching it? For fetch_*.py only."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamachat import paths
from llamachat.errors import CatalogError
from llamachat.fit import size

Progress = Callable[[str, int, int | None], None]  # what is being done, bytes done, bytes in all if known
CHUNK = 1 << 20


def digest(file: Path, progress: Progress, git: bool = False) -> str:
    """sha256 of the file as hex, or (git) the sha1 that git gives to a blob of this content."""
    total, done = file.stat().st_size, 0
    state = hashlib.sha1(b"blob %d\0" % total, usedforsecurity=False) if git else hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
            done += len(chunk)
            progress(f"checking {file.name[:40]}", done, total)
    return state.hexdigest()


def is_intact(file: Path, expected: str, progress: Progress) -> bool:
    """Has the file this digest (sha256, or git's sha1)? Read once, then known until its size or time changes."""
    if is_known(file, expected):
        return True
    if digest(file, progress, git=len(expected) == 40) != expected:
        return False
    with suppress(OSError):  # a cache that may not be written: it is read again next time
        remember(file, expected)
    return True


def is_known(file: Path, expected: str) -> bool:
    stamp = _stamp(file)
    return file.is_file() and stamp.is_file() and stamp.read_bytes() == _state(file, expected)


def remember(file: Path, verified: str) -> None:
    stamp = _stamp(file)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_bytes(_state(file, verified))  # torn by a crash, it matches nothing, and the file is read again


def _stamp(file: Path) -> Path:
    return paths.cache_dir() / "verified" / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]


def _state(file: Path, verified: str) -> bytes:
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns} {verified}".encode()


def require_room(folder: Path, needed: int, name: str) -> None:
    """Raises CatalogError unless so many bytes are free on the disk of this folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        cause = f"{name} needs {size(needed)} of disk and {folder} has {size(free)}"
        raise CatalogError(cause, "it was not fetched", "make room there")


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder; links count nothing."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # somebody just removed it
                status = Path(top, name).lstat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold this lock file; waits for another process that holds it, and outlives no process."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file):
        yield
