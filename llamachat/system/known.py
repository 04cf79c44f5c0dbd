"""Files that were read once and found to be what they must be, so that they are not read again until they change.

Whoever writes to a file changes its times: the one of its content can be set back, the one of its inode cannot. What a
disk changes by itself, without a write, is not noticed.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from llamachat import paths
from llamachat.system import private


def is_known(file: Path, verified: str) -> bool:
    """Whether this very file was remembered to have this digest, and nobody wrote to it since."""
    stamp = stamp_file(file)
    with suppress(OSError):
        return private.trouble(stamp) is None and stamp.read_bytes() == _state(file, verified)
    return False


def remember(file: Path, verified: str) -> None:
    """That it has this digest. Raises OSError."""
    stamp, state = stamp_file(file), _state(file, verified)
    private.folder(stamp.parent)
    with private.writing(stamp) as stream:
        stream.write(state)


def use(file: Path) -> None:
    """Note that a remembered file is used now; the file itself stays as it is."""
    with suppress(OSError):
        os.utime(stamp_file(file))


def last_use(file: Path) -> float:
    """When it was; of a file that is not remembered, when it was written; of one that has gone, 0."""
    for each in (stamp_file(file), file):
        with suppress(OSError):
            return each.stat().st_mtime
    return 0.0


def forget(file: Path) -> None:
    stamp_file(file).unlink(missing_ok=True)


def stamp_file(file: Path) -> Path:
    return paths.cache_dir() / "verified" / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]


def _state(file: Path, verified: str) -> bytes:
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {verified}".encode()
