"""An answer as it is: line by line, drawn where Markdown is not wanted, or as it comes, where nothing is drawn."""

from collections.abc import Sequence

from llamachat.ui.markdown.blocks import LIMIT, Block
from llamachat.ui.markdown.stream import word_end


class PlainStream:
    """Takes and hands out a text as MarkdownStream does, each line a block of its own."""

    def __init__(self) -> None:
        self._line = ""  # that is not at its end yet

    def feed(self, safe: str) -> list[Block]:
        *lines, self._line = (self._line + safe).split("\n")
        blocks = [Block("text", line + "\n", line) for line in lines]
        while len(self._line) > LIMIT:
            end = word_end(self._line, 0)
            blocks.append(Block("text", self._line[:end], self._line[:end].removesuffix(" ")))
            self._line = self._line[end:]
        return blocks

    def finish(self) -> list[Block]:
        rest, self._line = self.tail, ""
        return rest

    @property
    def tail(self) -> list[Block]:
        return [Block("text", self._line, self._line)] if self._line else []


class RawStream:
    """Hands out each piece of a text as a block of its own, at once."""

    tail: Sequence[Block] = ()

    def feed(self, safe: str) -> list[Block]:
        return [Block("text", safe)]

    def finish(self) -> list[Block]:
        return []
