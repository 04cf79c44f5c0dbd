"""Models in a list, on a page of any width: what is here, what may be fetched, what does not fit."""

from collections.abc import Iterator, Sequence

from llamachat.events import ModelView
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.cells import cells, cut, pad, wrap
from llamachat.ui.theme import Theme

SIZE = 8  # columns: "141.1 GB"
WIDEST = 28  # columns of a name that has its facts beside it
NOTE = 16  # columns that a note needs to say anything
TITLES = (
    "here",
    "to be fetched",
    "here, but too large for the memory that is free",
    "too large for the memory that is free",
    "cannot run here",
)


def lines(views: Sequence[ModelView], current: str, width: int, theme: Theme) -> list[str]:
    """`current`: the name of the model that answers, which is marked. Names are never cut: they are to be typed."""
    most = max(12, min(width // 2, WIDEST))
    column = max((size for view in views if (size := cells(sanitise_line(view.name))) <= most), default=0)
    groups: list[list[ModelView]] = [[] for _ in TITLES]
    for view in views:
        groups[_group_of(view)].append(view)
    told = list[tuple[str, str]]()
    for title, group in zip(TITLES, groups, strict=True):
        told += [(title, "heading")] * bool(group)
        told += [line for view in group for line in _told(view, view.name == current, column, width)]
    return [theme.ansi(part) for line, role in told for part in wrap(theme.text(line, role), width)]


def _group_of(view: ModelView) -> int:
    if not view.runs:
        return 4
    if view.fits is False:
        return 2 if view.here else 3
    return 0 if view.here else 1


def _told(view: ModelView, marked: bool, column: int, width: int) -> Iterator[tuple[str, str]]:
    """Its lines, each with what it is for the theme: a name that is too long for its column stands alone."""
    name, mark = sanitise_line(view.name), "* " if marked else "  "
    if cells(name) > column:
        yield mark + name, ""
        name, mark = "", "  "
    start = f"{mark}{pad(name, column)}  {view.size:>{SIZE}}"
    note = sanitise_line(view.note or (f"from {view.place}" if view.place else ""))
    room = width - cells(start) - 2
    yield f"{start}  {cut(note, room)}" if note and room >= NOTE else start, ""
