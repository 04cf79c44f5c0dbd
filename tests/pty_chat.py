"""A chat with FakeSession in a real pseudo-terminal, its screen and scroll-back read through a terminal emulator."""

import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

HERE = Path(__file__).parent
SCRIPT = """
import os, sys, threading, time
sys.path[:0] = [{tests!r}, {root!r}]
from fakes import UNTIL_INTERRUPT, FakeSession
from llamachat.errors import ModelError
from llamachat.events import Evicted, TextDelta
from llamachat.ui.app import run
session = FakeSession()
FakeSession.close = lambda self: print("closed")
def pieces(text, size=7):
    return [text[start : start + size] for start in range(0, len(text), size)]
def until(columns):
    def wait():
        while os.get_terminal_size(1).columns != columns:
            time.sleep(0.01)
        time.sleep(0.2)
    return wait
def load():
    return session
{setup}
code = run(load, model="Fake-1B"{options})
print("history:", [(role, text if len(text) < 1000 else len(text)) for role, text in session.said])
sys.exit(code)
"""


class Terminal:
    """A chat with FakeSession in a terminal of the given size; `setup` is code that scripts it."""

    def __init__(
        self,
        setup: str = "",
        size: tuple[int, int] = (80, 24),
        env: dict[str, str] | None = None,
        options: str = ', theme="none"',
    ) -> None:
        columns, rows = size
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.001)
        self._modes = set(self.screen.mode)
        self.written = b""
        script = SCRIPT.format(tests=str(HERE), root=str(HERE.parent), setup=setup, options=options)
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", script],
            dimensions=(rows, columns),
            env={"PATH": "", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", **(env or {})},
        )
        self.child.delaybeforesend = None
        self._settings = termios.tcgetattr(self.child.child_fd)
        self._stream = pyte.ByteStream(self.screen)

    def lines(self) -> list[str]:
        """The screen as text, without the blank end of lines and of itself."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def all_lines(self) -> list[str]:
        """The scroll-back, then the screen."""
        above = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in above] + self.lines()

    def wait(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """Read what is written until the screen is as wanted."""
        end = time.monotonic() + 60
        while not wanted(self.lines()):
            assert time.monotonic() < end, "\n".join(["never came; the screen is:", *self.lines()])
            try:
                written = self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert wanted(self.lines()), "\n".join(["ended early; the screen is:", *self.lines()])
                break
            self.written += written
            self._stream.feed(written)
        return self.lines()

    def wait_for(self, text: str) -> list[str]:
        return self.wait(lambda lines: text in "\n".join(lines))

    def prompted(self) -> list[str]:
        """Wait for an empty prompt with the status of an idle session below."""
        return self.wait(
            lambda lines: lines[-1].startswith("Fake-1B int4 ·") and self.line() == "❯" and lines[-3] == ""
        )

    def line(self) -> str:
        """Where the cursor is."""
        return self.screen.display[self.screen.cursor.y].rstrip()

    def say(self, text: str) -> list[str]:
        """Type a text, send it, wait for the next prompt; returns the lines since the last one."""
        before = len(self.all_lines())
        self.child.send(text)
        self.wait(lambda lines: self.screen.cursor.x > 2)
        self.child.send("\r")
        self.wait(lambda lines: self.line() == "❯" and len(self.all_lines()) > before)
        self.prompted()
        return self.all_lines()[before - 2 : -2]

    def leave(self) -> int:
        """Ctrl-D; returns the exit code."""
        self.child.send("\x04")
        self.wait_for("history:")
        return self.ended()

    def ended(self) -> int:
        """The exit code. The terminal is as it was."""
        while True:
            try:
                self._stream.feed(self.child.read_nonblocking(65536, timeout=60))
            except pexpect.EOF:
                break
        settings = termios.tcgetattr(self.child.child_fd)
        self.child.close()
        assert self.child.signalstatus is None
        assert settings == self._settings
        assert (self.screen.title, self.screen.icon_name) == ("", "")
        assert self.screen.mode == self._modes
        assert not self.screen.cursor.hidden
        return self.child.exitstatus

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)
