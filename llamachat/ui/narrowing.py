"""Where a prompt is after its terminal became narrower: most terminals then wrap anew what they show."""

from collections.abc import Mapping

from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Screen

_CUTTING = ("linux", "st", "st-256color", "vt100", "vt220")  # values of TERM


def wraps_anew(environ: Mapping[str, str]) -> bool:
    """Whether the terminal does, from what it says of itself; xterm, GNU screen and the console cut rows off instead."""
    if "TMUX" in environ:
        return True
    return "XTERM_VERSION" not in environ and "STY" not in environ and environ.get("TERM") not in _CUTTING


def rows_above(screen: Screen, cursor: Point, columns: int) -> int:
    """How many rows there are above the cursor's, within what was drawn, once each of its rows is wrapped at `columns`."""
    whole = sum(_wrapped(_widths(screen, y), columns)[0] + 1 for y in range(cursor.y))
    row, _ = _wrapped(_widths(screen, cursor.y, cursor.x), columns)
    return whole + row


def _widths(screen: Screen, y: int, end: int | None = None) -> list[int]:
    """The cells of each character in a row, up to its last one or `end`."""
    row = screen.data_buffer[y]
    if end is None:
        end = 1 + max((x for x, cell in row.items() if cell.char != " " and cell.width), default=-1)
    widths, x = [], 0
    while x < end:
        widths.append(max(1, row[x].width))
        x += widths[-1]
    return widths


def _wrapped(widths: list[int], columns: int) -> tuple[int, int]:
    """The row and the column where characters of these widths end."""
    row = column = 0
    for width in widths:
        if column + width > columns:
            row, column = row + 1, 0
        column += width
    return row, column
