"""No text can drive the terminal, hide in it or overwrite it, however it is cut; ordinary text is left alone."""

import re
import unicodedata

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.ui.sanitise import Sanitiser, sanitise, sanitise_line

SWALLOWED = {
    "colour": "\x1b[1;31m",
    "clear screen": "\x1b[2J",
    "private mode": "\x1b[?1049h",
    "CSI with an intermediate": "\x1b[2 q",
    "title ended by BEL": "\x1b]0;owned\x07",
    "title ended by ST": "\x1b]2;owned\x1b\\",
    "clipboard": "\x1b]52;c;bHM=\x07",
    "hyperlink": "\x1b]8;;http://x.example\x1b\\",
    "DCS": "\x1bP$q\x22p\x1b\\",
    "SOS": "\x1bXabc\x1b\\",
    "PM": "\x1b^abc\x1b\\",
    "APC": "\x1b_Gi=1;AAAA\x1b\\",
    "reset": "\x1bc",
    "charset": "\x1b(0",
    "alignment test": "\x1b#8",
    "8-bit CSI": "\x9b31m",
    "8-bit OSC": "\x9d0;owned\x9c",
    "8-bit DCS": "\x90q\x9c",
    "8-bit OSC ended by BEL": "\x9d0;owned\x07",
    "bell": "\x07",
    "backspaces": "\b\b\b",
    "NUL, DEL, shift out": "\0\x7f\x0e",
    "lone string terminator": "\x9c",
}
SHOWN = {
    "\x1b]0;open\nnext": "⟨U+001B⟩]0;open\nnext",
    "\x1bPnever closed": "⟨U+001B⟩Pnever closed",
    "\x1b[3": "⟨U+001B⟩[3",
    "\x1b[3é": "⟨U+001B⟩[3é",
    "\x1b": "⟨U+001B⟩",
    "\x1b\x1b[mx": "⟨U+001B⟩x",
    "\x1b\x1b[m[31mx": "⟨U+001B⟩[31mx",
    "\x1b]0;a\x1b[31mb": "⟨U+001B⟩]0;ab",
    "\x9d8;;x": "⟨U+009D⟩8;;x",
    "one\rtwo": "one\ntwo",
    "one\r\ntwo\r": "one\ntwo\n",
    "a\vb\fc\x85d\u2028e\u2029f": "a\nb\nc\nd\ne\nf",
    "a\ud800b": "a\ufffdb",
    "user\u202egnp.exe": "user⟨U+202E⟩gnp.exe",
    "\u2066x\u2069\u200e\u200f\u061c": "⟨U+2066⟩x⟨U+2069⟩⟨U+200E⟩⟨U+200F⟩⟨U+061C⟩",
    "in\u200bvi\u2060si\ufeffble": "in⟨U+200B⟩vi⟨U+2060⟩si⟨U+FEFF⟩ble",
    "\U000e0041\U000e007f": "⟨U+E0041⟩⟨U+E007F⟩",
    "a\u200db": "a⟨U+200D⟩b",
    "🚀\u200d": "🚀⟨U+200D⟩",
    "a\ufe0f": "a⟨U+FE0F⟩",
    "❤\ufe0f\ufe0f": "❤\ufe0f⟨U+FE0F⟩",
    "\ufe0f\u200d🚀": "⟨U+FE0F⟩⟨U+200D⟩🚀",
    "字\U000e0100\U000e0101": "字\U000e0100⟨U+E0101⟩",
}
KEPT = [
    "Plain text,\twith tabs\nand lines [31m ]0; 100% <b>[bold]x[/bold]</b>",
    "Grüße, naïve, Ελλάδα, Привет, 日本語, עברית, العربية",
    "👩‍🚀 👨‍👩‍👧‍👦 ❤️‍🔥 🏳️‍🌈 👩🏽‍💻 1️⃣ ©️ 👍🏿 🇫🇷",
    "می‌خواهم क्‍ष ශ්‍රී",
    "∩\ufe00 葛\U000e0100 ᠠ\u180b",
]
HOSTILE = "".join(SWALLOWED.values()) + "".join(SHOWN) + "".join(KEPT)
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\u200e\u200f\ud800-\udfff]")
CONTROLS = "\x1b\x1b\x1b[]P_\\(;?0m\x07\x9b\x9c\x9d\x90\r\n\t\0\x18"
NASTY = st.text(st.sampled_from(CONTROLS + " ax1\u200d\u200c\ufe0f❤🚀می\u202e\u180bᠠ\ud800"), max_size=24)


def fed(pieces: list[str]) -> str:
    sanitiser = Sanitiser()
    return "".join(map(sanitiser.feed, pieces)) + sanitiser.finish()


@pytest.mark.parametrize("sequence", SWALLOWED.values(), ids=SWALLOWED)
def test_complete_sequences_and_mute_controls_vanish(sequence: str) -> None:
    assert sanitise(f"before{sequence}after") == "beforeafter"


@pytest.mark.parametrize(("text", "shown"), SHOWN.items(), ids=map(ascii, SHOWN))
def test_broken_sequences_and_hidden_characters_are_spelled_out(text: str, shown: str) -> None:
    assert sanitise(text) == shown


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert sanitise(text) == text


@pytest.mark.parametrize("text", [*SWALLOWED.values(), *SHOWN, *KEPT], ids=ascii)
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


class Spy:
    """A pyte listener that only notes what it is told to do."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __getattr__(self, event: str) -> object:
        if event not in pyte.Stream.events:
            raise AttributeError(event)
        return lambda *_, **__: self.told.add(event)


def told(text: str) -> set[str]:
    spy = Spy()
    pyte.Stream(spy).feed(text)
    return spy.told


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
