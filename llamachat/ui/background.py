"""Whether the terminal's background is light: it is asked (OSC 11) while the chat starts.

The question is followed by one that every terminal answers (DA1), so that silence is known at once. Until the answer is
there nothing that is typed is echoed, and all of it is kept; an answer that comes too late is dropped by keyboard.py.
"""

import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_PART = rb"([0-9a-fA-F]{1,4})"
_COLOUR = re.compile(rb"\x1b\]11;rgba?:" + rb"/".join([_PART] * 3) + rb"(?:/[0-9a-fA-F]{1,4})?(?:\x07|\x1b\\)")
_ATTRIBUTES = re.compile(rb"\x1b\[\?[0-9;]*c")
_DARK = ("linux", "eterm", "vt", "cons", "sun")  # what TERM begins with where the question would be printed, or moot
_PATIENCE = 0.1  # seconds after the question
_MOST = 65536  # bytes that are taken in meanwhile


class Asked:
    """A question to the terminal `fd`, under way; without one, none."""

    def __init__(self, fd: int | None = None, patience: float = 0) -> None:
        self._fd = fd
        self._until = time.monotonic() + patience
        self.typed = b""  # what came that is no answer

    def light(self) -> bool | None:
        """Waits for the answer, a moment after it was asked for; None: there is none."""
        if self._fd is None:
            return None
        came = self._read(self._fd)
        colour = _COLOUR.search(came)
        self.typed += _ATTRIBUTES.sub(b"", _COLOUR.sub(b"", came))
        return _is_light(*(int(part, 16) / (16 ** len(part) - 1) for part in colour.groups())) if colour else None

    def _read(self, fd: int) -> bytes:
        came = b""
        while not _ATTRIBUTES.search(came) and len(came) < _MOST:
            left = max(0.0, self._until - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                break
            if not (piece := os.read(fd, 1024)):
                break
            came += piece
        return came


@contextmanager
def asking(wanted: bool, environ: Mapping[str, str] = os.environ, patience: float = _PATIENCE) -> Iterator[Asked]:
    """Ask the terminal on stdin and stdout, if that is wanted and it can answer. It is as it was afterwards."""
    if not wanted or sys.platform == "win32" or environ.get("TERM", "dumb").startswith((*_DARK, "dumb", "unknown")):
        yield Asked()
        return
    import termios

    fd = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield Asked()
        return
    quiet = [*before]
    quiet[0] &= ~termios.ICRNL  # Enter is what it is at the prompt
    quiet[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(fd, termios.TCSANOW, quiet)
    try:
        os.write(sys.stdout.fileno(), _QUESTION)
        yield Asked(fd, patience)
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def _is_light(red: float, green: float, blue: float) -> bool:
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
