"""Styles come only where they are wanted, by the theme's name or by what the terminal says of itself."""

from io import StringIO

import pytest
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
