"""Markdown for a terminal: blocks of an answer as it streams (MarkdownStream), and how each is drawn.

Drawn lines carry styles and nothing else: no cursor movement, no links that a click could follow unseen.
"""

from collections.abc import Sequence

from rich.text import Text

from llamachat.ui.cells import cells, chop, cut, wrap
from llamachat.ui.markdown.blocks import Block
from llamachat.ui.markdown.inline import TAB, completed, inline
from llamachat.ui.markdown.stream import MarkdownStream
from llamachat.ui.markdown.table import draw_table
from llamachat.ui.theme import Theme

__all__ = ["Block", "MarkdownStream", "draw"]

NARROWEST = 8  # columns; what is narrower is drawn as if it were that wide
_BULLETS = "•◦▪"
_TASKS = {"[ ]": "☐", "[x]": "☑"}


def draw(blocks: Block | Sequence[Block], width: int, theme: Theme) -> list[str]:
    """Lines of at most `width` cells, without newlines."""
    blocks = [blocks] if isinstance(blocks, Block) else blocks
    return [line for block in blocks for line in _draw_block(block, max(width, NARROWEST), theme)]


def _draw_block(block: Block, width: int, theme: Theme) -> list[str]:
    first, rest = _prefix(block, True, theme), _prefix(block, False, theme)
    most = width // 2
    first, rest = _last_cells(first, most), _last_cells(rest, most)
    lines = _content(block, width - cells(rest.plain), theme)
    drawn = [Text.assemble(rest if number else first, line) for number, line in enumerate(lines)]
    if block.gap is not None:
        drawn.insert(0, _last_cells(_prefix(block, False, theme, block.gap), most))
    for line in drawn:
        line.rstrip()
    return [theme.ansi(line) for line in drawn]


def _prefix(block: Block, first: bool, theme: Theme, depth: int | None = None) -> Text:
    """What stands left of a block: bars of quotes, signs of list items or the space below them."""
    text, bullets = Text(), 0
    for container in block.inside[:depth]:
        if container.sign == ">":
            text.append("│ " if not theme.plain else "> ", theme.style("mark"))
            continue
        sign = _TASKS.get(container.sign, container.sign)
        if sign in "-*+":
            sign, bullets = _BULLETS[bullets % len(_BULLETS)], bullets + 1
        if first and container.fresh:
            text.append(sign + " ", theme.style("bullet"))
        else:
            text.append(" " * (cells(sign) + 1))
    return text


def _last_cells(text: Text, most: int) -> Text:
    """The innermost part of a prefix that is too wide."""
    return text if cells(text.plain) <= most else text[-most:]


def _content(block: Block, width: int, theme: Theme) -> list[Text]:
    match block.kind:
        case "text":
            return wrap(inline(completed(block.body) if block.open else block.body, theme), width)
        case "heading":
            return wrap(_heading(block, theme), width)
        case "code":
            return chop(_code(block, theme), width)
        case "table" if block.table:
            return draw_table(block.table, width, theme)
        case "rule":
            return [theme.text("─" * width, "mark")]
        case "fence":
            return [theme.text(cut(block.body.expandtabs(TAB), width), "mark")]
    return []


def _heading(block: Block, theme: Theme) -> Text:
    if theme.plain:
        return Text(f"{'#' * block.level} {block.body.expandtabs(TAB)}")
    text = inline(completed(block.body) if block.open else block.body, theme)
    text.stylize_before(theme.style("title" if block.level == 1 else "heading"))
    return text


def _code(block: Block, theme: Theme) -> Text:
    if theme.plain:
        return Text(block.body.expandtabs(TAB))
    from llamachat.ui.markdown.code import coloured  # pygments is loaded with the first code

    runs = coloured(block.language, block.before, block.body)
    text = Text.assemble(*((part, theme.style(role)) for part, role in runs))
    text.expand_tabs(TAB)
    return text
