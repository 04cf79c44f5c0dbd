"""Ctrl-C in commands that print results as they come."""

import signal
from contextlib import AbstractContextManager

from llamachat.system.signals import handled

INTERRUPTED = 130  # as shells have it: 128 and the number of the signal


def count_interrupts() -> list[int]:
    """Ctrl-C ends what is computed after the current step; a second one ends the process at once."""
    seen: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    signal.signal(signal.SIGINT, handle)
    return seen


def at_once() -> AbstractContextManager[None]:
    """Here Ctrl-C ends the process at once."""
    return handled([signal.SIGINT], signal.default_int_handler)
