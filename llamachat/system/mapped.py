"""Files mapped into memory. One that is cut short meanwhile ends the process with one line and exit code 3, not by SIGBUS.

Whoever touches a page that is no longer there gets that signal, in whichever thread. Python's own handlers run too late: the
access is tried again before they come. So the C library is given a function of ours, which ctypes makes, to call at the
access itself; it does not return. Copying every file into memory would cost as much memory again, a lock keeps nobody from
cutting a file, and a handler in C would be missing where nothing can be compiled.
"""

import ctypes
import mmap
import os
import signal
import time
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

from llamachat.errors import ModelError

HUGE = 1 << 21  # bytes of a huge page
RESTORED = b"\x1b[?2004l\x1b[?25h\x1b[0 q\x1b[0m\r\x1b[J"  # no bracketed paste; the cursor as it is; below it, nothing

_first = Lock()
_sizes: dict[Path, int] = {}  # of the files that were mapped
_terminal = SimpleNamespace(modes=None)


def map_file(file: BufferedReader) -> mmap.mmap:
    """Its bytes, read-only, loaded by the system page by page as they are touched. Raises OSError, ValueError if empty."""
    is_mapped(Path(file.name))
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def anonymous(nbytes: int) -> mmap.mmap:
    """At least so many bytes of memory of our own, zero, in pages of 2 MB where the system has them and one is filled: fewer
    faults, and quicker to read. Raises MemoryError."""
    whole = nbytes if nbytes < HUGE else -(-nbytes // HUGE) * HUGE
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, whole)
        data = mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError from error
    prefer_huge_pages(data)
    return data


def prefer_huge_pages(data: mmap.mmap) -> None:
    """For what is not in memory yet."""
    with suppress(AttributeError, OSError):  # neither known nor allowed everywhere
        data.madvise(mmap.MADV_HUGEPAGE)


def let_go(data: mmap.mmap, start: int, length: int) -> None:
    """Hold the pages of these bytes no longer, where a system can be told so: they are the file's, and read again if need be."""
    if hasattr(mmap, "MADV_DONTNEED"):
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, first, start + length - first)


def is_mapped(path: Path) -> None:
    """Somebody else is about to map this file. Raises OSError."""
    _sizes[path.absolute()] = path.stat().st_size
    guard()


@cache
def guard() -> object:
    """See above, from now on: the terminal will be put back as it is now. Returns what must not be forgotten."""
    if not hasattr(signal, "SIGBUS"):
        return None
    _terminal.modes = _modes()
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_cut_short)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, type(handler)], ctypes.c_void_p
    install(signal.SIGBUS, handler)
    return handler


def _cut_short(number: int) -> None:
    """Called at the access. Other threads may hold locks: only the system is asked here."""
    if not _first.acquire(blocking=False):
        while True:  # another thread is just saying it
            time.sleep(1)
    what = next(iter(_cut_files()), "a file in use")
    error = ModelError(f"{what} was cut short, or can no longer be read, while it was in use",
                       "llamachat ends here; what was said so far is kept", "start it again")  # fmt: skip
    with suppress(OSError):
        _restore_terminal()
        os.write(2, f"error: {error}\n".encode(errors="replace"))
    os._exit(ModelError.exit_code)


def _cut_files() -> list[str]:
    """The files that are shorter than when they were mapped."""
    found = []
    for path, size in list(_sizes.items()):
        with suppress(OSError):
            found += [repr(str(path))] if path.stat().st_size < size else []
    return found


def _modes() -> list[Any] | None:
    """The terminal's, where there is one."""
    if not os.isatty(0):
        return None
    import termios

    return termios.tcgetattr(0)


def _restore_terminal() -> None:
    """Undo what a prompt does to its terminal, if it did. Raises OSError."""
    if _terminal.modes is None or _terminal.modes == _modes():
        return
    import termios

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # which would stop a process in the background
    with suppress(termios.error):
        termios.tcsetattr(0, termios.TCSANOW, _terminal.modes)
    os.write(1, RESTORED)
