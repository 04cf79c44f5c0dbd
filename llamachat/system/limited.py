"""Code that could take the machine's time or memory, run in a process of its own: a template, a grammar.

What runs there is a handler: a file with a class `Handler` (see limited_worker.py), which answers one JSON value with
another. The process sets its own limits before it reads anything, so they hold whatever becomes of us.
"""

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamachat.system import environment

_WORKER = Path(__file__).with_name("limited_worker.py")
_LONGEST = 64 << 20  # characters of an answer
_TIMED_OUT = 1 if sys.platform == "win32" else -signal.SIGALRM  # its exit code


class EndedError(Exception):
    """The process needed more time than it may take (`timed_out`), or more memory or depth, and is no more."""

    def __init__(self, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


class Limited:
    """A process that answers. It is started when made, so that it can import while we do something else."""

    def __init__(self, handler: Path, memory: int, seconds: float) -> None:
        """`memory`: bytes that it may have in all (on Linux). `seconds`: for each answer."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(handler), str(memory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env=environment.of_python(),
        )
        self._unread = 0  # answers that nobody waited for
        self.end = weakref.finalize(self, _end, self.process)

    @property
    def alive(self) -> bool:
        return self.end.alive and self.process.poll() is None

    def post(self, request: Any) -> None:
        """Have something done, without waiting for it; the answer is lost. Raises EndedError."""
        assert self.process.stdin is not None
        if not self.end.alive:
            raise self._ended()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        self._unread += 1

    def ask(self, request: Any, answering: Callable[[Any], Any] | None = None) -> Any:
        """The answer. `answering`: for what the handler asks us meanwhile. Raises EndedError."""
        try:
            self.post(request)
            while self._unread:
                answer = self._read()
                if isinstance(answer, dict) and "ask" in answer:
                    assert answering is not None
                    self.post(answering(answer["ask"]))
                self._unread -= 1
        except EndedError:
            raise
        except BaseException:  # the answer may still come, and would be taken for that to the next question
            self.end()
            raise
        return answer

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline(_LONGEST)
        if not line.endswith("\n"):
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> EndedError:
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:  # it closed its output, or wrote too much
            code = None
        self.end()
        return EndedError(code == _TIMED_OUT)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    try:
        process.communicate()
    except BrokenPipeError:  # it was gone before it read all
        process.wait()
