"""Markdown as it streams, cut into blocks that are finished for good, so that each can be printed once.

What is unfinished stays small: code goes line by line, lists item by item, a table row by row once its widths are settled,
and a paragraph or line without end is cut at a word's end. All depends on the text alone, never on how it was cut.
"""

import copy
import re
from dataclasses import replace

from rich.cells import get_character_cell_size

from llamachat.ui.markdown.blocks import LIMIT, Block
from llamachat.ui.markdown.parser import Parser

_UNSURE = re.compile(
    r"\s*(?:(?:[>#*+\-_=~`]{1,3}|\d{1,3}[.)]) ?|\d{1,2}|[|:\- ]+|\$\$?|\\\[?)$"
)  # may still be anything


class MarkdownStream:
    """Takes a text in pieces, sanitised, and hands out its blocks."""

    def __init__(self) -> None:
        self._parser = Parser()
        self._line = ""  # what came of the line under way
        self._starts = True  # whether `_line` is its start

    def feed(self, safe: str) -> list[Block]:
        """The blocks that this text has finished, in order; none of them comes again."""
        text = self._line + safe
        start, searched = 0, len(self._line)
        while True:
            newline = text.find("\n", max(start, searched), start + LIMIT + 1)
            if newline >= 0:
                self._parser.line(text[start:newline], "\n", self._starts)
                start, self._starts = newline + 1, True
            elif len(text) - start > LIMIT:
                end = word_end(text, start)
                self._parser.line(text[start:end], "", self._starts)
                start, self._starts = end, False
            else:
                break
        self._line = text[start:]
        return self._parser.take()

    def finish(self) -> list[Block]:
        """What is left; the stream is then as new."""
        self._end(self._parser, self._line)
        blocks = self._parser.take()
        self._parser, self._line, self._starts = Parser(), "", True
        return blocks

    @property
    def tail(self) -> list[Block]:
        """What is unfinished, as it would be if the text ended here (but for a line's start that says nothing yet)."""
        parser = copy.copy(self._parser)
        parser.blocks = []
        unsure = self._starts and _UNSURE.match(self._line)
        self._end(parser, "" if unsure else self._line)
        blocks = parser.take()
        return [*blocks[:-1], replace(blocks[-1], open=True)] if blocks else []

    def _end(self, parser: Parser, line: str) -> None:
        if line:
            parser.line(line, "", self._starts)
        parser.finish()


def word_end(text: str, start: int) -> int:
    """Where to cut a text that is too long from `start` on: after a space, else at least not within a character."""
    end = text.rfind(" ", start + 1, start + LIMIT) + 1
    if end > start:
        return end
    end = start + LIMIT
    while end > start + LIMIT // 2 and not get_character_cell_size(text[end]):
        end -= 1
    return end
