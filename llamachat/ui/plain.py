"""An answer as it is, line by line: what is drawn where Markdown is not wanted."""

from llamachat.ui.markdown_blocks import LIMIT, Block


class PlainStream:
    """Takes and hands out a text as MarkdownStream does, each line a block of its own."""

    def __init__(self) -> None:
        self._line = ""  # that is not at its end yet

    def feed(self, safe: str) -> list[Block]:
        *lines, self._line = (self._line + safe).split("\n")
        blocks = [Block("text", line + "\n", line) for line in lines]
        if len(self._line) > LIMIT and (end := self._line.rfind(" ") + 1):
            blocks.append(Block("text", self._line[:end], self._line[: end - 1]))
            self._line = self._line[end:]
        return blocks

    def finish(self) -> list[Block]:
        rest, self._line = self.tail, ""
        return rest

    @property
    def tail(self) -> list[Block]:
        return [Block("text", self._line, self._line)] if self._line else []
