"""What is painted above the prompt is what was said, however it came, and the prompt's region stays whole."""

import re
from collections.abc import Sequence

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.ui.live import Flow, Region, Row, fold

REGION = ["> typed", "status"]


def said(texts: Sequence[str]) -> list[Row]:
    """Of one answer."""
    return [Row(text, 1) for text in texts]


class Terminal:
    """A flow above a region, in a terminal with scroll-back."""

    def __init__(self, columns: int = 20, rows: int = 10, above: int = 0) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.0001)
        self.stream = pyte.Stream(self.screen)
        self.stream.feed("before\r\n" * above)
        self.flow = Flow()
        self.written = 0
        self.place = Region()
        self.draw(REGION)

    def draw(self, region: Sequence[str], y: int = 0) -> None:
        """Draw a region, its cursor in row y, in place of the last one: from its top, as prompt-toolkit does."""
        if self.place.y:
            self.stream.feed(f"\x1b[{self.place.y}A")
        self.region, self.place = region, Region(len(region), 7, y)
        self.stream.feed("\r\x1b[J" + "\r\n".join(region) + "\r\x1b[7C")
        if y < len(region) - 1:
            self.stream.feed(f"\x1b[{len(region) - 1 - y}A")
        self.flow.squeezed(self.screen.lines - len(region))

    def paint(self, finished: Sequence[str], tail: Sequence[str] = ()) -> None:
        self.write(said(finished), said(tail))

    def write(self, finished: Sequence[Row], tail: Sequence[Row] = ()) -> None:
        written = self.flow.paint(finished, tail, self.screen.columns, self.screen.lines, self.place)
        self.written += len(written)
        self.stream.feed(written.replace("\n", "\r\n"))  # as a terminal line does

    def lines(self) -> list[str]:
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip().split("\n")

    def check(self, expected: Sequence[str]) -> None:
        assert self.lines() == [*(re.sub(r"\x1b\[[\d;]*m", "", row).rstrip() for row in expected), *self.region]
        line = self.screen.display[self.screen.cursor.y].rstrip()
        assert (self.screen.cursor.x, line) == (7, self.region[self.place.y])


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
    whole: list[str] = []
    for finished, tail in steps:
        terminal.paint(finished, tail)
        whole += finished
        terminal.check(["before"] * above + whole + tail)


HEIGHTS = st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), max_size=3)
LINES = st.lists(st.sampled_from(["", "──┼──", "row", "row and more"]), max_size=30)
STEPS = st.lists(st.tuples(HEIGHTS, st.integers(0, 4), st.integers(0, 8), st.integers(0, 4)), min_size=4, max_size=12)


def words(rows: Sequence[str]) -> list[str]:
    """Their text, however it is set off."""
    return [re.sub("[ ─┼]", "", row) for row in rows]


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(0, 12), LINES, STEPS)
def test_a_region_that_grows_and_shrinks_costs_no_row_and_doubles_none(
    rows: int, above: int, lines: list[str], steps: list[tuple[list[tuple[int, int]], int, int, int]]
) -> None:
    """Rows that are unfinished may look different from one painting to the next; those off the screen stay as they are."""
    terminal = Terminal(20, rows, above)
    text = [f"{line}{number}" if line.strip("─┼") else line for number, line in enumerate(lines)]
    done = said = 0
    for regions, more, unfinished, indent in steps:
        for height, y in regions:
            height = 1 + height % (rows - 1)
            terminal.draw([f"region {row} of {height}" for row in range(height)], y % height)
        said = min(len(text), said + more)
        start, done = done, max(done, said - unfinished)
        terminal.paint(text[start:done], [" " * indent + row if row.strip("─┼") else row for row in text[done:said]])
        assert words(terminal.lines()) == words([*["before"] * above, *text[:said], *terminal.region])
        assert terminal.screen.display[terminal.screen.cursor.y].startswith(terminal.region[terminal.place.y])


@pytest.mark.parametrize("bare", [[""], ["──┼──"], ["", "──┼──"]], ids=str)
def test_rows_without_text_that_left_the_screen_are_not_painted_again(bare: list[str]) -> None:
    terminal = Terminal(rows=6)
    tail = ["one", *bare, "two", "three"]
    terminal.paint([], tail)
    terminal.draw(["> typed", *["menu"] * 3])
    for finished, unfinished in ([], tail), (tail[:1], tail[1:]), (tail[1:], []):
        terminal.paint(finished, unfinished)
        terminal.check(tail)


def test_a_row_without_text_that_left_the_screen_but_was_none_takes_no_later_one_with_it() -> None:
    terminal = Terminal()
    terminal.paint([], ["text", "```"])
    terminal.flow.let_go()
    terminal.paint(["text"])
    terminal.paint(["", "next"])
    terminal.check(["text", "```", "", "next"])


def test_a_menu_that_comes_and_goes_between_two_paintings_moves_no_row() -> None:
    terminal = Terminal(rows=6)
    terminal.paint([], ["one", "two", "three", "four"])
    terminal.draw(["> typed", *["menu"] * 3])
    terminal.draw(REGION)
    terminal.paint([], ["  one", "  two", "  three", "  four", "five"])
    terminal.check(["one", "two", "  three", "  four", "five"])


@pytest.mark.parametrize("how", ["squeezed", "let go", "on the screen"])
def test_what_passes_takes_nothing_of_what_is_said_with_it(how: str) -> None:
    terminal = Terminal(rows=6)
    passing = ["one thought", "two thoughts"]
    terminal.write([], [Row(text) for text in passing])
    if how == "squeezed":
        terminal.draw(["> typed", *["menu"] * 5])
        terminal.draw(REGION)
    elif how == "let go":
        terminal.flow.let_go()
    terminal.paint(["folded", ""], ["the answer"])
    terminal.check([*(passing if how != "on the screen" else []), "folded", "", "the answer"])


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
        terminal.write([], fold(said([text[:end]]), 80))
    assert terminal.written < 2.5 * len(text)


@pytest.mark.parametrize("tail", ["🏳️‍🌈 flag", "cafe\u0301", "שלום", "👩‍👩‍👧 family"])
def test_what_has_no_sure_width_is_written_anew_from_there(tail: str) -> None:
    terminal = Terminal()
    for end in range(1, len(tail) + 1):
        terminal.paint([], ["ab " + tail[:end]])
    at_once = Terminal()
    at_once.paint([], ["ab " + tail])
    assert terminal.lines() == at_once.lines()
