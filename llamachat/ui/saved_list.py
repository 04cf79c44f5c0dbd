"""Saved dialogs as a person chooses among them: a list that fits the screen, and one line on each."""

import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from rich.text import Text

from llamachat.events import Forgotten, Found, SavedDialog
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.cells import cells, count, cut, pad
from llamachat.ui.theme import Theme

_SERVED = "server:"  # what the reference of a model on a server begins with: see RemoteBackend.reference
_BY_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")  # names of dialogs whose question had no words
_GAP = 2
_NAME = 24  # columns that a name is given at least
_TITLE = 16  # columns that a title is worth showing in
_MODEL = 30  # at most

_Column = tuple[str, list[str]]  # its header and its cells


def dialog_lines(saved: Sequence[SavedDialog], current: str | None, width: int, theme: Theme) -> list[str]:
    """A line each, the current one marked; what finds no room is left out: first the model, then the title, then all but
    the names."""
    return _drawn(_columns(saved, width - _GAP), [one.name == current for one in saved], width, theme)


def _columns(saved: Sequence[SavedDialog], room: int) -> list[_Column]:
    now = time.time()
    names = [sanitise_line(one.name) for one in saved]
    facts: list[_Column] = [
        ("last used", [ago(one.modified, now) for one in saved]),
        ("asked", [str(one.turns) for one in saved]),
    ]
    left = room - sum(_size(column) + _GAP for column in facts)
    if left < _NAME:
        return [("name", names)]
    name = "name", [cut(each, max(_NAME, room * 5 // 12)) for each in names]
    model = "model", [cut(held_with(one.model), _MODEL) for one in saved]
    for more in ([model], []):
        wide = left - sum(_size(column) + _GAP for column in (name, *more)) - _GAP
        if wide >= _TITLE * (1 + len(more)):
            return [name, *facts, *more, ("first question", [cut(sanitise_line(one.title), wide) for one in saved])]
    return [("name", [cut(each, left) for each in names]), *facts]


def _size(column: _Column) -> int:
    header, below = column
    return max(map(cells, [header, *below]))


def _drawn(columns: Sequence[_Column], current: Sequence[bool], width: int, theme: Theme) -> list[str]:
    sizes = [*map(_size, columns)]
    lines = [theme.text(cut("  " + _row([header for header, _ in columns], sizes), width), "note")]
    for number, marked in enumerate(current):
        name, *rest = (column[number] for _, column in columns)
        left = ("● " if marked else "  ") + (pad(name, sizes[0] + _GAP) if rest else name)
        right = cut(_row(rest, sizes[1:]), width - cells(left))
        lines.append(Text.assemble((cut(left, width), theme.style("kept" if marked else "key")), right))
    return [theme.ansi(line) for line in lines]


def _row(row: Sequence[str], sizes: Sequence[int]) -> str:
    """Numbers to the right."""
    return (" " * _GAP).join(map(_cell, row, sizes)).rstrip()


def _cell(text: str, size: int) -> str:
    return " " * (size - cells(text)) + text if text.isdigit() else pad(text, size)


def heading(dialog: SavedDialog, width: int) -> str:
    """Like "name-the-moons · 3 questions · 2 h ago · Smol-1B", as much of it as fits."""
    name = dialog.title if dialog.title and _BY_TIME.fullmatch(dialog.name) else dialog.name
    name, asked, when = sanitise_line(name), count(dialog.turns, "question"), ago(dialog.modified)
    return fitting([(name, asked, when, held_with(dialog.model)), (name, asked, when), (name, asked), (name,)], width)


def found_lines(found: Found, wanted: str, fresh: bool, width: int, theme: Theme) -> list[str]:
    """A line in which a text was found, as much of it as fits with that in it; before the first of a dialog its name."""
    line = sanitise_line(found.line)
    at = line.casefold().find(sanitise_line(wanted).casefold())
    before = max(0, at - width // 3)
    if cells(line) > width - _GAP and before:
        line, at = "…" + line[before:], at - before + 1
    text = Text(cut(line, width - _GAP))
    if at >= 0:
        text.stylize(theme.style("strong"), at, at + len(wanted))
    name = [Text.assemble((cut(sanitise_line(found.name), width), theme.style("key")))] if fresh else []
    return [theme.ansi(each) for each in (*name, Text.assemble("  ", text))]


def saved_line(dialog: SavedDialog) -> str:
    """Beside a dialog's name, like "2 h ago · 5 questions · Smol-1B · How do I …"."""
    parts = [ago(dialog.modified), count(dialog.turns, "question"), held_with(dialog.model), cut(dialog.title, 40)]
    return " · ".join(filter(None, parts))


def deleted_line(gone: Forgotten) -> str:
    """What went with a dialog."""
    kept = ["its keys and values"] if gone.snapshots else []
    typed = [f"{count(gone.typed, 'line')} of the input history"] if gone.typed else []
    return f"deleted {gone.name}" + "".join(f", {each}" for each in (*kept, *typed))


def fitting(candidates: Sequence[Sequence[str]], width: int) -> str:
    """The first of these that fits when its parts are joined; else the last, cut."""
    lines = [" · ".join(filter(None, parts)) for parts in candidates]
    return next((line for line in lines if cells(line) <= width), cut(lines[-1], width))


def held_with(reference: str) -> str:
    """A saved dialog's model, without the folders of its path; of one on a server ("server:https://host/v1#vendor/name"),
    its last part and the host."""
    address, mark, model = reference.partition("#")
    if not address.startswith(_SERVED):
        return short_name(reference)
    host = urlsplit(address.removeprefix(_SERVED)).netloc
    return cut(f"{short_name(model)} on {host}" if mark else host, 40)


def short_name(model: str) -> str:
    """A model's name, or the last part of its path."""
    return sanitise_line(model).rstrip("/").rpartition("/")[2]


def ago(moment: float, now: float | None = None) -> str:
    """In at most 11 columns; the day of what is more than a month ago."""
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    if seconds >= 31 * 86400:
        return time.strftime("%Y-%m-%d", time.localtime(moment))
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{count(number, unit) if unit == 'day' else f'{number} {unit}'} ago"
    return "just now"
