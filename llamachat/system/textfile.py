"""The one way to read a file that a person or a text named: bounded, and never what has no end or is no file of theirs.

A name may come from a text or a configuration that somebody else wrote. So a device (/dev/zero), a folder and what the
kernel makes up (/proc, /sys) are refused, by whatever link they are reached; and so is a pipe, but where a text may come
from one: `-f <(command)`, `-f /dev/stdin`.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

LIMIT = 64 << 20  # bytes of a text; no context holds more
SETTINGS_LIMIT = 1_000_000  # bytes of a file of settings
_CHUNK = 1 << 20
_MADE_UP = ("/proc", "/sys")


class UnreadableError(ValueError):
    """`str()` goes on from the file's name: "cannot be read: it is a device"."""


class TooLargeError(UnreadableError):
    """It holds more bytes than are read of such a file."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"it is larger than {limit:,} bytes")


def opened(path: Path, pipes: bool = False) -> BinaryIO:
    """The file, to be read. Raises UnreadableError, also for a pipe or terminal unless `pipes`; OSError; ValueError for a
    name with NUL."""
    # A named pipe that nobody writes to would block right here, so where none may come nothing waits for a writer.
    waiting = 0 if pipes else getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | waiting)
    try:
        _require_file(handle, path, pipes)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_file(handle: int, path: Path, pipes: bool) -> None:
    found = os.fstat(handle)
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableError("it is a folder")
    if stat.S_ISFIFO(found.st_mode) or os.isatty(handle):
        if not pipes:
            raise UnreadableError("it is no file")
    elif not stat.S_ISREG(found.st_mode):
        raise UnreadableError("it is a device")
    elif _is_made_up(found.st_dev, os.path.realpath(path)):
        raise UnreadableError("it is no file, but something of the system's")


def _is_made_up(device: int, real: str) -> bool:
    folders = [folder for folder in map(Path, _MADE_UP) if folder.is_dir()]
    return any(folder.stat().st_dev == device or real.startswith(f"{folder}/") for folder in folders)


def read_all(file: BinaryIO, limit: int = LIMIT) -> bytearray:
    """What is left in a stream. Raises TooLargeError before it holds more than `limit` and one byte."""
    data = bytearray()
    while chunk := file.read(min(_CHUNK, limit + 1 - len(data))):
        data += chunk
        if len(data) > limit:
            raise TooLargeError(limit)
    return data


def read(path: Path, limit: int = LIMIT, pipes: bool = False) -> bytearray:
    """A file's bytes. Raises as `opened` and `read_all` do."""
    with opened(path, pipes) as file:
        return read_all(file, limit)


def read_settings(path: Path) -> str:
    """A file of settings, to the letter. Raises as `read` does, and UnicodeDecodeError."""
    return read(path, SETTINGS_LIMIT).decode()
