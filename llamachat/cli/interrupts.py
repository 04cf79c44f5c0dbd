"""Ctrl-C in commands that print results as they come."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def at_once() -> Iterator[None]:
    """Here Ctrl-C ends the process at once."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
