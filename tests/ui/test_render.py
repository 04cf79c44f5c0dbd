"""Answers reach the screen as they are; our own lines are short, safe, and coloured only where that is wanted."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llamachat.errors import ModelError
from llamachat.events import (
    Branch,
    Event,
    Evicted,
    FinishReason,
    SavedDialog,
    Stats,
    TextDelta,
    TokenView,
    Turn,
    TurnDone,
)
from llamachat.ui.answer import Answer, Sheet, eviction_line
from llamachat.ui.markdown.blocks import LIMIT
from llamachat.ui.plain import PlainStream
from llamachat.ui.render import Screen, answering_line, meter, percent, stats_line, status_line
from llamachat.ui.theme import load

STATS = Stats(
    prompt_tokens=40,
    reused_tokens=30,
    completion_tokens=12,
    prefill_s=0.214,
    decode_s=0.25,
    context_used=246,
    context_size=8192,
)
DONE = TurnDone(STATS, "stop")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def shown(*events: Event | str) -> tuple[str, str]:
    """What went out, and what was noted, for an answer of these events."""
    out, notes = StringIO(), StringIO()
    Screen(out, notes).answer([TextDelta(event) if isinstance(event, str) else event for event in events] + [DONE])
    return out.getvalue(), notes.getvalue()


def noted(stream: StringIO, no_color: bool = False) -> str:
    screen = Screen(stream, stream, no_color=no_color)
    screen.banner("Some[red]Model\x1b[2J")
    screen.warning("look")
    screen.error(ModelError("bad\nfile", "", "get\x1b]0;x\x07 another"))
    screen.table([("one", "1"), ("three", "3")])
    return stream.getvalue()


def test_an_answer_is_written_as_it_is() -> None:
    text = "[bold]no markup[/] :smile: *stars* `code` " + "a long line " * 40
    assert shown(*text) == (text + "\n", "")


def test_an_answer_that_ends_its_line_gets_no_further_newline() -> None:
    assert shown("a\n", "b\n") == ("a\nb\n", "")
    assert shown() == ("", "")


def test_an_escape_sequence_cut_between_pieces_does_not_reach_the_terminal() -> None:
    assert shown("a\x1b", "]0;ow", "ned\x1b", "\\b", "\x1b[", "31mc\x1b")[0] == "abc⟨U+001B⟩\n"


def test_every_piece_is_shown_before_the_next_is_asked_for() -> None:
    out = StringIO()

    def pieces() -> Iterator[Event]:
        for end in range(1, 4):
            yield TextDelta("x")
            assert out.getvalue() == "x" * end
        yield DONE

    assert Screen(out, out).answer(pieces()) is DONE


def test_a_failing_answer_keeps_its_text_and_ends_its_line() -> None:
    out = StringIO()

    def pieces() -> Iterator[Event]:
        yield TextDelta("half \x1b[")
        raise ModelError("broken")

    with pytest.raises(ModelError):
        Screen(out, out).answer(pieces())
    assert out.getvalue() == "half ⟨U+001B⟩[\n"


def test_evictions_are_told_once_behind_the_answer() -> None:
    stream = StringIO()
    events = [Evicted(2, 300), TextDelta("a"), Evicted(0, 5), Evicted(0, 6), TextDelta("b\n"), TextDelta("c"), DONE]
    Screen(stream, stream).answer(events)
    assert stream.getvalue().splitlines() == [
        "ab",
        "c",
        "no longer seen by the model: the 2 oldest turns and the start of this turn (311 tokens)",
    ]


def test_an_eviction_without_text_is_told() -> None:
    assert shown(Evicted(1, 1)) == ("", eviction_line(Evicted(1, 1)) + "\n")


def test_off_a_terminal_nothing_is_styled() -> None:
    assert noted(StringIO()).splitlines() == [
        "llamachat · Some[red]Model · /help for commands, Ctrl-D to leave",
        "",
        "look",
        r"error: bad\nfile; get another",
        "  one    1",
        "  three  3",
    ]


def test_on_a_terminal_notes_are_coloured() -> None:
    text = noted(Terminal())
    assert "\x1b[1;91merror: \x1b[0m" in text
    assert "\x1b[33mlook\x1b[0m" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == noted(StringIO())


@pytest.mark.parametrize("how", ["variable", "argument"])
def test_no_color_leaves_no_colour(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("NO_COLOR", "1")
    assert set(re.findall(r"\x1b\[([0-9;]*)m", noted(Terminal(), no_color=how == "argument"))) <= {"0", "1", "2"}


def test_a_dumb_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert noted(Terminal()) == noted(StringIO())


def test_a_spinner_turns_only_on_a_terminal() -> None:
    for stream in (StringIO(), Terminal()):
        with Screen(stream, stream).waiting("loading"):
            pass
        assert ("loading" in stream.getvalue()) == stream.isatty()


@pytest.mark.parametrize(
    ("reason", "prefix"), [("stop", ""), ("length", "cut off at the token limit · "), ("interrupt", "stopped · ")]
)
def test_the_stats_line_says_how_the_answer_went(reason: FinishReason, prefix: str) -> None:
    line = stats_line(TurnDone(STATS, reason))
    assert line == prefix + "12 tokens · 44.0 tok/s · first token 0.21 s · context 3% of 8192"


def test_the_stats_line_of_one_token_has_no_speed() -> None:
    one = TurnDone(Stats(5, 0, 1, 0.1, 0.0, 6, 100), "stop")
    assert stats_line(one) == "1 token · first token 0.10 s · context 6% of 100"


def test_the_stats_line_of_no_token_has_no_first_one() -> None:
    none = TurnDone(Stats(5, 0, 0, 0.0, 0.0, 5, 100), "interrupt")
    assert stats_line(none) == "stopped · 0 tokens · context 5% of 100"


def test_what_is_not_known_of_a_server_is_left_out() -> None:
    told = Stats(50, 0, 12, 0.21, 0.25, 62, 0)
    assert stats_line(TurnDone(told, "stop")) == "12 tokens · 44.0 tok/s · first token 0.21 s · context 62 tokens"
    assert status_line("Tiny", told, 62, 0, scheme="on far") == (
        "Tiny on far · 44.0 tok/s · first token 0.21 s · context 62 tokens"
    )
    untold = Stats(0, 0, 12, 0.21, 0.25, 0, 0, counted=False)
    assert stats_line(TurnDone(untold, "stop")) == "12 pieces · 44.0 pieces/s · first piece 0.21 s"
    assert status_line("Tiny", untold, 0, 0) == "Tiny · 44.0 pieces/s · first piece 0.21 s"
    assert status_line("Tiny", untold, 0, 0, width=28) == "Tiny · 44.0 pieces/s"
    assert status_line("A-model", untold, 0, 0, width=4) == "A-m…"
    assert eviction_line(Evicted(2, 0, True)) == (
        "no longer seen by the model: the 2 oldest turns; the rest was read anew"
    )
    assert "the oldest turn" in "".join(shown(Evicted(1, 0)))


def test_the_status_line_says_what_there_is_to_say() -> None:
    assert status_line("Tiny", None, 0, 512) == "Tiny · context ░░░░░░░░░░ 0% of 512"
    assert status_line("Tiny", STATS, 256, 512, width=99, scheme="Q4_1", memory="190 MB") == (
        "Tiny Q4_1 · 44.0 tok/s · first token 0.21 s · context █████░░░░░ 50% of 512 · 190 MB"
    )


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "A-model Q4_1 · 44.0 tok/s · first 0.21 s · ███░░ 50% of 512 · 190 MB"),
        (55, "A-model Q4_1 · 44.0 tok/s · ███░░ 50% of 512"),
        (40, "A-model Q4_1 · ███░░ 50% of 512"),
        (30, "A-model Q4_1 · 50% of 512"),
        (20, "context 50% of 512"),
        (5, "50%"),
    ],
)
def test_a_narrow_status_line_leaves_out_the_less_important(width: int, line: str) -> None:
    assert status_line("A-model", STATS, 256, 512, width=width, scheme="Q4_1", memory="190 MB") == line


def test_a_status_line_names_a_model_by_the_end_of_its_path() -> None:
    assert status_line("/a/long/path/to/a.gguf", None, 0, 512).startswith("a.gguf · ")
    assert status_line("folder/", None, 0, 512).startswith("folder · ")


@given(st.text(), st.integers(1, 200))
def test_a_status_line_is_safe_and_never_too_wide(name: str, width: int) -> None:
    line = status_line(name, STATS, 246, 8192, width=width, scheme=name, memory=name)
    assert cell_len(line) <= width
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)


def test_the_status_line_shortens_a_long_name() -> None:
    line = status_line("A-very-long-model-name-" * 4, STATS, 131072, 131072)
    assert line.endswith("… · 44.0 tok/s · first 0.21 s · █████ 100% of 131072")
    assert len(line) <= 80


def test_in_80_columns_the_status_line_has_all_that_it_should_even_of_a_long_name() -> None:
    line = status_line("SmolLM2-135M-Instruct.Q4_1.gguf", STATS, 246, 8192, width=79, scheme="int4", memory="190 MB")
    assert line == "SmolLM2-135M-… int4 · 44.0 tok/s · first 0.21 s · █░░░░ 3% of 8192 · 190 MB"


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (100, 1), (101, 2), (999, 9), (1000, 10), (1001, 10)])
def test_the_meter_is_empty_or_full_only_when_the_context_is(used: int, filled: int) -> None:
    assert meter(used, 1000) == "█" * filled + "░" * (10 - filled)


@pytest.mark.parametrize(("used", "text"), [(0, "0%"), (1, "<1%"), (10, "1%"), (499, "50%"), (1000, "100%")])
def test_percent_never_calls_something_nothing(used: int, text: str) -> None:
    assert percent(used, 1000) == text


# ---- thinking ----

THOUGHT = [TextDelta("Let me\n", thinking=True), TextDelta("think \x1b[2J", thinking=True), TextDelta("so 42"), DONE]


def test_off_a_terminal_thinking_is_not_shown_unless_asked_for_and_never_on_stdout() -> None:
    assert shown(*THOUGHT) == ("so 42\n", "")
    out, notes = StringIO(), StringIO()
    Screen(out, notes, think=True).answer(THOUGHT)
    assert (out.getvalue(), notes.getvalue()) == ("so 42\n", "Let me\nthink \n")


def test_space_between_a_thought_and_its_answer_is_not_printed_and_none_else() -> None:
    thought = TextDelta("hm", thinking=True)
    assert shown(thought, "\n", "\n", "  Yes\n", "\n", " so") == ("Yes\n\n so\n", "")
    assert shown("\n", " Yes")[0] == "\n Yes\n"


def test_at_a_terminal_thinking_is_one_line_or_shown_dim() -> None:
    folded, whole = Terminal(), Terminal()
    Screen(folded, folded).answer(THOUGHT)
    Screen(whole, whole, think=True).answer(THOUGHT)
    assert re.fullmatch(r"\x1b\[2mthought for 0\.\d s · 2 tokens\x1b\[0m\nso 42\n", folded.getvalue())
    assert "\x1b[2;3mthink \x1b[0m" in whole.getvalue()
    assert whole.getvalue().endswith("· 2 tokens\x1b[0m\nso 42\n")


class Live:
    """A markdown answer, and what it prints in lines."""

    def __init__(self, theme: str = "none", width: int = 80, **options: Any) -> None:
        self._printed: list[str] = []
        put = self._printed.append
        self.answer = Answer(Sheet(load(theme), lambda: width, put, put, "markdown"), **options)

    def feed(self, event: Event) -> list[str]:
        self.answer.feed(event)
        return self._lines()

    def finish(self) -> list[str]:
        self.answer.finish()
        return self._lines()

    @property
    def tail(self) -> list[str]:
        return self.answer.tail

    def _lines(self) -> list[str]:
        text = "".join(self._printed)
        assert text.endswith("\n") or not text, "whole lines"
        self._printed.clear()
        return text.split("\n")[:-1]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_the_last_lines_of_a_live_thought_are_shown_until_it_is_folded() -> None:
    lines = Live(clock=Clock())
    assert not lines.answer.thinking and not lines.answer.passing
    assert lines.feed(THOUGHT[0]) == []
    assert (lines.tail, lines.answer.thinking) == (["┊ Let me"], "thinking for 1.0 s · 1 token")
    for number in range(9):
        assert lines.feed(TextDelta(f"- line {number}\n\n", thinking=True, ids=(1, 2))) == []
    assert lines.tail == ["┊ • line 6", "┊ • line 7", "┊ • line 8"] and lines.answer.passing
    assert lines.feed(THOUGHT[2]) == ["thought for 2.0 s · 19 tokens", ""]
    assert (lines.tail, lines.answer.text, lines.answer.thinking) == (["so 42"], "so 42", "")
    assert not lines.answer.passing


def test_a_live_thought_stays_where_that_is_wanted() -> None:
    lines = Live(think=True, clock=Clock())
    assert lines.feed(THOUGHT[0]) + lines.tail == ["┊ Let me"]
    assert lines.feed(THOUGHT[1]) + lines.tail == ["┊ Let me", "┊ think"]
    assert not lines.answer.passing
    assert lines.feed(THOUGHT[2]) == ["┊ Let me", "┊ think", "thought for 1.0 s · 2 tokens", ""]


def test_an_answer_that_is_only_thought_says_how_long_and_an_empty_thought_nothing() -> None:
    lines = Live(clock=Clock())
    lines.feed(THOUGHT[0])
    assert lines.finish() == ["thought for 1.0 s · 1 token", ""]
    assert lines.tail == []
    lines.feed(TextDelta("\n\n", thinking=True))
    assert lines.feed(TextDelta("\n\nYes")) == [] and lines.tail == ["Yes"]


def test_a_thought_is_shown_whole_and_dim_when_it_is_asked_for() -> None:
    assert printed(lambda screen: screen.thought("Let me\n\n- think \x1b[2J")) == ["┊ Let me", "┊", "┊ • think"]


def test_the_status_line_says_how_long_the_thought_was_in_place_of_the_first_token() -> None:
    stats = replace(STATS, thought_tokens=340, thought_s=12.4)
    line = functools.partial(status_line, "Qwen3-4B", stats, 256, 512, scheme="Q4_K", memory="2.9 GB")
    assert (
        line(width=99)
        == "Qwen3-4B Q4_K · 44.0 tok/s · thought 12 s, 340 tokens · context █████░░░░░ 50% of 512 · 2.9 GB"
    )
    assert line(width=79) == "Qwen3-4B Q4_K · 44.0 tok/s · thought 12 s, 340 tokens · ███░░ 50% of 512"
    assert line(width=62) == "Qwen3-4B Q4_K · 44.0 tok/s · thought 12 s · ███░░ 50% of 512"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (79, "answering · 123 tokens · 45.1 tok/s · context 12% of 8192 · Ctrl-C stops"),
        (66, "answering · 123 tokens · 45.1 tok/s · 12% of 8192 · Ctrl-C stops"),
        (58, "answering · 123 tokens · 45.1 tok/s · 12% · Ctrl-C stops"),
        (46, "answering · 123 tokens · 12% · Ctrl-C stops"),
        (28, "123 tokens · Ctrl-C stops"),
        (9, "answering"),
    ],
)
def test_the_status_of_an_answer_under_way_says_less_where_there_is_less_room(width: int, line: str) -> None:
    assert answering_line("answering", 123, "token", 45.1, 983, 8192, width=width) == line


def test_the_status_of_an_answer_leaves_out_what_is_not_known() -> None:
    assert answering_line("reading", 0, "piece", 0.0, 0, 0) == "reading · Ctrl-C stops"
    assert answering_line("answering", 3, "piece", 2.0, 0, 99) == "answering · 3 pieces · 2.0 pieces/s · Ctrl-C stops"


@pytest.mark.parametrize(
    ("reason", "exact", "said"),
    [
        ("stop", True, ""),
        ("interrupt", True, "stopped"),
        ("length", True, "cut off at the token limit"),
        ("repeat", True, "ended: it said the same over and over; /continue goes on"),
        ("repeat", False, "ended: it said the same over and over"),
    ],
)
def test_only_an_end_that_is_not_its_own_is_told(reason: FinishReason, exact: bool, said: str) -> None:
    done = TurnDone(STATS, reason, exact)
    assert printed(lambda screen: screen.ended(done), width=99) == [said] * bool(said)


# ---- live answers ----


def test_finished_lines_come_once_and_the_tail_is_what_is_left() -> None:
    lines = Live("dark")
    assert lines.feed(TextDelta("# He")) == []
    assert lines.tail == ["\x1b[1;4;36mHe\x1b[0m"]
    assert lines.feed(TextDelta("ad\nsome **te")) == ["\x1b[1;4;36mHead\x1b[0m"]
    assert lines.tail == ["some \x1b[1mte\x1b[0m"]
    assert lines.feed(TextDelta("xt**\n\n")) == ["some \x1b[1mtext\x1b[0m"]
    assert lines.feed(DONE) == lines.tail == lines.finish() == []
    assert lines.answer.done is DONE
    assert lines.answer.text == "# Head\nsome **text**\n\n"


def test_a_live_answer_is_filtered_across_its_pieces() -> None:
    lines = Live()
    found = [
        line
        for piece in ("a\x1b", "]0;ow", "ned\x1b", "\\b\n\n", "\x1b[", "31mc\x1b")
        for line in lines.feed(TextDelta(piece))
    ]
    assert found + lines.finish() == ["ab", "", "c⟨U+001B⟩"]


def test_live_evictions_are_told_once_behind_the_answer() -> None:
    lines = Live(width=99)
    assert lines.feed(Evicted(1, 5)) == []
    assert lines.feed(TextDelta("one\n\ntwo")) == ["one"]
    lines.feed(Evicted(1, 2, refilled=True))
    assert lines.finish() == [
        "",
        "two",
        "no longer seen by the model: the 2 oldest turns (7 tokens); the rest was read anew",
    ]


# ---- notes and drawings ----


def printed(show: Callable[[Screen], None], width: int = 30) -> list[str]:
    stream = StringIO()
    show(Screen(stream, stream, theme=load("none"), width=lambda: width))
    return stream.getvalue().splitlines()


def test_notes_wrap_at_word_ends_where_there_is_a_width() -> None:
    assert printed(lambda screen: screen.note("some words that are longer than that")) == [
        "some words that are longer",
        "than that",
    ]
    assert printed(lambda screen: screen.error(ModelError("x " * 20)))[0] == "error: " + "x " * 11 + "x"


def test_a_table_has_columns_a_header_and_a_last_column_that_wraps() -> None:
    rows = [("日本", "1", "some words that do not fit"), ("b", "22", "c")]
    assert printed(lambda screen: screen.table(rows, ("name", "n", "text"))) == [
        "  name  n   text",
        "  日本  1   some words that do",
        "            not fit",
        "  b     22  c",
    ]
    assert printed(lambda screen: screen.table([])) == []


def test_a_whole_markdown_text_is_drawn() -> None:
    assert printed(lambda screen: screen.markdown("- a\x1b[2J\n- b")) == ["• a", "• b"]


@pytest.mark.parametrize(
    ("reference", "seen"),
    [
        ("server:https://far.example:8000/v1#Qwen/Qwen3-32B", "Qwen3-32B on far.example:8000"),
        ("server:http://127.0.0.1:8080/v1", "127.0.0.1:8080"),
        ("files/model#1.gguf", "model#1.gguf"),
    ],
)
def test_a_saved_dialog_names_the_model_of_a_server_briefly(reference: str, seen: str) -> None:
    noted = printed(lambda screen: screen.dialogs([SavedDialog("a", 0.0, 1, "hi", reference)]), 120)[1]
    assert f"  {seen}  hi" in noted and "server:" not in noted


def test_the_screen_prints_what_is_inside() -> None:
    token = TokenView("a", 1, -0.1, (("a", 1, -0.1),))
    assert printed(lambda screen: screen.heat([token]))[0] == "a"
    assert printed(lambda screen: screen.alternatives(3, token))[0] == "token 3: 'a'"
    assert printed(lambda screen: screen.context([Turn(1, "user", "hi", 3, "kept")], 3, 30), 80)[3].endswith("hi")
    assert printed(lambda screen: screen.branches([Branch(1, True, 1, "hi", 1)]))[0].startswith("●")
    assert printed(lambda screen: screen.why([("top_k", "40")])) == ["  top_k  40"]
    assert printed(lambda screen: screen.dialogs([SavedDialog("a", 0.0, 1, "hi", "Tiny")]), 80)[1].endswith(
        "1  Tiny   hi"
    )


@pytest.mark.parametrize("word", ["x" * 20_000, "ab cd" * 4000, "日" * 5000])
def test_a_plain_line_without_end_waits_for_no_more_than_a_few_rows_and_loses_nothing(word: str) -> None:
    stream = PlainStream()
    blocks = [block for start in range(0, len(word), 7) for block in stream.feed(word[start : start + 7])]
    assert sum(len(block.raw) for block in stream.tail) <= LIMIT
    assert "".join(block.raw for block in blocks + stream.finish()) == word
