"""The code blocks of a text, to be copied."""

from collections.abc import Callable
from itertools import groupby

from llamachat.ui.markdown.blocks import Block
from llamachat.ui.markdown.stream import MarkdownStream


def snippets(text: str) -> list[str]:
    """The code in each block, as it is written there, without the last line's end; without the indent of lists and quotes."""
    stream = MarkdownStream()
    found, before = list[str](), Block("blank", "")
    for kind, run in groupby([*stream.feed(text), *stream.finish()], lambda block: block.kind):
        blocks = [*run]
        if kind == "code":
            code = "".join(map(_written(before), blocks))
            found.append(code.removesuffix("\n") if before.kind == "fence" else code.strip("\n"))
        before = blocks[-1]
    return found


def _written(before: Block) -> Callable[[Block], str]:
    """How lines of code are written behind this block."""
    if before.kind != "fence":  # the code is indented
        return lambda line: "\n" * (len(line.raw) - len(line.raw.lstrip("\n"))) + _body(line)
    inside = before.inside or before.raw.lstrip("\n").startswith(" ")
    return _body if inside else lambda line: line.raw


def _body(line: Block) -> str:
    return line.body + "\n" * line.raw.endswith("\n")
