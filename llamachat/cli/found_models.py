"""What a search of the hub has found, as a table."""

import sys
from collections.abc import Sequence

import typer

from llamachat.cli.tables import GAP, print_table
from llamachat.models.fetch.hub_search import Found

NUMBERS = ("params", "downloads")
HEADERS = ("name", "params", "downloads", "updated", "licence", "runs")


def found_table(found: Sequence[Found]) -> None:
    """On a terminal as many columns as there is room for, the names whole; elsewhere all, with exact numbers."""
    if not sys.stdout.isatty():
        print_table(HEADERS, map(_exact, found))
        return
    rows = [_row(each) for each in found]
    shown = _columns(rows, _width())
    if len(shown) == 1:  # which a table would cut
        for row in rows:
            typer.echo(row[0])
    else:
        print_table([HEADERS[at] for at in shown], [[row[at] for at in shown] for row in rows], NUMBERS, whole="name")
    typer.echo("llamachat -m hf:NAME takes the best quant that fits")


def _width() -> int:
    from rich.console import Console

    return Console().width


def _columns(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Numbers of the columns that stand beside each other; the name always does, and what matters most comes next."""
    widths = [max(len(row[at]) for row in [HEADERS, *rows]) for at in range(len(HEADERS))]
    taken = [0]
    for at in (1, 5, 4, 2, 3):
        if sum(widths[each] + GAP for each in taken) + widths[at] <= width:
            taken.append(at)
    return sorted(taken)


def _exact(found: Found) -> tuple[str, ...]:
    numbers = (found.parameters, found.downloads)
    return (found.name, *("?" if each is None else str(each) for each in numbers), found.updated or "?", *_words(found))


def _row(found: Found) -> tuple[str, ...]:
    return (found.name, _short(found.parameters), _short(found.downloads), found.updated or "?", *_words(found))


def _words(found: Found) -> tuple[str, str]:
    licence = (found.licence or "?") + (" (gated)" if found.gated else "")
    return licence, "?" if found.runs is None else "yes" if found.runs else f"no: {found.architecture}"


def _short(number: int | None) -> str:
    """'135M', '1.2B'; '?' for what is not known."""
    if number is None:
        return "?"
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f}{unit}" if number < 10 * scale else f"{number / scale:.0f}{unit}"
    return str(number)
