"""Blocks of Markdown: the pieces in which an answer is drawn, and how much of it may wait to become one."""

from dataclasses import dataclass
from typing import Literal

LIMIT = 1500  # characters of a line or a paragraph that wait for its end
LINES = 12  # of a paragraph, likewise
DEPTH = 12  # quotes and lists within each other; deeper ones are text
ROWS = 8  # of a table, by which its widths are settled

Kind = Literal["text", "heading", "code", "fence", "table", "rule", "blank"]
Align = Literal["left", "center", "right"]


@dataclass(frozen=True)
class Container:
    """A quote (sign ">") or a list item around a block; `fresh` in the first block of the item, which shows its sign."""

    sign: str
    fresh: bool


@dataclass(frozen=True)
class Table:
    """Rows of cells, source of inline Markdown. `head`: whether the first is the header. `like`: rows that set the widths."""

    rows: tuple[tuple[str, ...], ...]
    align: tuple[Align, ...]
    head: bool = True
    like: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Block:
    """A piece of an answer that is drawn on its own. All `raw` joined are the answer's text."""

    kind: Kind
    raw: str
    body: str = ""  # text and headings: inline Markdown; code: the line; fence: its line
    inside: tuple[Container, ...] = ()  # from the outermost
    gap: int | None = None  # a blank line above, within so many of the containers
    level: int = 0  # of a heading
    language: str = ""  # of code
    before: str = ""  # code above that the colours of this line depend on
    table: Table | None = None
    open: bool = False  # its text may still grow
