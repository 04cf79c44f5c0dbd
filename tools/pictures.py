"""The README's pictures, drawn from the screens of the app itself: each scene is a chat with the default model in a pty.

    python tools/pictures.py [SCENE ...]                  # chat, heat, context: docs/SCENE.svg anew
    python tools/pictures.py --quantize FOLDER            # docs/quantize.svg, of a conversion of this float model

Answers differ from one processor to the next, so no test compares the pictures.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS, ROWS = 80, 100
PATIENCE = 300  # seconds
SCENES = {  # flags, and what is typed
    "chat": (
        ("--temp", "0"),
        (
            "Write a short Python function that reverses a string, with an example.",
            "Give me three tips for better sleep.",
        ),
    ),
    "heat": (("--temp", "0"), ("Describe the sea in two sentences.", "/heat", "/alts 5")),
    "context": (
        ("--temp", "0", "--ctx-size", "160", "-n", "40"),
        (
            "Who was Julius Caesar?",
            "And Augustus?",
            "What did Romans eat?",
            "/undo",
            "\x15/fork",
            "Name two Roman gods.",
            "/context",
            "/branches",
        ),
    ),
}
FROM = {"heat": "/heat", "context": "What did Romans eat?"}  # the text of the prompt with which a picture begins


def ansi_svg(lines: Sequence[Text], title: str = "llamachat") -> str:
    """Lines as a terminal shows them, as an SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, crop=True, highlight=False, no_wrap=True)
    return console.export_svg(title=title)


class Terminal:
    """A command of llamachat's in a pty."""

    def __init__(self, *arguments: str, home: str) -> None:
        folders = {f"XDG_{kind}_HOME": home for kind in ("CONFIG", "DATA", "STATE")}
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "llamachat", *arguments],
            dimensions=(ROWS, COLUMNS),
            env={**os.environ, **folders, "TERM": "xterm-256color", "COLORFGBG": "15;0"},
        )

    def idle(self) -> None:
        """Wait until nothing is shown for a while and the status line is that of a chat that waits."""
        end, quiet = time.monotonic() + PATIENCE, 0
        while quiet < 4 and time.monotonic() < end:
            try:
                self._stream.feed(self.child.read_nonblocking(1 << 16, timeout=0.5))
                quiet = 0
            except pexpect.TIMEOUT:
                quiet += any(mark in self.shown()[-1] for mark in (" of ", "MB"))
            except pexpect.EOF:
                return

    def shown(self) -> list[str]:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip().split("\n")

    def lines(self, begin: str = "") -> list[Text]:
        """What is shown, from the row on that has this text."""
        count = len(self.shown())
        first = next(row for row, text in enumerate(self.shown()) if begin in text)
        return [self._line(row) for row in range(first, count)]

    def _line(self, row: int) -> Text:
        cells = (self.screen.buffer[row][column] for column in range(COLUMNS))
        runs = ((each, "".join(cell.data for cell in same)) for each, same in groupby(cells, style))
        text = Text.assemble(*((data, each) for each, data in runs))
        text.rstrip()
        return text


def style(cell: Char) -> Style:
    return Style(
        color=color(cell.fg), bgcolor=color(cell.bg), bold=cell.bold, italic=cell.italics,
        underline=cell.underscore, strike=cell.strikethrough, reverse=cell.reverse,
    )  # fmt: skip


def color(name: str) -> str | None:
    """pyte's name of a colour as rich's."""
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    plain = name.replace("bright", "").replace("brown", "yellow")
    return f"bright_{plain}" if name.startswith("bright") else plain


def chat(scene: str) -> list[Text]:
    flags, typed = SCENES[scene]
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal(*flags, home=home)
        terminal.idle()
        for text in typed:
            terminal.child.send(text)
            time.sleep(0.5)
            terminal.child.send("\r")
            terminal.idle()
        return terminal.lines(FROM.get(scene, ""))


def quantize(folder: str) -> list[Text]:
    with tempfile.TemporaryDirectory() as home:
        command = ("quantize", folder, "-o", f"{home}/small", "--scheme", "int4", "--report")
        terminal = Terminal(*command, home=home)
        terminal.idle()
        shown = terminal.lines("tensors")
    return [Text("$ llamachat quantize smollm2-float -o small --scheme int4 --report", "bold"), *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--quantize", metavar="FOLDER")
    given = parser.parse_args()
    if given.quantize:
        (DOCS / "quantize.svg").write_text(ansi_svg(quantize(given.quantize)))
    for scene in given.scenes or ([] if given.quantize else SCENES):
        (DOCS / f"{scene}.svg").write_text(ansi_svg(chat(scene)))
        print(f"docs/{scene}.svg")


if __name__ == "__main__":
    main()
