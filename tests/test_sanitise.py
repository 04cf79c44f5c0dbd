"""No text can drive the terminal, hide in it or overwrite it, however it is cut; ordinary text is left alone."""

import unicodedata

import pyte
import pytest
from attacks import COMPLETE, FORBIDDEN, SPELLED, told
from hypothesis import given
from hypothesis import strategies as st

from llamachat.ui.sanitise import Sanitiser, sanitise, sanitise_line

KEPT = [
    "Plain text,\twith tabs\nand lines [31m ]0; 100% <b>[bold]x[/bold]</b>",
    "Grüße, naïve, Ελλάδα, Привет, 日本語, עברית, العربية",
    "👩‍🚀 👨‍👩‍👧‍👦 ❤️‍🔥 🏳️‍🌈 👩🏽‍💻 1️⃣ ©️ 👍🏿 🇫🇷",
    "می‌خواهم क्‍ष ශ්‍රී",
    "∩\ufe00 葛\U000e0100 ᠠ\u180b",
]
HOSTILE = "".join(COMPLETE.values()) + "".join(SPELLED) + "".join(KEPT)
CONTROLS = "\x1b\x1b\x1b[]P_\\(;?0m\x07\x9b\x9c\x9d\x90\r\n\t\0\x18"
NASTY = st.text(st.sampled_from(CONTROLS + " ax1\u200d\u200c\ufe0f❤🚀می\u202e\u180bᠠ\ud800"), max_size=24)


def fed(pieces: list[str]) -> str:
    sanitiser = Sanitiser()
    return "".join(map(sanitiser.feed, pieces)) + sanitiser.finish()


@pytest.mark.parametrize("sequence", COMPLETE.values(), ids=COMPLETE)
def test_complete_sequences_and_mute_controls_vanish(sequence: str) -> None:
    assert sanitise(f"before{sequence}after") == "beforeafter"


@pytest.mark.parametrize(("text", "shown"), SPELLED.items(), ids=map(ascii, SPELLED))
def test_broken_sequences_and_hidden_characters_are_spelled_out(text: str, shown: str) -> None:
    assert sanitise(text) == shown


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert sanitise(text) == text


@pytest.mark.parametrize("text", [*COMPLETE.values(), *SPELLED, *KEPT], ids=ascii)
def test_any_two_cuts_give_what_the_whole_gives(text: str) -> None:
    text = f"a{text}z"
    whole = sanitise(text)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert fed([text[:first], text[first:second], text[second:]]) == whole
    assert fed(list(text)) == whole


@given(NASTY, st.data())
def test_cuts_never_matter_and_twice_is_once(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    whole = sanitise(text)
    assert fed([text[:cut], text[cut:]]) == fed(list(text)) == whole
    assert sanitise(whole) == whole
    assert not FORBIDDEN.search(whole)


@given(st.text())
def test_no_control_or_surrogate_comes_through(text: str) -> None:
    assert not FORBIDDEN.search(sanitise(text))
    assert {unicodedata.category(c) for c in sanitise(text) if c not in "\n\t"}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize("start", ["\x1b]0;", "\x1bP", "\x9f", "\x1b[", "\x1b("])
def test_an_endless_sequence_holds_back_little(start: str) -> None:
    sanitiser = Sanitiser()
    shown = sanitiser.feed(start) + "".join(sanitiser.feed("1" if start == "\x1b[" else "!") for _ in range(300))
    assert len(shown) > 300


def test_text_is_shown_at_once_when_nothing_is_open() -> None:
    sanitiser = Sanitiser()
    assert [sanitiser.feed(piece) for piece in ["He", "llo\n", "4", "2 ❤", "\x1b[3", "1m!"]] == [
        "He",
        "llo\n",
        "4",
        "2 ❤",
        "",
        "!",
    ]


def test_a_finished_sanitiser_is_as_new() -> None:
    sanitiser = Sanitiser()
    sanitiser.feed("❤\x1b[3")
    sanitiser.finish()
    assert sanitiser.feed("\ufe0f1m") == "⟨U+FE0F⟩1m"


def test_a_line_stays_one_line() -> None:
    assert sanitise_line("a\r\nb\tc\x1b[2J \u2028d") == "a b c d"


def test_a_terminal_emulator_is_told_nothing_but_to_draw() -> None:
    assert told(HOSTILE) >= {"set_title", "select_graphic_rendition", "erase_in_display", "bell", "set_mode", "reset"}
    assert told(sanitise(HOSTILE)) == {"draw", "linefeed", "tab"}


@given(NASTY)
def test_no_nasty_text_tells_a_terminal_emulator_more(text: str) -> None:
    assert told(sanitise(text)) <= {"draw", "linefeed", "tab"}


def test_an_emulated_screen_keeps_its_title_modes_and_colours() -> None:
    screen = pyte.Screen(80, 24)
    modes = set(screen.mode)
    pyte.Stream(screen).feed(sanitise(HOSTILE))
    assert (screen.title, screen.icon_name, screen.mode, screen.margins) == ("", "", modes, None)
    assert {(cell.fg, cell.bg, cell.bold) for row in screen.buffer.values() for cell in row.values()} == {
        ("default", "default", False)
    }


BYTES = st.lists(
    st.sampled_from([attack.encode(errors="surrogatepass") for attack in [*COMPLETE.values(), *SPELLED]])
    | st.binary(max_size=9),
    max_size=9,
).map(b"".join)


@given(BYTES, st.data())
def test_bytes_that_are_no_text_tell_a_terminal_nothing_either(raw: bytes, data: st.DataObject) -> None:
    text = raw.decode("latin-1") if data.draw(st.booleans()) else raw.decode(errors="surrogateescape")
    cut = data.draw(st.integers(0, len(text)))
    assert fed([text[:cut], text[cut:]]) == sanitise(text)
    assert told(sanitise(text)) <= {"draw", "linefeed", "tab"}


@pytest.mark.parametrize(
    "unit", ["\x1b]", "\x1b[", "\x9d", "\x1b[1;", "\x1bP\x1b", "\x1b ", "\u200d", "❤\ufe0f", "\r", "\x1b]a"]
)
def test_no_repetition_is_costly(unit: str) -> None:
    """Were it quadratic, these would take minutes."""
    assert not FORBIDDEN.search(sanitise(unit * (10**5 // len(unit))))
