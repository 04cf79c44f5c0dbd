"""How far a download, or a conversion, is: on standard error."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from llamachat.models.fetch.verified import Progress
from llamachat.system.amounts import size
from llamachat.system.sanitise import sanitise_line

EVERY = 0.1  # seconds between two drawings
CLEAR = "\r\x1b[K"


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A line that is gone when done; where it cannot be redrawn, one line for each step."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _steps()
        return
    bar = _Bar(sys.stderr)
    try:
        yield bar.draw
    finally:
        bar.clear()


def _steps() -> Progress:
    seen: set[str] = set()

    def line(what: str, done: int, total: int | None) -> None:
        if what not in seen and done != total:
            typer.echo(sanitise_line(what + (f" ({size(total)})" if total else "")), err=True)
        seen.add(what)

    return line


class _Bar:
    def __init__(self, out: TextIO) -> None:
        from llamachat.ui.progress_line import ProgressLine

        self._out, self._line = out, ProgressLine()
        self._what, self._drawn = "", 0.0

    def draw(self, what: str, done: int, total: int | None) -> None:
        from llamachat.ui.cells import cut

        self._line.tell(what, done, total)
        if what == self._what and time.monotonic() - self._drawn < EVERY:
            return
        self._what, self._drawn = what, time.monotonic()
        width = shutil.get_terminal_size().columns - 1
        self._write(CLEAR + cut(sanitise_line(self._line.line), width))

    def clear(self) -> None:
        if self._what:
            self._write(CLEAR)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
