"""Tables on standard output: for people on a terminal, else one row a line with tabs between its cells."""

import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import typer

from llamachat.system.sanitise import sanitise_line

GAP = 2  # columns of the terminal between two of a table
STAYS = "\xa0"
ROOM, INDENT = 16, 2  # columns that a text has beside its head, at least; before one under it


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = (), whole: str = "", cut: str = ""
) -> None:
    """Cells may be anyone's text. numbers: columns that are set to the right; whole: the one that is never folded; cut: the one
    that ends where the line does. Off a terminal there are no headers."""
    safe = ([sanitise_line(cell) for cell in row] for row in rows)
    if not sys.stdout.isatty():
        for row in safe:
            typer.echo("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, lines = Console(), [*safe]
    widths = [max(cell_len(each[at]) for each in [headers, *lines]) for at in range(len(headers))]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header, width in zip(headers, widths, strict=True):
        kept = header in numbers or header in (whole, cut)
        room = max(console.width - sum(widths) + width - GAP * (len(widths) - 1), 1) if header == cut else None
        table.add_column(header, justify="right" if header in numbers else "left", no_wrap=kept, max_width=room)
    for row in lines:
        table.add_row(*map(Text, row))
    console.print(table)


def print_beside(head: str, text: str) -> None:
    """One line, of which both parts are sanitised; where a terminal is too narrow for it the text goes on below, beside the head
    or, where little room is left there, under it. A STAYS of the text is a space at which it is not broken."""
    lines, under = [text], False
    if sys.stdout.isatty():
        from rich.text import Text

        from llamachat.ui.cells import cells, wrap

        width = shutil.get_terminal_size().columns
        under = cells(head + text) > width and width - cells(head) < ROOM
        lines = [part.plain for part in wrap(Text(text), width - (INDENT if under else cells(head)))]
    if under:
        typer.echo(head.rstrip())
    first, below = (" " * INDENT,) * 2 if under else (head, " " * len(head))
    typer.echo(first + f"\n{below}".join(lines).replace(STAYS, " "))


def extent_end(span: Any) -> str:
    """Where a span ends, marked where that is not exact."""
    return ("~" if "approximate" in span else "") + str(span["end"])
