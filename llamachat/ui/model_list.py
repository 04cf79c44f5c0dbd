"""Models in a list, on a page of any width: what is here, what may be fetched, what does not fit."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from llamachat.events import ModelView
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.cells import cells, chop, cut, pad, wrap
from llamachat.ui.theme import Theme

SIZE = 8  # columns: "141.1 GB"
WIDEST = 28  # columns of a name that has its facts beside it
NOTE = 16  # columns that a note needs to say anything
TITLES = (  # what matters most last, where it is seen
    "cannot run here",
    "too large for the memory that is free",
    "here, but too large for the memory that is free",
    "to be fetched",
    "here",
)


def lines(views: Sequence[ModelView], current: str, width: int, theme: Theme) -> list[str]:
    """`current`: the name of the model that answers, which is marked. Names are never cut: they are to be typed."""
    most = max(12, min(width // 2, WIDEST))
    column = max((size for view in views if (size := cells(sanitise_line(view.name))) <= most), default=0)
    groups: list[list[ModelView]] = [[] for _ in TITLES]
    for view in views:
        groups[_group_of(view)].append(view)
    told = list[Text]()
    for title, group in zip(TITLES, groups, strict=True):
        told += wrap(theme.text(title, "heading"), width) if group else []
        told += [Text(line) for view in group for line in _told(view, view.name == current, column, width)]
    return [theme.ansi(line) for line in told]


def _group_of(view: ModelView) -> int:
    if not view.runs:
        return 0
    if view.fits is False:
        return 2 if view.here else 1
    return 4 if view.here else 3


def _told(view: ModelView, marked: bool, column: int, width: int) -> Iterator[str]:
    """Its lines: a name that is too long for its column stands alone."""
    name, mark = sanitise_line(view.name), "* " if marked else "  "
    if cells(name) > column:
        for part in chop(Text(name), max(1, width - 2)):
            yield mark + part.plain
            mark = "  "
        name = ""
    start = f"{mark}{pad(name, column)}  {view.size:>{SIZE}}"
    note = sanitise_line(view.note or (f"from {view.place}" if view.place else ""))
    room = width - cells(start) - 2
    yield f"{start}  {cut(note, room)}" if note and room >= NOTE else start
