"""A terminal that becomes narrower wraps what it shows: the prompt is erased where it then is."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Char, Screen
from pty_chat import HERE, SCRIPT

from llamachat.ui.narrowing import rows_above, wraps_anew

DRAFT = " ".join(f"word{number}" for number in range(24))


def drawn(rows: list[str]) -> Screen:
    """As prompt-toolkit keeps them: nothing follows a wide character in its second cell."""
    screen = Screen()
    for y, row in enumerate(rows):
        x = 0
        for character in row:
            screen.data_buffer[y][x] = cell = Char(character)
            x += cell.width
    return screen


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=40), min_size=1, max_size=4), st.integers(2, 40), st.data())
def test_the_rows_are_counted_as_an_emulator_wraps_them(rows: list[str], columns: int, data: st.DataObject) -> None:
    rows = [row.rstrip(" ") for row in rows]
    before = rows[-1][: data.draw(st.integers(0, len(rows[-1])))]
    emulator = pyte.Screen(columns, 400)
    pyte.Stream(emulator).feed("\r\n".join([*rows[:-1], before]))
    assert rows_above(drawn(rows), Point(len(before), len(rows) - 1), columns) == emulator.cursor.y


def test_a_wide_character_that_does_not_fit_begins_a_row() -> None:
    """Unlike the emulator's, in a real terminal."""
    assert rows_above(drawn(["a日本", "x"]), Point(0, 1), 2) == 3
    assert rows_above(drawn(["a日本", "x"]), Point(0, 1), 3) == 2
    assert rows_above(drawn(["a日"]), Point(3, 0), 2) == 1


@pytest.mark.parametrize(
    ("environ", "wraps"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "XTERM_VERSION": "XTerm(390)"}, True),
        ({"TERM": "screen-256color", "STY": "1.pts"}, False),
        ({"TERM": "linux"}, False),
    ],
)
def test_some_terminals_cut_their_rows_off(environ: dict[str, str], wraps: bool) -> None:
    assert wraps_anew(environ) == wraps


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_wrapped_draft_leaves_no_ghosts_in_tmux(tmp_path: Path) -> None:
    """While nothing comes, while an answer does, and at the screen's top, where tmux saves what is erased."""
    slow = "session.enqueue(*['piece '] * 60, until(60), 'piece ', until(40), *['piece '] * 59, until(70), 'piece ', 'end')"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(HERE), root=str(HERE.parent), setup=slow, options=', theme="none"'))
    server = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def do(*command: str) -> str:
        return subprocess.run([*server, *command], check=True, capture_output=True, text=True, timeout=60).stdout

    def until(last: str, answered: int, once: bool = False) -> None:
        """The screen holds this and so many pieces of the answer; `once`: and the draft once."""
        end, shown, counts = time.monotonic() + 60, "", [0]
        while not (last in shown and shown.count("piece") == answered and (not once or counts == [1, 1, 1])):
            assert time.monotonic() < end, shown
            time.sleep(0.05)
            shown = re.sub(r"\s", "", do("capture-pane", "-p", "-S", "-"))
            counts = [shown.count(word) for word in ("❯word0", "word5", "word23")]

    do("new-session", "-d", "-x", "80", "-y", "16", f"{sys.executable} {script}; cat")
    try:
        until("Fake-1Bint4", 0)
        do("send-keys", "go", "Enter")
        until("answering", 60)
        do("send-keys", "-l", DRAFT)
        until("word23", 60)
        for columns, pieces in ((60, 61), (40, 120), (70, 121)):  # more of the answer comes once the size has been seen
            do("resize-window", "-x", str(columns), "-y", "16")
            until("word23", pieces, once=True)
        until("Fake-1Bint4", 121)
        do("resize-window", "-x", "45", "-y", "16")
        time.sleep(0.2)
        until("Fake-1Bint4", 121, once=True)
    finally:
        do("kill-server")
