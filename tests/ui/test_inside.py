"""Drawings of what goes on inside say what the data says, within the width, with and without colours."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len

from llamachat.events import Branch, Reading, TextDelta, TokenView, Turn
from llamachat.ui.above import Above
from llamachat.ui.drawings import alternatives, branch_tree, context_map, heat, visible
from llamachat.ui.theme import Theme, load

SGR = re.compile(r"\x1b\[[0-9;]*m")
PLAIN, DARK = load("none"), load("dark")
NASTY = st.text(st.sampled_from("ab \n\t日👩\u200d🚀\u202e\x1b[2J]0;\x07"), max_size=12)


def token(text: str, probability: float, id: int = 0, top: tuple[tuple[str, int, float], ...] = ()) -> TokenView:
    return TokenView(text, id, math.log(probability), top)


ANSWER = [token(" The", 0.9), token(" sky", 0.4), token(" is", 0.1), token(" not", 0.03), token(" blue", 0.001)]


def test_heat_colours_each_token_by_its_probability() -> None:
    line = heat(ANSWER, 80, DARK)[0]
    shown = " The" + "".join(
        DARK.ansi(DARK.text(one.text, f"heat{level}")) for level, one in enumerate(ANSWER) if level
    )
    assert line == shown


def test_heat_without_colours_marks_the_unlikely_tokens() -> None:
    lines = heat(ANSWER, 200, PLAIN)
    assert lines[0] == " The sky is ‹not› «blue»"
    assert "‹1–5%›  «< 1%»" in lines[2]


def test_heat_names_the_least_likely_tokens_as_alts_counts_them() -> None:
    perplexity = math.exp(-sum(one.logprob for one in ANSWER) / len(ANSWER))
    assert heat(ANSWER, 200, PLAIN)[-1] == (
        f"5 tokens, perplexity {perplexity:.2f}; least likely: "
        "5 ' blue' 0.1%, 4 ' not' 3.0%, 3 ' is' 10.0%, 2 ' sky' 40.0%, 1 ' The' 90.0%"
    )


def test_heat_of_nothing_says_so() -> None:
    assert heat([], 80, PLAIN) == ["no tokens"]


def test_alternatives_have_bars_in_proportion_and_mark_the_chosen_one() -> None:
    top = ((" b", 1, math.log(0.5)), ("\n", 2, math.log(0.25)), ("c\t", 3, math.log(0.00001)))
    lines = alternatives(7, token("\n", 0.25, 2, top), 80, PLAIN)
    assert lines[0] == "token 7: '⏎'"
    assert [line.split() for line in lines[1:4]] == [
        ["1", "█" * 15, "50.0%", "'", "b'"],
        ["2", "█" * 7 + "▌", "25.0%", "'⏎'", "←", "chosen"],
        ["3", "<0.01%", "'c⇥'"],
    ]


def test_a_chosen_token_that_is_not_among_the_likeliest_comes_last() -> None:
    lines = alternatives(1, token("odd", 0.004, 9, ((" b", 1, math.log(0.9)),)), 80, PLAIN)
    assert lines[2].split() == ["…", "▏", "0.4%", "'odd'", "←", "chosen"]


def test_tokens_without_ids_are_told_apart_by_their_texts() -> None:
    view = TokenView("b", None, math.log(0.25), (("a", None, math.log(0.5)), ("b", None, math.log(0.25))))
    lines = alternatives(1, view, 80, PLAIN)
    assert [line.endswith("← chosen") for line in lines[1:3]] == [False, True]
    assert lines[3:] == ["probabilities as the server tells them"]
    rare = alternatives(1, TokenView("c", None, -9.0, view.top), 80, PLAIN)
    assert rare[3].endswith("'c' ← chosen") and sum("chosen" in line for line in rare) == 1


def test_alternatives_take_what_rounding_makes_of_a_certain_token() -> None:
    certain = TokenView("a", 1, 1e-7, (("a", 1, 1e-7),))
    assert "100.0%" in alternatives(1, certain, 80, PLAIN)[1]


def turn(number: int, seen: str, role: str = "user", tokens: int = 10) -> Turn:
    return Turn(number, role, f"text {number}\nand more", tokens, seen)  # type: ignore[arg-type]


def test_the_context_map_shows_the_window_and_every_message() -> None:
    turns = [turn(0, "pinned", "system"), turn(1, "dropped"), turn(2, "kept"), turn(2, "kept", "assistant", 0)]
    assert context_map(turns, 40, 80, 80, PLAIN) == [
        "█" * 10 + "▓" * 30 + "░" * 40,
        "█ pinned 10 · ▓ kept 30 · ░ free 40 · of 80 tokens",
        "",
        "  pinned      0 system         10  text 0 and more",
        "  dropped     1 user           10  text 1 and more",
        "  kept        2 user           10  text 2 and more",
        "  kept        2 assistant       ?  text 2 and more",
    ]


def test_the_context_map_says_partly_and_fits_a_narrow_screen() -> None:
    turns = [turn(4, "dropped"), turn(5, "partly"), turn(5, "kept", "assistant", 0)]
    assert context_map(turns, 40, 80, 80, PLAIN)[4] == "  partly      5 user           10  text 5 and more"
    assert context_map(turns, 40, 80, 30, PLAIN)[1:] == [
        "█ pinned 0 · ▓ kept 40 · ░",
        "free 40 · of 80 tokens",
        "",
        "dropped   4 you     10 text 4…",
        "partly    5 you     10 text 5…",
        "kept      5 it       ? text 5…",
    ]


def test_how_far_a_long_prompt_is_read_is_told_until_the_answer_begins() -> None:
    above = Above(PLAIN, DummyOutput(), lambda line: None, lambda error: None, plain=True, think=False, stats=False)
    assert above.reading() == "reading"
    for event, says in ((Reading(512, 12345), "reading 4% of 12,345 tokens"), (TextDelta("A"), "reading")):
        above.post(event)
        above.end()
        assert above.reading() == says


def test_many_dropped_messages_are_summed_up() -> None:
    lines = context_map([turn(number, "dropped") for number in range(1, 101)], 0, 80, 80, PLAIN)
    assert lines[3:5] == [
        "  dropped  1–95               950  95 messages",
        "  dropped    96 user           10  text 96 and more",
    ]
    assert len(lines) == 3 + 6


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (79, 79), (80, 80), (90, 80)])
def test_the_window_is_empty_only_where_nothing_is_used(used: int, filled: int) -> None:
    assert context_map([], used, 80, 80, PLAIN)[0] == "▓" * filled + "░" * (80 - filled)


def test_branches_say_which_is_active_and_where_the_others_left_it() -> None:
    branches = [Branch(3, False, 1, "first?\nmore", 0), Branch(12, True, 4, "and then?", 4, "Then it")]
    assert branch_tree(branches, 80, PLAIN) == [
        "○  3  1 turn, forked after 0      first? more",
        "● 12  4 turns, active             and then?",
        "                                  Then it",
    ]
    assert branch_tree([], 80, PLAIN) == ["no branches"]


def test_a_token_is_shown_with_what_is_invisible_in_it() -> None:
    assert visible(" a\tb\n\u202e\x1b[2J", 80) == "' a⇥b⏎⟨U+202E⟩'"
    assert visible("abcdefgh", 6) == "'abcd…"


@given(st.lists(NASTY, max_size=8), st.integers(12, 100), st.sampled_from([PLAIN, DARK]))
def test_nothing_hostile_or_too_wide_comes_out(texts: list[str], width: int, theme: Theme) -> None:
    tokens = [token(text, 0.02, number, ((text, 1, -1.0),)) for number, text in enumerate(texts)]
    lines = [
        *heat(tokens, width, theme),
        *(line for one in tokens for line in alternatives(1, one, width, theme)),
        *context_map([Turn(1, "user", text, 5, "kept") for text in texts], 5, 9, width, theme),
        *branch_tree([Branch(1, False, 1, text, 0) for text in texts], width, theme),
    ]
    for line in lines:
        bare = SGR.sub("", line)
        assert cell_len(bare) <= width
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", bare)
