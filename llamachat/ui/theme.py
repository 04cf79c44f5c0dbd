"""How things look: a style of rich's for every role, in themes for dark and for light terminals, and one without any.

On dark the terminal's own sixteen colours carry almost everything: they fit whatever the person chose, and cost few bytes.
On white many of those cannot be read, so there the colours are fixed ones, with a contrast of 4.5 and more.
"""

import os
from collections.abc import Callable, Mapping
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
}
_STYLES = {
    "dark": {
        "heading": "bold cyan",
        "title": "bold underline cyan",
        "quote": "dim",
        "mark": "dim",  # bars, rules, fences: what stands for markup
        "note": "dim",
        "thinking": "dim italic",
        "error": "bold bright_red",
        "key": "cyan",
        "pinned": "bright_magenta",
        "kept": "green",
        "partly": "green",
        "dropped": "dim",
        "comment": "dim italic",
        "code": "bright_cyan",
        "link": "underline color(75)",
        "bullet": "cyan",
        "warning": "yellow",
        "keyword": "bright_magenta",
        "string": "bright_green",
        "number": "bright_yellow",
        "name": "color(75)",
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
        "heading": "bold color(24)",
        "title": "bold underline color(24)",
        "quote": "color(241)",
        "mark": "color(242)",
        "note": "color(241)",
        "thinking": "italic color(241)",
        "error": "bold color(160)",
        "key": "color(24)",
        "pinned": "color(90)",
        "kept": "color(22)",
        "partly": "color(28)",
        "dropped": "color(242)",
        "comment": "italic color(242)",
        "code": "color(25)",
        "link": "underline color(25)",
        "bullet": "color(24)",
        "warning": "color(130)",
        "keyword": "color(90)",
        "string": "color(28)",
        "number": "color(130)",
        "name": "color(19)",
        "type": "color(23)",
        "inserted": "color(28)",
        "deleted": "color(160)",
        "heat0": "",
        "heat1": "color(28)",
        "heat2": "color(94)",
        "heat3": "color(130)",
        "heat4": "bold color(160)",
    },
    "none": {},
}
_PROMPTS = {  # by prompt-toolkit's classes
    "dark": {
        "prompt": "ansicyan bold",
        "status": "dim",
        "hint": "italic",
        "completion-menu": "bg:#303030 #dadada",
        "completion-menu.completion.current": "noreverse bg:#005f87 #ffffff",
        "completion-menu.meta.completion": "bg:#303030 #a8a8a8",
        "completion-menu.meta.completion.current": "bg:#005f87 #dadada",
        "scrollbar.background": "bg:#444444",
        "scrollbar.button": "bg:#8a8a8a",
        "scrollbar.arrow": "bg:#303030 #dadada",
    },
    "light": {
        "prompt": "#005f87 bold",
        "status": "#626262",
        "hint": "italic",
        "completion-menu": "bg:#eeeeee #262626",
        "completion-menu.completion.current": "noreverse bg:#005f87 #ffffff",
        "completion-menu.meta.completion": "bg:#eeeeee #585858",
        "completion-menu.meta.completion.current": "bg:#005f87 #eeeeee",
        "scrollbar.background": "bg:#d0d0d0",
        "scrollbar.button": "bg:#767676",
        "scrollbar.arrow": "bg:#eeeeee #262626",
    },
    "none": {"prompt": "bold", "status": "dim", "completion-menu.meta.completion.current": "reverse"},
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

    @property
    def prompt(self) -> Mapping[str, str]:
        """What the line where a person types looks like."""
        return _PROMPTS[self.name]

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
    name: str | None,
    stream: TextIO,
    environ: Mapping[str, str] = os.environ,
    *,
    no_color: bool = False,
    light: Callable[[], bool | None] = lambda: None,
) -> Theme:
    """The theme for what is written to `stream`: by name, else LLAMACHAT_THEME, else what fits. Raises UsageError.

    What fits is asked of `light`, whether the terminal is, which may not know. No name brings styles where they are not
    wanted: see `wanted`.
    """
    name = _named(name, environ)
    if name == "auto" and wanted(stream, environ, no_color=no_color):
        told = light()
        by_name = environ.get("COLORFGBG", "").rpartition(";")[2] in _WHITE
        name = "light" if (by_name if told is None else told) else "dark"
    theme = load("dark" if name == "auto" else name)
    return theme if wanted(stream, environ, no_color=no_color) else load("none")


def fitting(name: str | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what fits is to be found out."""
    return _named(name, environ) == "auto"


def wanted(stream: TextIO, environ: Mapping[str, str] = os.environ, *, no_color: bool = False) -> bool:
    """Whether styles are: not off a terminal, with NO_COLOR (no-color.org), with TERM=dumb."""
    bare = no_color or environ.get("NO_COLOR") or environ.get("TERM") in ("dumb", "unknown")
    return not bare and stream.isatty()


def _named(name: str | None, environ: Mapping[str, str]) -> str:
    return name or environ.get("LLAMACHAT_THEME") or "auto"


@cache
def _console() -> Console:
    return Console(color_system="256", force_terminal=True, markup=False, emoji=False, highlight=False)
