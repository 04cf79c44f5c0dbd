"""The text above a prompt that stays alive: finished rows go to the terminal's own scroll-back, the tail may still change.

The prompt's region below is another's (prompt-toolkit's) and is neither drawn nor erased here: rows are changed in place,
from their first character that differs, and new ones are inserted above the region, with moves that are relative to its
cursor. So an answer costs few bytes more than its length, and nothing flickers. What the terminal has taken over (rows off
its top, or rewrapped when it became narrower) is let go of as it stands: the text goes on after it, nothing comes twice.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from llamachat.ui import theme
from llamachat.ui.cells import cells, wrap

_STYLE = re.compile(r"\x1b\[[0-9;:]*m")
_RESET = "\x1b[0m"
_WIDE = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff60"
_SURE_WIDE = re.compile(f"[{_WIDE}]")
# Characters after which every terminal agrees where the cursor is: no emoji, marks, joiners or right-to-left ones.
_SURE = f" -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u0482\u048a-\u058f\u2010-\u2027\u2030-\u205e\u2500-\u25ff{_WIDE}"
_UNSURE = re.compile(f"[^{_SURE}]")
_OPEN = re.compile(r"\x1b[^m]*\Z")
_LAST = re.compile(rf"[^\x1b]?(?:{_STYLE.pattern})*\Z")  # a character, which a mark after it would change
_MARKUP = re.compile(r"[\s*_~`|\u2500-\u257f]")  # comes and goes as Markdown is understood, so it is no measure of text


class Region(NamedTuple):
    """What lies below the flow: its height in rows, and where in it the cursor is."""

    height: int = 1
    x: int = 0
    y: int = 0


class _LetGo(NamedTuple):
    """What of the unfinished text stands above for good: so many characters, then rows that have none (blank ones, rules)."""

    characters: int = 0
    bare: int = 0

    def and_also(self, row: str) -> "_LetGo":
        size = _measure(row)
        return _LetGo(self.characters + size) if size else _LetGo(self.characters, self.bare + 1)


class Flow:
    """Paints rows above the region. A row is text with SGR sequences and no other control characters, reset at its end."""

    def __init__(self) -> None:
        self._painted: list[str] = []  # rows right above the region that may still change
        self._let_go = _LetGo()
        self._passing = False  # `_painted` is nothing that is said again

    def paint(
        self,
        finished: Sequence[str],
        tail: Sequence[str],
        columns: int,
        rows: int,
        region: Region,
        *,
        passing: bool = False,
    ) -> str:
        """What to write so that `finished` and then `tail` follow what was finished before. `passing`: the tail is no
        beginning of what will be finished."""
        self._keep(rows - region.height)
        done, left = _after(fold(finished, columns), self._let_go)
        rest, _ = _after(fold(tail, columns), left)
        self._let_go = left if tail else _LetGo()  # where nothing is unfinished, nothing of it stands above
        pen = _Pen(region, len(self._painted))
        pen.repaint(self._painted, done + rest, rows)
        self._painted, self._passing = rest, passing
        self._keep(rows - region.height)
        return pen.written()

    def squeezed(self, room: int) -> None:
        """The region left so few rows above it, if only for a moment: what was higher has left the screen."""
        self._keep(room)

    def narrowed(self, columns: int) -> None:
        """The screen has so many columns now: rows that no longer fit are wherever the terminal has put them."""
        if any(cells(_STYLE.sub("", row)) > columns for row in self._painted):
            self.let_go()

    def let_go(self) -> None:
        """Leave what is painted as it is: something else comes between it and the region."""
        self._keep(0)

    def forget(self) -> None:
        """What is painted is gone from the screen: paint it anew."""
        self._painted = []

    def _keep(self, room: int) -> None:
        gone = max(0, len(self._painted) - max(0, room))
        for row in () if self._passing else self._painted[:gone]:
            self._let_go = self._let_go.and_also(row)
        del self._painted[:gone]


class _Pen:
    """Collects what is written. Rows are counted from the region's top; those of the flow are negative."""

    def __init__(self, region: Region, painted: int) -> None:
        self._region = region
        self._y = region.y
        self._top = -painted
        self._out: list[str] = []

    def repaint(self, old: Sequence[str], new: Sequence[str], screen: int) -> None:
        for place, (before, now) in enumerate(zip(old, new, strict=False)):
            if before != now:
                self._change(self._top + place, before, now)
        if len(new) < len(old):
            self._delete(len(old) - len(new))
        room = max(1, screen - self._region.height)
        for start in range(len(old), len(new), room):
            self._insert(new[start : start + room])

    def written(self) -> str:
        if self._out:
            self._to(self._region.y, self._region.x)
        return "".join(self._out).replace(_RESET, "\x1b[m")

    def _change(self, y: int, before: str, now: str) -> None:
        same = _sure(_common(before, now), now)
        shown = _STYLE.sub("", now[:same])
        self._to(y, len(shown) + len(_SURE_WIDE.findall(shown)))
        if _STYLE.sub("", before[same:]) and not now.startswith(before):
            self._out.append("\x1b[K")
        style = "".join(_STYLE.findall(now[:same])).rpartition(_RESET)[2]
        self._out.append(style + now[same:])

    def _delete(self, count: int) -> None:
        self._to(-count, 0)
        self._out.append(_csi(count, "M"))
        self._y = 0

    def _insert(self, rows: Sequence[str]) -> None:
        """Line feeds at the region's end make room, by scrolling where the screen ends; then all moves down into it."""
        self._to(self._region.height - 1)
        self._out.append("\n" * len(rows))  # the line discipline makes them CR LF, in prompt-toolkit's raw mode too
        self._y += len(rows)
        self._to(0)
        self._out.append(_csi(len(rows), "L") + "\n".join(rows))
        self._y = -1

    def _to(self, y: int, x: int | None = None) -> None:
        if y < self._y:
            self._out.append(_csi(self._y - y, "A"))
        elif y > self._y:
            self._out.append(_csi(y - self._y, "B"))
        self._y = y
        if x is not None:
            self._out.append("\r" if x == 0 else f"\x1b[{x + 1}G")


