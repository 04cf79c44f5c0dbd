"""Widths count what the most generous terminal draws, and no cut falls within a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from wcwidth import wcswidth

from llamachat.ui.cells import cells, chop, cut, pad, wrap

LINES = st.lists(st.sampled_from(["a", "bc ", " ", "日", "。", "é", "👩‍🚀", "❤️", "x" * 30]), max_size=40).map("".join)


@given(LINES)
def test_no_known_reading_of_a_text_is_wider(text: str) -> None:
    assert cells(text) >= wcswidth(text)


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("👩‍🚀", 4), ("❤️", 2), ("🇫🇷", 2), ("", 0)]
)
def test_widths(text: str, width: int) -> None:
    assert cells(text) == width


@given(LINES, st.integers(4, 50))
def test_wrapped_lines_fit_and_keep_all_but_spaces(text: str, width: int) -> None:
    lines = [line.plain for line in wrap(Text(text), width)]
    assert all(cells(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(LINES, st.integers(4, 50))
def test_chopped_lines_fit_and_keep_everything(text: str, width: int) -> None:
    lines = [line.plain for line in chop(Text(text), width)]
    assert all(cells(line) <= width for line in lines)
    assert "".join(lines) == text


def test_a_character_of_many_parts_stays_whole() -> None:
    assert [line.plain for line in chop(Text("a👩‍🚀e\u0301b"), 4)] == ["a", "👩‍🚀", "e\u0301b"]


def test_styles_survive_wrapping() -> None:
    first, second = wrap(Text.assemble("one ", ("two three", "bold")), 8)
    assert [(span.start, span.end, span.style) for span in (*first.spans, *second.spans)] == [
        (4, 7, "bold"),
        (0, 5, "bold"),
    ]


@pytest.mark.parametrize(("width", "shown"), [(9, "日本 text"), (8, "日本 te…"), (4, "日…"), (1, "…"), (0, "")])
def test_what_is_cut_says_so(width: int, shown: str) -> None:
    assert cut("日本 text", width) == shown


def test_padding_counts_cells() -> None:
    assert pad("日", 4) == "日  "


@pytest.mark.parametrize("width", [30, 60, 80])
def test_an_errors_words_stay_whole_and_a_path_breaks_behind_slashes(width: int) -> None:
    path = "/home/somebody/.config/llamachat/personas/a-rather-long-name.toml"
    line = f"error: no persona is called 'nope'; nothing has changed; make {path} or leave it out"
    lines = [part.plain for part in wrap(Text(line), width)]
    assert max(map(cells, lines)) <= width
    assert "".join(lines).replace(" ", "") == line.replace(" ", "")
    assert all(part.endswith("/") or f"{part} " in line for part in lines[:-1])


def test_a_word_without_slashes_breaks_anywhere() -> None:
    assert [part.plain for part in wrap(Text("a " + "x" * 25), 10)] == ["a", "x" * 10, "x" * 10, "x" * 5]
