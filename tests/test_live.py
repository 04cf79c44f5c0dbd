"""What is painted above the prompt is what was said, however it came, and the prompt's region stays whole."""

import re
from collections.abc import Sequence

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.ui.live import Flow, Region, fold

REGION = ["> typed", "status"]


class Terminal:
    """A flow above a region of two rows, in a terminal with scroll-back."""

    def __init__(self, columns: int = 20, rows: int = 10, above: int = 0) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.0001)
        self.stream = pyte.Stream(self.screen)
        self.stream.feed("before\r\n" * above + "\r\n".join(REGION) + "\x1b[A\r\x1b[7C")
        self.flow = Flow()
        self.written = 0

    def paint(self, finished: Sequence[str], tail: Sequence[str] = ()) -> None:
        region = Region(len(REGION), 7, 0)
        written = self.flow.paint(finished, tail, self.screen.columns, self.screen.lines, region)
        self.written += len(written)
        self.stream.feed(written.replace("\n", "\r\n"))  # as a terminal line does

    def lines(self) -> list[str]:
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip().split("\n")

    def check(self, expected: Sequence[str]) -> None:
        assert self.lines() == [*(re.sub(r"\x1b\[[\d;]*m", "", row).rstrip() for row in expected), *REGION]
        assert (self.screen.cursor.x, self.screen.display[self.screen.cursor.y].rstrip()) == (7, REGION[0])


ROW = st.lists(
    st.one_of(
        st.text(alphabet="ab *é漢", max_size=9),
        st.builds("\x1b[1m{}\x1b[0m".format, st.text(alphabet="xy 漢", min_size=1, max_size=5)),
    ),
    max_size=2,
).map("".join)
ROWS = st.lists(ROW, max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(ROWS, ROWS), max_size=8), st.integers(0, 12))
def test_the_rows_painted_last_stand_above_the_region(steps: list[tuple[list[str], list[str]]], above: int) -> None:
    terminal = Terminal(40, 12, above)
    said: list[str] = []
    for finished, tail in steps:
        terminal.paint(finished, tail)
        said += finished
        terminal.check(["before"] * above + said + tail)


@pytest.mark.parametrize("rows", [4, 10])
def test_more_rows_than_the_screen_has_go_to_the_scroll_back(rows: int) -> None:
    terminal = Terminal(rows=rows)
    terminal.paint([], ["x"])
    terminal.paint([f"line {number}" for number in range(50)], ["tail"])
    terminal.check([*(f"line {number}" for number in range(50)), "tail"])


def test_an_answer_costs_little_more_than_its_length() -> None:
    terminal = Terminal(80, 24)
    text = "The quick brown fox jumps over the lazy dog and runs away. " * 20
    for end in range(12, len(text), 12):
        terminal.paint([], fold([text[:end]], 80))
    assert terminal.written < 2.5 * len(text)


@pytest.mark.parametrize("tail", ["🏳️‍🌈 flag", "cafe\u0301", "שלום", "👩‍👩‍👧 family"])
def test_what_has_no_sure_width_is_written_anew_from_there(tail: str) -> None:
    terminal = Terminal()
    for end in range(1, len(tail) + 1):
        terminal.paint([], ["ab " + tail[:end]])
    at_once = Terminal()
    at_once.paint([], ["ab " + tail])
    assert terminal.lines() == at_once.lines()
