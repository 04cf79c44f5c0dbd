"""A machine that does something else too: another process that keeps one core busy."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llamachat.system import environment

SPIN = "print(flush=True)\nwhile True: pass"


@contextmanager
def busy_core() -> Iterator[None]:
    """Meanwhile another process computes without a rest, on whichever core the system gives it."""
    command = [sys.executable, "-S", "-c", SPIN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment.of_python()) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        try:
            yield
        finally:
            process.kill()
