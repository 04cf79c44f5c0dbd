"""How things look: a style of rich's for every role, in themes for dark and for light terminals, and one without any.

The terminal's own sixteen colours carry almost everything: they fit whatever the person chose, and cost few bytes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from llamachat.errors import UsageError

_COMMON = {
    "strong": "bold",
    "emphasis": "italic",
    "struck": "strike",
    "heading": "bold cyan",
    "title": "bold underline cyan",
    "quote": "dim",
    "mark": "dim",  # bars, rules, fences: what stands for markup
    "note": "dim",
    "thinking": "dim italic",
    "error": "bold red",
    "key": "cyan",
    "pinned": "magenta",
    "kept": "green",
    "partly": "green",
    "dropped": "dim",
    "comment": "dim italic",
}
_STYLES = {
    "dark": {
        "code": "bright_cyan",
        "link": "underline bright_blue",
        "bullet": "cyan",
        "warning": "yellow",
        "keyword": "bright_magenta",
        "string": "bright_green",
        "number": "bright_yellow",
        "name": "bright_blue",
        "type": "bright_cyan",
        "inserted": "bright_green",
        "deleted": "bright_red",
        # From likely to unlikely: the answer's own colour, then warmer and warmer.
        "heat0": "",
        "heat1": "color(150)",
        "heat2": "color(221)",
        "heat3": "color(209)",
        "heat4": "bold color(203)",
    },
    "light": {
        "code": "blue",
        "link": "underline blue",
        "bullet": "blue",
        "warning": "color(130)",
        "keyword": "magenta",
        "string": "color(28)",
        "number": "color(130)",
        "name": "blue",
        "type": "color(30)",
        "inserted": "color(28)",
        "deleted": "red",
        "heat0": "",
        "heat1": "color(64)",
        "heat2": "color(136)",
        "heat3": "color(166)",
        "heat4": "bold color(160)",
    },
    "none": {},
}
THEMES = ("auto", *_STYLES)
_WHITE = {"7", "15"}  # COLORFGBG's background colours that are light


@dataclass(frozen=True, eq=False)
class Theme:
    """Styles by role; a role that a theme does not name looks like plain text."""

    name: str
    styles: Mapping[str, Style]

    @property
    def plain(self) -> bool:
        """Whether nothing is styled, so that meaning needs other means."""
        return not self.styles

    def style(self, role: str) -> Style:
        return self.styles.get(role, _NOTHING)

    def text(self, text: str, role: str = "") -> Text:
        return Text.assemble((text, self.style(role)))  # a span: the style of a whole Text is not rendered

    def ansi(self, text: Text) -> str:
        """A line with its styles as SGR sequences; nothing else of a terminal's language can come out."""
        if self.plain:
            return text.plain
        runs = Segment.simplify(text.render(_console(), end=""))
        return "".join((run.style or _NOTHING).render(run.text, color_system=ColorSystem.EIGHT_BIT) for run in runs)


_NOTHING = Style.null()


@cache
def load(name: str) -> Theme:
    """The theme of that name. Raises UsageError."""
    if name not in _STYLES:
        raise UsageError(f"no theme is called {name}", remedy=f"choose one of {', '.join(THEMES)}")
    roles = {**_COMMON, **_STYLES[name]} if _STYLES[name] else {}
    return Theme(name, {role: Style.parse(style) for role, style in roles.items()})


def choose(
    name: str | None, stream: TextIO, environ: Mapping[str, str] = os.environ, *, no_color: bool = False
) -> Theme:
    """The theme for what is written to `stream`: by name, else LLAMACHAT_THEME, else what fits. Raises UsageError.

    No name brings styles where they are not wanted: off a terminal, with NO_COLOR (no-color.org), with TERM=dumb.
    """
    name = name or environ.get("LLAMACHAT_THEME") or "auto"
    if name == "auto":
        name = "light" if environ.get("COLORFGBG", "").rpartition(";")[2] in _WHITE else "dark"
    theme = load(name)
    bare = no_color or environ.get("NO_COLOR") or environ.get("TERM") in ("dumb", "unknown") or not stream.isatty()
    return load("none") if bare else theme


@cache
def _console() -> Console:
    return Console(color_system="256", force_terminal=True, markup=False, emoji=False, highlight=False)
