"""Our own tables, of commands, settings and the like: they measure what there is of the width."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.text import Text

from llamachat.system.sanitise import sanitise_line
from llamachat.ui.cells import cells, fit, pad, widest_word, wrap
from llamachat.ui.theme import Theme

_INDENT, _GAP = 2, 2
_READABLE = 20  # cells that the last column gets where it has much to say


def table_lines(rows: Iterable[Sequence[str]], header: Sequence[str], width: int, theme: Theme) -> list[str]:
    """Lines of at most `width` cells: columns whose cells wrap at word ends, or each row's cells below its first."""
    safe = [[sanitise_line(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not safe:
        return []
    columns = list(zip(*safe, strict=True))
    wanted = [max(map(cells, column)) for column in columns]
    least = [max(map(widest_word, column)) for column in columns]
    least[-1] = max(least[-1], min(sum(map(cells, columns[-1])) // len(safe), _READABLE))
    widths = fit(wanted, least, width - _INDENT - _GAP * (len(columns) - 1))
    if widths is None:
        lines = [line for row in safe[bool(header) :] for line in _stacked(row, width, theme)]
    else:
        lines = [
            line for number, row in enumerate(safe) for line in _row(row, widths, theme, bool(header) and not number)
        ]
    return [theme.ansi(line) for line in lines]


def _row(row: Sequence[str], widths: Sequence[int], theme: Theme, head: bool) -> list[Text]:
    *keys, last = (wrap(Text(cell), size) for cell, size in zip(row, widths, strict=True))
    lines = []
    for *parts, end in zip_longest(*keys, last, fillvalue=Text()):
        cut = (pad(part.plain, size) + " " * _GAP for part, size in zip(parts, widths, strict=False))
        left = " " * _INDENT + "".join(cut)
        if not end.plain:
            left = left.rstrip()
        lines.append(
            Text.assemble((left, theme.style("note" if head else "key")), theme.text(end.plain, "note" * head))
        )
    return lines


def _stacked(row: Sequence[str], width: int, theme: Theme) -> list[Text]:
    first, *others = row
    rest = " · ".join(cell for cell in others if cell)
    parts = [(_INDENT, first, "key"), (2 * _INDENT, rest, "")]
    return [
        Text.assemble(" " * indent, line)
        for indent, text, role in parts
        if text
        for line in wrap(theme.text(text, role), max(1, width - indent))
    ]
