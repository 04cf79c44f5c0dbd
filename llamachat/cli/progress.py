"""How far a download, or a conversion, is: on standard error."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

import typer

from llamachat.system.amounts import size
from llamachat.system.sanitise import sanitise_line

if TYPE_CHECKING:
    from llamachat.events import Progress

EVERY = 0.1  # seconds between two drawings
CLEAR = "\r\x1b[K"


class Shown(Protocol):
    """A Progress, and lines that stay."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...
    def note(self, line: str) -> None: ...


@contextmanager
def shown_progress() -> Iterator[Shown]:
    """A line that is gone when done; where it cannot be redrawn, one line for each step."""
    if not _redraws():
        yield _Steps()
        return
    drawn = _Drawn(sys.stderr)
    try:
        yield drawn
    finally:
        drawn.clear()


@contextmanager
def late_progress() -> "Iterator[Progress]":
    """A line for what takes more than a second, where it can be redrawn; gone when done."""
    if not _redraws():
        yield lambda what, done, total: None
        return
    from llamachat.ui.progress_line import late

    with shown_progress() as progress:
        yield late(progress)


def _redraws() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Steps:
    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self._seen and done != total:
            self.note(what + (f" ({size(total)})" if total else ""))
        self._seen.add(what)

    def note(self, line: str) -> None:
        typer.echo(sanitise_line(line), err=True)


class _Drawn:
    def __init__(self, out: TextIO) -> None:
        from llamachat.ui.progress_line import ProgressLine

        self._out, self._line = out, ProgressLine()
        self._what, self._drawn = "", 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        from llamachat.ui.cells import cut

        self._line.tell(what, done, total)
        if what == self._what and time.monotonic() - self._drawn < EVERY:
            return
        self._what, self._drawn = what, time.monotonic()
        width = shutil.get_terminal_size().columns - len("^C") - 1  # which the terminal may put behind it
        self._write(CLEAR + cut(sanitise_line(self._line.line), width))

    def note(self, line: str) -> None:
        self.clear()
        self._write(sanitise_line(line) + "\n")

    def clear(self) -> None:
        if self._what:
            self._what = ""
            self._write(CLEAR)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
