"""What a command does when its answer is out and nobody waits for it any more: copies on disk that make the next start quick."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from llamachat.models.packed_copy import Copy

ENDINGS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]

behind: "list[Copy]" = []  # to be written


class EndedError(BaseException):
    """The process was asked to end."""


def keep_copies(verbose: bool, say: Callable[[str], None]) -> None:
    """Write them, and `say` a line about it; Ctrl-C or a signal ends that at once. Whatever happens, the command has ended as it had."""
    copies = [behind.pop() for _ in range(len(behind))]
    if not copies:
        return
    _end_stdout()
    with suppress(EndedError), _ended_by_signals():
        for copy in copies:
            _keep(copy, verbose, say)


def _keep(copy: "Copy", verbose: bool, say: Callable[[str], None]) -> None:
    from llamachat.cli.progress import late_progress

    with late_progress() as progress:
        why = copy.write(
            lambda done: progress("keeping weights for a quick start (Ctrl-C: not now)", done, copy.nbytes)
        )
    if (sys.stderr.isatty() or verbose) and (line := copy.remark(why)):
        say(f"note: {line}")
    elif verbose and why:
        say(f"packed weights are not kept: {why}")


def _end_stdout() -> None:
    """Whoever reads a pipe has all of it, and need not wait for the end of the process."""
    with suppress(OSError, ValueError):
        if not sys.stdout.isatty():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    def end(number: int, frame: object) -> NoReturn:
        for each in ENDINGS:
            signal.signal(each, signal.SIG_IGN)
        raise EndedError

    before = [signal.signal(number, end) for number in ENDINGS]
    try:
        yield
    finally:
        for number, handler in zip(ENDINGS, before, strict=True):
            signal.signal(number, handler)
