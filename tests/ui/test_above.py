"""What is shown above the prompt, in a terminal that scrolls: every word once and in order, whatever comes between."""

import re
from collections.abc import Sequence

import pyte
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.data_structures import Size
from prompt_toolkit.output import DummyOutput

from llamachat.events import Evicted, Stats, TextDelta, TurnDone
from llamachat.ui.above import Above
from llamachat.ui.live import Region
from llamachat.ui.theme import load

SIZES = [(30, 10), (60, 16), (80, 24), (120, 30)]
DONE = TurnDone(Stats(10, 4, 12, 0.21, 0.25, 256, 8192), "stop")
NOTICE = "no longer seen by the model"


class Terminal(DummyOutput):
    """Above a region of two rows, what is posted; painted when told to."""

    def __init__(self, columns: int, rows: int, plain: bool = False) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.0001)
        self._stream = pyte.Stream(self.screen)
        self.region = Region(1)
        self.above = Above(
            load("none"), self, lambda line: None, lambda error: None, plain=plain, think=False, stats=False
        )
        self.grow(2)

    def get_size(self) -> Size:
        return Size(self.screen.lines, self.screen.columns)

    def write_raw(self, text: str) -> None:
        self._stream.feed(text.replace("\n", "\r\n"))

    def grow(self, height: int) -> None:
        """Draw the region anew with so many rows, as for a menu, its cursor in the first."""
        self.region = Region(height)
        self._stream.feed("\r\x1b[J" + "\r\n".join(["> typed"] * height) + "\r" + f"\x1b[{height - 1}A" * (height > 1))
        self.above.drawn(self.get_size(), self.region)

    def paint(self) -> None:
        self.above.show(self.get_size(), self.region)

    def text(self) -> str:
        top = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        lines = [*top, *self.screen.display[: self.screen.cursor.y]]
        return "\n".join(line.rstrip() for line in lines)

    def words(self) -> list[str]:
        """Those of the answer, and of notices their beginning."""
        return re.findall(rf"w\d+|beside\d+|{NOTICE}", re.sub(r"\s+", " ", self.text()))


def numbered(shapes: Sequence[str]) -> str:
    """The texts, every # of them a word of its own."""
    count = iter(range(10_000))
    return re.sub("#", lambda _: f"w{next(count)}", "".join(shapes))


WORDS = st.integers(1, 60).map(lambda count: " ".join("#" * count))
STYLED = st.sampled_from(["**{}**", "*{}*", "`{}`", "[{}](#)", "{}", "{}", "{}"])
PARAGRAPH = st.lists(st.builds(str.format, STYLED, WORDS), min_size=1, max_size=5).map(" ".join)
CODE = st.lists(st.integers(1, 4).map(lambda count: " ".join("#" * count)), max_size=20)  # lines that are not cut
ITEMS = st.lists(WORDS, min_size=1, max_size=8)
MARKDOWN = st.one_of(
    PARAGRAPH.map("{}\n\n".format),
    PARAGRAPH.map("{}\n".format),
    ITEMS.map(lambda items: "".join(f"- {item}\n" for item in items) + "\n"),
    ITEMS.map(lambda items: "".join(f"{number}. {item}\n" for number, item in enumerate(items, 1)) + "\n"),
    CODE.map(lambda lines: "```\n" + "\n".join(lines) + "\n```\n"),
    PARAGRAPH.map("> {}\n\n".format),
    st.just("---\n\n"),
)
ANSWERS = st.lists(MARKDOWN, min_size=1, max_size=5).map(numbered)
STEP = st.tuples(st.integers(1, 200), st.sampled_from(["", "", "", "evict", "note", "menu"]))


def run(terminal: Terminal, text: str, steps: Sequence[tuple[int, str]]) -> tuple[int, bool]:
    """Post a text in pieces, with what happens between them; returns how many notes came, and whether turns were evicted."""
    notes, evicted = 0, False
    for size, what in [*steps, (len(text) + 1, "")]:
        terminal.above.post(TextDelta(text[:size]))
        text = text[size:]
        if what == "evict":
            terminal.above.post(Evicted(1, 10))
            evicted = True
        elif what == "note":
            terminal.above.screen.note(f"beside{notes} " * 3)
            notes += 1
        elif what == "menu":
            terminal.grow(terminal.screen.lines // 2 + 1)
            terminal.grow(2)
        terminal.paint()
    terminal.above.post(DONE)
    terminal.above.post(terminal.above.end_answer)
    terminal.paint()
    return notes, evicted


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.lists(STEP, max_size=12), st.sampled_from(SIZES), st.booleans())
def test_every_word_comes_once_and_in_order_and_evictions_are_told_once(
    text: str, steps: list[tuple[int, str]], size: tuple[int, int], plain: bool
) -> None:
    terminal = Terminal(*size, plain=plain)
    notes, evicted = run(terminal, text, steps)
    found = terminal.words()
    assert [word for word in found if word[0] == "w"] == re.findall(r"w\d+", text)
    assert [word for word in found if word[0] == "b"] == [f"beside{n}" for n in range(notes) for _ in range(3)]
    assert found.count(NOTICE) == evicted


def test_a_paragraph_taller_than_the_screen_is_neither_doubled_nor_cut_by_an_eviction() -> None:
    terminal = Terminal(80, 24)
    text = numbered([(" ".join("#" * 40) + "\n") * 10])
    run(terminal, text, [(50, "evict" if at in (10, 30) else "") for at in range(len(text) // 50)])
    assert terminal.words() == [*re.findall(r"w\d+", text), NOTICE]
