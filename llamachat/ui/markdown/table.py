"""Tables: columns as wide as they need where that fits, else narrower ones whose cells wrap at word ends; where words would
be broken, each row's cells below each other."""

from collections.abc import Sequence
from functools import lru_cache

from rich.text import Text

from llamachat.ui.cells import cells, fit, widest_word, wrap
from llamachat.ui.markdown.blocks import Align, Table
from llamachat.ui.markdown.inline import inline
from llamachat.ui.theme import Theme

_NARROWEST, _RULE = 3, 20


def draw_table(table: Table, width: int, theme: Theme) -> list[Text]:
    """Lines of at most `width` cells."""
    wanted, least = _sizes(table.like, theme)
    room = width - 3 * (len(wanted) - 1)
    widths = fit(wanted, least, room)
    if widths is None:
        return _stacked(table, width, theme)
    if not table.head:
        widths = _grown(wanted, _sizes(table.rows, theme)[0], widths, room)
    lines = [line for row in table.rows for line in _draw_row(row, widths, table.align, theme)]
    if table.head:
        head = _draw_row(table.rows[0], widths, table.align, theme)
        for line in head:
            line.stylize(theme.style("strong"))
        rule = theme.text("─┼─".join("─" * size for size in widths), "mark")
        lines[: len(head)] = [*head, rule]
    return lines


def _stacked(table: Table, width: int, theme: Theme) -> list[Text]:
    """The columns' names, then each row's cells after theirs, with a rule below."""
    names = [inline(name, theme).plain for name in (table.like or table.rows)[0]]
    rule = theme.text("─" * min(width, _RULE), "mark")
    lines = [*wrap(theme.text(" · ".join(filter(None, names)), "strong"), width), rule] if table.head else []
    for row in table.rows[table.head :]:
        said = [
            Text.assemble((f"{name}: " if name else "", theme.style("strong")), inline(cell, theme))
            for name, cell in zip(names, row, strict=True)
            if cell
        ]
        lines += [line for text in said for line in wrap(text, width)] + [rule]
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
def _sizes(rows: tuple[tuple[str, ...], ...], theme: Theme) -> tuple[list[int], list[int]]:
    """The width that each column would like, and the least with which no word of it is broken."""
    drawn = [[inline(cell, theme).plain.split("\n") for cell in row] for row in rows]
    wanted = [max(1, *(cells(line) for cell in column for line in cell)) for column in zip(*drawn, strict=True)]
    words = [max(widest_word(line) for cell in column for line in cell) for column in zip(*drawn, strict=True)]
    return wanted, [max(min(size, _NARROWEST), word) for size, word in zip(wanted, words, strict=True)]


def _grown(settled: Sequence[int], wanted: Sequence[int], widths: list[int], room: int) -> list[int]:
    """For a late row: more than was settled where it is wider and there is room, so that it stays readable."""
    both = [max(pair) for pair in zip(settled, wanted, strict=True)]
    return both if sum(both) <= room else widths
