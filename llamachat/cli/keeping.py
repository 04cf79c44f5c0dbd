"""What a command does when its answer is out and nobody waits for it any more: copies on disk that make the next start quick."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from llamachat.system.signals import handled

if TYPE_CHECKING:
    from llamachat.models.packed_copy import Copy

ENDINGS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]

behind: "list[Copy]" = []  # to be written


class EndedError(BaseException):
    """The process was asked to end."""


def keep_copies(note: Callable[[str], None], verbose: bool) -> None:
    """Write them, and tell of it; Ctrl-C or a signal ends that at once. Whatever happens, the command has ended as it had."""
    copies = [behind.pop() for _ in range(len(behind))]
    if not copies:
        return
    _end_stdout()
    with suppress(EndedError), handled(ENDINGS, _end):
        for copy in copies:
            _keep(copy, note, verbose)


def _keep(copy: "Copy", note: Callable[[str], None], verbose: bool) -> None:
    from llamachat.cli.progress import late_progress

    with late_progress() as progress:
        why = copy.write(lambda done: progress("keeping weights (Ctrl-C: not now)", done, copy.nbytes))
    if (sys.stderr.isatty() or verbose) and (line := copy.remark(why)):
        note(f"note: {line}")
    elif verbose and why:
        note(f"packed weights are not kept: {why}")


def _end_stdout() -> None:
    """Whoever reads a pipe has all of it, and need not wait for the end of the process."""
    with suppress(OSError, ValueError):
        if not sys.stdout.isatty():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(number: int, frame: object) -> NoReturn:
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise EndedError
