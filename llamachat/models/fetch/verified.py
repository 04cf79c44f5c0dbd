"""Files that were fetched: is there room for one, is it whole, and is anyone else fetching it? For fetch_*.py only."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamachat.engines.memory import size
from llamachat.errors import CatalogError
from llamachat.events import Progress
from llamachat.system import private
from llamachat.system.known import is_known, remember

CHUNK = 1 << 20


def digest(file: Path, progress: Progress, git: bool = False, called: str = "") -> str:
    """sha256 of the file as hex, or (git) the sha1 that git gives to a blob of this content. called: what people call it."""
    total, done = file.stat().st_size, 0
    state = hashlib.sha1(b"blob %d\0" % total, usedforsecurity=False) if git else hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
            done += len(chunk)
            progress(f"checking {called or file.name[:40]}", done, total)
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


def require_room(folder: Path, needed: int, name: str) -> None:
    """Raises CatalogError unless so many bytes are free on the disk of this folder."""
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
    """Hold this lock file of ours; waits for another process that holds it, and outlives no process."""
    from filelock import FileLock

    private.folder(file.parent)
    with FileLock(file, mode=private.FILE):
        yield


@contextmanager
def shared_lock(file: Path) -> Iterator[None]:
    """`lock` for one that other programs, perhaps other users, hold as well."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file):
        yield
