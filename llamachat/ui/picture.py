"""A picture of a terminal, for the README."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text


def ansi_svg(lines: Sequence[str], width: int, title: str = "llamachat") -> str:
    """Lines with SGR sequences, as a terminal of `width` columns shows them, as an SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(Text.from_ansi(line, no_wrap=True), crop=True, highlight=False)
    return console.export_svg(title=title)
