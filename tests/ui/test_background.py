"""The terminal's background is asked for, and neither the question nor the answer is ever seen."""

import os
import pty
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pty_chat import Terminal

from llamachat.ui.background import asking

WHITE, BLACK = b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\", b"\x1b]11;rgb:1e/1e/2e\x07"
ATTRIBUTES = b"\x1b[?62;22c"
XTERM = {"TERM": "xterm-256color"}


@contextmanager
def terminal() -> Iterator[int]:
    """The other end of a terminal that stdin and stdout are."""
    ours, theirs = pty.openpty()
    with (
        open(theirs, "rb", buffering=0) as stdin,  # noqa: PTH123 - a handle
        open(os.dup(theirs), "wb", buffering=0) as stdout,  # noqa: PTH123
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        yield ours
    os.close(ours)


def answering(end: int, answer: bytes) -> None:
    def reply() -> None:
        os.read(end, 100)
        os.write(end, answer)

    threading.Thread(target=reply, daemon=True).start()


@pytest.mark.parametrize(
    ("answer", "light", "typed"),
    [
        (WHITE + ATTRIBUTES, True, b""),
        (BLACK + ATTRIBUTES, False, b""),
        (b"he" + WHITE + b"ll" + ATTRIBUTES + b"o\r", True, b"hello\r"),
        (ATTRIBUTES, None, b""),
        (b"\x1b]11;rgba:ff/ff/ff/ff\x07" + ATTRIBUTES, True, b""),
        (b"\x1b]11;rgb:nonsense\x07" + ATTRIBUTES, None, b"\x1b]11;rgb:nonsense\x07"),
    ],
)
def test_the_answer_is_understood_and_what_is_typed_is_kept(answer: bytes, light: bool | None, typed: bytes) -> None:
    with terminal() as end:
        before = termios.tcgetattr(sys.stdin.fileno())
        answering(end, answer)
        with asking(True, XTERM, patience=5) as asked:
            assert asked.light() is light
        assert asked.typed == typed
        assert termios.tcgetattr(sys.stdin.fileno()) == before


def test_silence_costs_a_moment() -> None:
    with terminal() as end, asking(True, XTERM, patience=0.01) as asked:
        assert asked.light() is None
        assert os.read(end, 100) == b"\x1b]11;?\x1b\\\x1b[c"


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"TERM": "linux"}, {"TERM": "eterm-color"}, {}])
def test_what_could_not_answer_is_not_asked(environ: dict[str, str]) -> None:
    with terminal() as end:
        with asking(True, environ) as asked:
            assert asked.light() is None
        with asking(False, XTERM):
            pass
        os.set_blocking(end, False)
        with pytest.raises(BlockingIOError):
            os.read(end, 1)


def test_a_chat_on_white_is_readable(start: Callable[..., Terminal]) -> None:
    terminal = start(options="")
    terminal.child.expect_exact("\x1b]11;?\x1b\\\x1b[c")
    terminal.child.send(b"typed " + WHITE + ATTRIBUTES + b"ahead")
    terminal.wait(lambda lines: lines[0].startswith("llamachat · Fake-1B") and "❯ typed ahead" in lines)
    assert terminal.screen.buffer[0][0].fg == "005f87"
    terminal.child.send("\x03")
    assert terminal.leave() == 0


@pytest.mark.parametrize(("env", "options"), [({"NO_COLOR": "1"}, ""), ({}, ", theme='light'")])
def test_where_the_answer_would_change_nothing_no_question_is_asked(
    start: Callable[..., Terminal], env: dict[str, str], options: str
) -> None:
    terminal = start(env=env, options=options)
    terminal.prompted()
    assert b"\x1b]11" not in terminal.written
    assert terminal.leave() == 0
