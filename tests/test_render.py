"""Answers reach the screen as they are; our own lines are short, safe, and coloured only where that is wanted."""

import re
from collections.abc import Iterator
from io import StringIO

import pytest

from llamachat.errors import ModelError
from llamachat.events import Event, Evicted, FinishReason, Stats, TextDelta, TurnDone
from llamachat.ui.render import Screen, eviction_line, meter, percent, stats_line, status_line

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


def test_an_eviction_is_told_before_the_answer_or_after_its_line() -> None:
    stream = StringIO()
    events = [Evicted(2, 300), TextDelta("a"), Evicted(0, 5), Evicted(0, 6), TextDelta("b\n"), TextDelta("c"), DONE]
    Screen(stream, stream).answer(events)
    assert stream.getvalue().splitlines() == [
        "no longer seen by the model: the 2 oldest turns (300 tokens)",
        "ab",
        "no longer seen by the model: the start of this turn (11 tokens)",
        "c",
    ]


def test_an_eviction_without_text_is_told() -> None:
    assert shown(Evicted(1, 1)) == ("", eviction_line(Evicted(1, 1)) + "\n")


def test_off_a_terminal_nothing_is_styled() -> None:
    assert noted(StringIO()).splitlines() == [
        "llamachat · Some[red]Model · /help for commands, Ctrl-D to leave",
        "",
        "look",
        "error: bad file; get another",
        "  one    1",
        "  three  3",
    ]


def test_on_a_terminal_notes_are_coloured() -> None:
    text = noted(Terminal())
    assert "\x1b[1;31merror: \x1b[0m" in text
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


def test_the_status_line_fits_80_columns() -> None:
    assert status_line("Tiny", None, 0, 512) == "Tiny · context ░░░░░░░░░░ 0% of 512"
    line = status_line("A-very-long-model-name-" * 4, STATS, 131072, 131072)
    assert line.endswith(" · 44.0 tok/s · context ██████████ 100% of 131072")
    assert len(line) <= 80 and "…" in line


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (100, 1), (101, 2), (999, 9), (1000, 10), (1001, 10)])
def test_the_meter_is_empty_or_full_only_when_the_context_is(used: int, filled: int) -> None:
    assert meter(used, 1000) == "█" * filled + "░" * (10 - filled)


@pytest.mark.parametrize(("used", "text"), [(0, "0%"), (1, "<1%"), (10, "1%"), (499, "50%"), (1000, "100%")])
def test_percent_never_calls_something_nothing(used: int, text: str) -> None:
    assert percent(used, 1000) == text
