"""Errors of the interface itself: each is told of in one line, once, and the chat goes on. What was not sent is never lost."""

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import extract_tb, format_exception

from llamachat.errors import LlamachatError
from llamachat.system import private

GIVEN_UP = 3  # drawings that fail one after the other
_GONE = {errno.EIO, errno.EBADF, errno.EPIPE, errno.ENXIO}  # what a terminal says that is no longer there


class Faults:
    """`tell` shows a line, `show` a text; `end` ends the chat with an error; `failing`: drawings that failed in a row."""

    def __init__(
        self,
        tell: Callable[[str], None],
        show: Callable[[str], None],
        end: Callable[[BaseException], None],
        failing: Callable[[], int],
        *,
        verbose: bool = False,
    ) -> None:
        self._tell, self._show, self._end, self._failing = tell, show, end, failing
        self._verbose = verbose
        self._told: set[tuple[object, ...]] = set()

    def take(self, error: BaseException) -> None:
        if terminal_gone(error):
            self._end(error)
        elif self._failing() >= GIVEN_UP:
            self._end(undrawable(error))
        elif (place := _place(error)) not in self._told:
            self._told.add(place)
            self._tell(f"the chat made a mistake ({_said(error)}); it goes on, and your text is kept")
            if self._verbose:
                self._show("".join(format_exception(error)))


def terminal_gone(error: BaseException) -> bool:
    return isinstance(error, EOFError) or (isinstance(error, OSError) and error.errno in _GONE)


def _place(error: BaseException) -> tuple[object, ...]:
    """What kind of error it is, and where."""
    last = extract_tb(error.__traceback__)[-1:]
    return type(error), *((frame.filename, frame.lineno) for frame in last)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:200]


def undrawable(error: BaseException) -> LlamachatError:
    ended = LlamachatError(f"the chat cannot draw its screen any more ({_said(error)})", "it has ended")
    ended.__cause__ = error
    return ended


def save_unsent(texts: Sequence[str], folder: Path | None) -> str:
    """Write down what was typed but not sent; returns the line that says where, or the texts themselves where they could not
    be written or nothing may be."""
    whole = "\n\n".join(text for text in texts if text.strip())
    if not whole:
        return ""
    name = f"unsent-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1000:03}.txt"
    try:
        if folder:
            with private.writing(private.folder(folder) / name, new=True) as file:
                file.write(whole.encode(errors="replace"))
            return f"what you had not sent is in {folder / name}"
    except OSError:
        pass
    return f"what you had not sent:\n{whole}"
