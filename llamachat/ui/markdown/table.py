"""Tables: columns as wide as they need where that fits, else narrower ones whose cells wrap."""

from collections.abc import Sequence
from functools import lru_cache

from rich.text import Text

from llamachat.ui.cells import cells, wrap
from llamachat.ui.markdown.blocks import Align, Table
from llamachat.ui.markdown.inline import TAB, inline
from llamachat.ui.theme import Theme

_NARROWEST = 3


def draw_table(table: Table, width: int, theme: Theme) -> list[Text]:
    """Lines of at most `width` cells; a table of too many columns is drawn as its rows' source."""
    settled = _natural(table.like, theme)
    widths = _fit(settled, width)
    if widths is not None and not table.head:
        widths = _grown(settled, _natural(table.rows, theme), widths, width)
    if widths is None:
        sources = ("| " + " | ".join(row) + " |" for row in table.rows)
        return [line for source in sources for line in wrap(Text(source.expandtabs(TAB)), width)]
    lines = [line for row in table.rows for line in _draw_row(row, widths, table.align, theme)]
    if table.head:
        head = _draw_row(table.rows[0], widths, table.align, theme)
        for line in head:
            line.stylize(theme.style("strong"))
        rule = theme.text("─┼─".join("─" * size for size in widths), "mark")
        lines[: len(head)] = [*head, rule]
    return lines


def _draw_row(row: Sequence[str], widths: Sequence[int], align: Sequence[Align], theme: Theme) -> list[Text]:
    columns = [wrap(inline(cell, theme), size) for cell, size in zip(row, widths, strict=True)]
    lines = []
    for number in range(max(map(len, columns))):
        parts = [column[number] if number < len(column) else Text() for column in columns]
        padded = [_padded(*cell) for cell in zip(parts, widths, align, strict=True)]
        line = theme.text(" │ ", "mark").join(padded)
        line.rstrip()
        lines.append(line)
    return lines


def _padded(text: Text, width: int, align: Align) -> Text:
    space = max(0, width - cells(text.plain))
    left = {"left": 0, "center": space // 2, "right": space}[align]
    return Text.assemble(" " * left, text, " " * (space - left))


@lru_cache(16)
def _natural(rows: tuple[tuple[str, ...], ...], theme: Theme) -> list[int]:
    """The width that each column would like."""
    drawn = [[max(map(cells, inline(cell, theme).plain.split("\n"))) for cell in row] for row in rows]
    return [max(1, *sizes) for sizes in zip(*drawn, strict=True)]


def _grown(settled: Sequence[int], wanted: Sequence[int], widths: list[int], width: int) -> list[int]:
    """For a late row: more than was settled where it is wider and there is room, so that it stays readable."""
    both = [max(pair) for pair in zip(settled, wanted, strict=True)]
    return both if sum(both) + 3 * (len(both) - 1) <= width else widths


def _fit(natural: Sequence[int], width: int) -> list[int] | None:
    """Widths that fit: the widest columns give first. None: not even the narrowest do."""
    room = width - 3 * (len(natural) - 1)
    if sum(min(size, _NARROWEST) for size in natural) > room:
        return None
    limit = max(natural)
    while sum(min(size, limit) for size in natural) > room:
        limit -= 1
    return [min(size, limit) for size in natural]
