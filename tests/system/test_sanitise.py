"""No text can drive the terminal, hide in it or overwrite it, however it is cut; ordinary text is left alone."""

import unicodedata

import pyte
import pytest
from attacks import COMPLETE, FORBIDDEN, SPELLED, told
from hypothesis import given
from hypothesis import strategies as st
from rich._emoji_codes import EMOJI
from wcwidth.table_vs15 import VS15_WIDE_TO_NARROW
from wcwidth.table_vs16 import VS16_NARROW_TO_WIDE

from llamachat.system.sanitise import Sanitiser, sanitise, sanitise_line

KEPT = [
    "Plain text,\twith tabs\nand lines [31m ]0; 100% <b>[bold]x[/bold]</b>",
    "Grüße, naïve, Ελλάδα, Привет, 日本語, עברית, العربية",
    "👩‍🚀 👨‍👩‍👧‍👦 ❤️‍🔥 🏳️‍🌈 👩🏽‍💻 1️⃣ ©️ 👍🏿 🇫🇷",
    "می‌خواهم क्‍ष ශ්‍රී",
    "∩\ufe00 葛\U000e0100 ᠠ\u180b",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🏴 🏳️‍⚧️ 🐦‍⬛ #️⃣ ↔️ ▶︎ 🧑🏿‍❤️‍💋‍🧑🏻",
    unicodedata.normalize("NFD", "Tiếng Việt: Nghĩa; ᾱ̔́ ᾄ ế ǖ; Łódź; ɔ̃̀ː"),
    "ᾰ̄̓́ and e̞̽͡ and x̲̅",  # of a dictionary of Greek; IPA
    "בְּרֵאשִׁ֖ית בָּרָ֣א אֱלֹהִ֑ים וַיֹּ֥אמֶר יְרוּשָׁלַ֗͏ִם".replace("\u034f", ""),
    "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ وَٱلضُّحَىٰٓ ١٤٤٥ه\u200d؛ نمی‌خواهمِ",
    "ที่นี่ น้ำ กุ้ง ปู่ ຜູ້ ນ້ຳ ខ្ញុំស្រឡាញ់ភាសាខ្មែរ ကျွန်ုပ် ကြောင့် ကျွှို့",
    "हिन्दी र्‍य क्ष्म्य ज्ञा॒न॑म् বাংলা র‍্যাব হঠাৎ চট্‌ ਪੰਜਾਬੀ ગુજરાતી ଓଡ଼ିଆ தமிழ் ஸ்ரீ తెలుగు ಕನ್ನಡ ರ‍್ಯ മലയാളം ന്‍ සිංහල ක්‍ෂ",
    "བོད་ཡིག བསྒྲུབས ཧཱུྃ ཧྐྵྨླྺྼྻྃ རྫོང་ཁ",
    "한국어 \u1112\u1161\u11ab\u1100\u1173\u11af \ua960\u1161 かな が カ゚ 漢\ufe00字 「ヲ」",
    "Ѿ҃ с҇ꙮ ⷪ҇ ʼn ꦧꦱꦗꦮ ꦏ꧀‌ ᬩᬮᬶ ᨠᩣᨾ᩠ᨾ ߒߞߏ߫ ܫܠܳܡܳܐ ދިވެހި አማርኛ ⵜⵉⴼⵉⵏⴰⵖ 𑄌𑄋𑄴𑄟𑄳𑄦 𞤀𞤣𞤤𞤢𞤥",
]
ZALGO = "Z\u0351\u0346\u0304\u0302\u0300\u030d\u0316\u0317\u0318\u0319\u0335\u0489"
HOSTILE = "".join(COMPLETE.values()) + "".join(SPELLED) + "".join(KEPT)
NEIGHBOURS = "🏴\U000e0067\U000e007f字\U000e0100\u0301\u0302\u0327क\u094d\u0651\u06dd"
CONTROLS = "\x1b\x1b\x1b[]P_\\(;?0m\x07\x9b\x9c\x9d\x90\r\n\t\0\x18"
NASTY = st.text(st.sampled_from(CONTROLS + " ax1\u200d\u200c\ufe0f❤🚀می\u202e\u180bᠠ\ud800" + NEIGHBOURS), max_size=24)


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


