"""Styles come only where they are wanted, by the theme's name or by what the terminal says of itself."""

from io import StringIO

import pytest
from rich.color_triplet import ColorTriplet
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from llamachat.errors import UsageError
from llamachat.ui.theme import THEMES, choose, load


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "environ", "chosen"),
    [
        (None, {}, "dark"),
        ("auto", {"COLORFGBG": "15;0"}, "dark"),
        ("auto", {"COLORFGBG": "0;15"}, "light"),
        (None, {"COLORFGBG": "0;default;7"}, "light"),
        ("dark", {"COLORFGBG": "0;15"}, "dark"),
        (None, {"LLAMACHAT_THEME": "light"}, "light"),
        ("dark", {"LLAMACHAT_THEME": "light"}, "dark"),
        ("none", {}, "none"),
        ("light", {"NO_COLOR": "1"}, "none"),
        ("light", {"NO_COLOR": ""}, "light"),
        ("light", {"TERM": "dumb"}, "none"),
    ],
)
def test_a_theme_is_chosen(name: str | None, environ: dict[str, str], chosen: str) -> None:
    assert choose(name, Terminal(), environ).name == chosen


def test_off_a_terminal_and_where_no_colour_is_asked_for_there_are_no_styles() -> None:
    assert choose("dark", StringIO(), {}).plain
    assert choose("dark", Terminal(), {}, no_color=True).plain


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}])
def test_an_unknown_name_is_an_error_everywhere(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="choose one of auto, dark, light, none"):
        choose("pink", Terminal(), environ)


def test_light_and_dark_style_the_same_roles() -> None:
    assert load("light").styles.keys() == load("dark").styles.keys()
    assert set(THEMES) == {"auto", "dark", "light", "none"}


def test_styles_become_sgr_sequences_and_none_of_them_none() -> None:
    dark = load("dark")
    assert (
        dark.ansi(Text.assemble("a", dark.text("b", "error"), dark.text("c", "no such role"))) == "a\x1b[1;91mb\x1b[0mc"
    )
    assert load("none").ansi(dark.text("b", "error")) == "b"


XTERM = TerminalTheme(
    (0, 0, 0),
    (229, 229, 229),
    [tuple(205 * (number >> bit & 1) for bit in range(3)) for number in range(8)],
    [(92, 92, 255) if number == 4 else tuple(255 * (number >> bit & 1) for bit in range(3)) for number in range(8)],
)


def luminance(colour: ColorTriplet) -> float:
    """As WCAG 2 defines it."""
    parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour.normalized]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: ColorTriplet, other: ColorTriplet) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_can_be_read_on_its_background() -> None:
    """WCAG's 4.5 to 1; the dark theme's named colours as xterm has them."""
    for name, background in (("light", ColorTriplet(255, 255, 255)), ("dark", ColorTriplet(0, 0, 0))):
        for role, style in load(name).styles.items():
            assert not (name == "light" and style.dim), role  # which some terminals make as good as white
            if style.color:
                assert contrast(style.color.get_truecolor(XTERM), background) >= 4.5, (name, role)


@pytest.mark.parametrize("name", ["dark", "light"])
def test_the_menu_can_be_read(name: str) -> None:
    for classes, style in load(name).prompt.items():
        colours = [ColorTriplet(*bytes.fromhex(part[-6:])) for part in style.split() if "#" in part]
        if len(colours) == 2:
            assert contrast(*colours) >= 4.5, classes
        elif name == "light" and colours and "bg:" not in style:
            assert contrast(colours[0], ColorTriplet(255, 255, 255)) >= 4.5, classes