def fold(rows: Sequence[str], columns: int) -> list[str]:
    """The rows, those that are too wide as several."""
    return [part for row in rows for part in _fold(row.replace("\t", "    "), columns)]


def _fold(row: str, columns: int) -> list[str]:
    if cells(_STYLE.sub("", row)) <= columns:
        return [row]
    return [theme.load("dark").ansi(part) for part in wrap(Text.from_ansi(row), columns)]


def _after(rows: Sequence[str], gone: _LetGo) -> tuple[list[str], _LetGo]:
    """The rows after what was let go of, and how much of that was not among them."""
    characters, bare = gone
    for place, row in enumerate(rows):
        size = _measure(row)
        if size > characters:
            return [_cut(row, characters) if characters else row, *rows[place + 1 :]], _LetGo()
        if not characters:
            if not bare:
                return list(rows[place:]), _LetGo()
            bare -= 1
        characters -= size
    return [], _LetGo(characters, bare)


def _cut(row: str, seen: int) -> str:
    """The row after so many characters of its text, in the style that holds there."""
    style = ""
    for token in re.finditer(rf"{_STYLE.pattern}|.", row):
        if token[0].startswith("\x1b"):
            style = "" if token[0] == _RESET else style + token[0]
        elif not _MARKUP.match(token[0]):
            if not seen:
                return style + row[token.start() :]
            seen -= 1
    return ""


def _measure(row: str) -> int:
    return len(_MARKUP.sub("", _STYLE.sub("", row)))


def _common(before: str, now: str) -> str:
    """What two rows begin with."""
    differ = (place for place, (one, other) in enumerate(zip(before, now, strict=False)) if one != other)
    return now[: next(differ, min(len(before), len(now)))]


def _sure(same: str, row: str) -> int:
    """How much of the row's unchanged start can stay: up to a place whose column is known."""
    end = len(_OPEN.sub("", same))
    unsure = _UNSURE.search(_blind(row), 0, end + 1)
    return len(_LAST.sub("", row[: unsure.start()])) if unsure else end


def _blind(row: str) -> str:
    """The row with spaces in place of its SGR sequences."""
    return _STYLE.sub(lambda match: " " * len(match[0]), row)


def _csi(count: int, letter: str) -> str:
    return f"\x1b[{letter}" if count == 1 else f"\x1b[{count}{letter}"
