"""Files and folders that are ours: for their owner only whatever the umask, whole or not there, and not trusted where
another user could have put or changed them."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llamachat import paths

FOLDER, FILE = 0o700, 0o600
OTHERS_READ, OTHERS_WRITE = 0o077, 0o022


def folder(path: Path) -> Path:
    """The folder, made if it is not there; it and those of ours above it are closed to others. Raises OSError."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(FOLDER, exist_ok=True)
        missing.chmod(FOLDER)  # a umask may have taken more away
    for own in (each for each in (path, *path.parents) if each == path or _is_ours(each)):
        _close(own, FOLDER)
    return path


def is_mine(path: Path) -> bool:
    """Whether there is such a file, and this user has it."""
    with suppress(OSError):
        status = path.stat()
        return stat.S_ISREG(status.st_mode) and _is_mine(status)
    return False


def trouble(path: Path) -> str | None:
    """Why a file or folder may not be what we left there: another user has it, or could have written it; None where not.

    What it lies in is looked at too. The system's own user is trusted, who could do anything in any case. Raises OSError.
    """
    for each in (path, path.parent):
        status = each.stat()
        if not _is_mine(status, or_root=True):
            return f"{each} belongs to another user"
        if hasattr(os, "geteuid") and status.st_mode & OTHERS_WRITE:
            return f"{each} may be written by other users"
    return None


@contextmanager
def writing(
    path: Path, *, sync: bool = False, buffering: int = -1, mode: int = FILE, new: bool = False
) -> Iterator[BinaryIO]:
    """A new file, by default for its owner only, which appears under its name, in another's place, when the block ends well.

    `sync`: once the disk has it. `new`: never in another's place, which is a FileExistsError. Raises OSError.
    """
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")
    try:
        with open(handle, "wb", buffering=buffering) as stream:  # noqa: PTH123 - a handle
            Path(partial).chmod(mode)  # a umask may have taken more away
            yield stream
            stream.flush()
            if sync:
                os.fsync(handle)
        if new:
            os.link(partial, path)  # unlike a rename this never takes another file's place
        else:
            Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def opened(path: Path, flags: int) -> int:
    """os.open for a file that is made if it is not there, and closed to others if it is. Raises OSError."""
    handle = os.open(path, flags | os.O_CREAT, FILE)
    _close(path, FILE)
    return handle


def close_tree(top: Path) -> None:
    """Close a folder and everything in it to others. Raises OSError."""
    for place, _, names in os.walk(top):
        _close(Path(place), FOLDER)
        for name in names:
            _close(Path(place, name), FILE)


def _close(path: Path, mode: int) -> None:
    """Take from others what they may do with what is ours; what is another's is left, for `trouble` to tell."""
    status = path.stat()
    if _is_mine(status) and (status.st_mode & OTHERS_READ or status.st_mode & FILE != FILE):
        with suppress(PermissionError):
            path.chmod(mode)


def _is_mine(status: os.stat_result, or_root: bool = False) -> bool:
    """Where there are no owners (Windows), everything is."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() or (or_root and status.st_uid == 0)


def _is_ours(path: Path) -> bool:
    roots = (paths.config_dir(), paths.data_dir(), paths.state_dir(), paths.cache_dir())
    return any(path.is_relative_to(root) for root in roots)