def test_every_format_character_and_every_ignorable_one_is_spelled_out_between_letters() -> None:
    ignorable = [
        *range(0xFE00, 0xFE10),
        *range(0xE0000, 0xE1000),
        *map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"),
    ]
    for code in {*ignorable, *(code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf")}:
        assert sanitise(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"


def test_every_emoji_is_left_alone() -> None:
    """Rich's list has Unicode's emoji with all sequences, flags of regions too; wcwidth's have the bases of both selectors."""
    for emoji in EMOJI.values():
        assert sanitise(f"a{emoji}b") == f"a{emoji}b"
    for low, high in (*VS16_NARROW_TO_WIDE["9.0.0"], *VS15_WIDE_TO_NARROW["9.0.0"]):
        for base in map(chr, range(low, high + 1)):
            assert sanitise(f"{base}\ufe0e{base}\ufe0f") == f"{base}\ufe0e{base}\ufe0f"


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        ZALGO: ZALGO[:5] + "⟨U+0300⟩⟨U+030D⟩" + ZALGO[7:9] + "".join(f"⟨U+{ord(c):04X}⟩" for c in ZALGO[9:]),
        "ส" + "\u0e47" * 6: "ส" + "\u0e47" * 4 + "⟨U+0E47⟩" * 2,
        "م" + "\u0651\u200d" * 6 + "م": "م" + "\u0651\u200d" * 3 + "\u0651" + "⟨U+200D⟩⟨U+0651⟩" * 2 + "⟨U+200D⟩م",
        "a" + "\u0301" * 4 + "b" + "\u0301" * 4: "a" + "\u0301" * 4 + "b" + "\u0301" * 4,
        "".join(f"字{chr(0xE0100 + byte)}{chr(0xFE00 + byte)}" for byte in (1, 9)): (
            "字\U000e0101⟨U+FE01⟩字\U000e0109⟨U+FE09⟩"
        ),
        "😀\U000e0148\U000e0155 │\ufe0f ∩\ufe01 9\U000e0100": "😀⟨U+E0148⟩⟨U+E0155⟩ │⟨U+FE0F⟩ ∩⟨U+FE01⟩ 9⟨U+E0100⟩",
        "🏴\U000e0067\U000e0062": "🏴⟨U+E0067⟩⟨U+E0062⟩",
        "🏴" + "\U000e0061" * 7 + "\U000e007f": "🏴" + "⟨U+E0061⟩" * 7 + "⟨U+E007F⟩",
        "x\u0600y\u06ddz \ufff9a\ufffab\ufffb": "x⟨U+0600⟩y⟨U+06DD⟩z ⟨U+FFF9⟩a⟨U+FFFA⟩b⟨U+FFFB⟩",
    }.items(),
    ids=ascii,
)
def test_floods_of_marks_and_selectors_that_select_nothing_are_spelled_out(text: str, shown: str) -> None:
    assert sanitise(text) == fed(list(text)) == shown
    assert sanitise(shown) == shown


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
    "unit",
    [
        "\x1b]",
        "\x1b[",
        "\x9d",
        "\x1b[1;",
        "\x1bP\x1b",
        "\x1b ",
        "\u200d",
        "❤\ufe0f",
        "\r",
        "\x1b]a",
        "\u0301",
        "ป่",
        "🏴\U000e0061",
    ],
)
def test_no_repetition_is_costly(unit: str) -> None:
    """Were it quadratic, these would take minutes."""
    assert not FORBIDDEN.search(sanitise(unit * (10**5 // len(unit))))
