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
_BAND = 64  # characters that markup may bring or take away
_FAR = 10**9
_MARKUP = re.compile(r"[\s*_~`|\u2500-\u257f]")  # comes and goes as Markdown is understood, so it is no measure of text


class Region(NamedTuple):
    """What lies below the flow: its height in rows, and where in it the cursor is."""

    height: int = 1
    x: int = 0
    y: int = 0


class Row(NamedTuple):
    """A finished row. `of`: the number of the text that it is of; 0: it stands beside any."""

    text: str
    of: int = 0


class _LetGo(NamedTuple):
    """What of an unfinished text stands above for good: these characters, then rows that have none (blank ones, rules)."""

    characters: str = ""
    bare: int = 0
    of: int = 0  # the text's number

    def and_also(self, row: Row) -> "_LetGo":
        before = self if row.of == self.of else _LetGo(of=row.of)
        if found := _characters(row.text):
            return before._replace(characters=before.characters + found, bare=0)
        return before._replace(bare=before.bare + 1)

    def as_drawn(self, rows: Sequence[Row]) -> "_LetGo":
        """The same, where the text is drawn as these rows now: Markdown may look different once more of it is known."""
        text = "".join(_characters(row.text) for row in rows if row.of == self.of)
        count, unseen = _standing(self.characters, text)
        return self._replace(characters=text[:count] + self.characters[unseen:])


class Flow:
    """Paints rows above the region. A row is text with SGR sequences and no other control characters, reset at its end."""

    def __init__(self) -> None:
        self._painted: list[Row] = []  # right above the region; they may still change
        self._let_go = _LetGo()

    def paint(self, finished: Sequence[Row], tail: Sequence[Row], columns: int, rows: int, region: Region) -> str:
        """What to write so that `finished` and then `tail` follow what was finished before. What of the tail's text stands
        above already is not painted again. A tail beside any text is no beginning of what will be finished."""
        self._keep(rows - region.height)
        finished, tail = fold(finished, columns), fold(tail, columns)
        done, left = _after(finished, self._let_go.as_drawn([*finished, *tail]))
        rest, _ = _after(tail, left)
        unfinished = bool(tail) and tail[-1].of == left.of
        self._let_go = left if unfinished else _LetGo()  # where nothing is unfinished, nothing of it stands above
        pen = _Pen(region, len(self._painted))
        pen.repaint([row.text for row in self._painted], [row.text for row in done + rest], rows)
        self._painted = rest
        self._keep(rows - region.height)
        return pen.written()

    def squeezed(self, room: int) -> None:
        """The region left so few rows above it, if only for a moment: what was higher has left the screen."""
        self._keep(room)

    def narrowed(self, columns: int) -> None:
        """The screen has so many columns now: rows that no longer fit are wherever the terminal has put them."""
        if any(cells(_STYLE.sub("", row.text)) > columns for row in self._painted):
            self.let_go()

    def let_go(self) -> None:
        """Leave what is painted as it is: something else comes between it and the region."""
        self._keep(0)

    def forget(self) -> None:
        """What is painted is gone from the screen: paint it anew."""
        self._painted = []

    def _keep(self, room: int) -> None:
        gone = max(0, len(self._painted) - max(0, room))
        for row in self._painted[:gone]:
            if row.of:
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


def fold(rows: Sequence[Row], columns: int) -> list[Row]:
    """The rows, those that are too wide as several."""
    return [row._replace(text=part) for row in rows for part in _fold(row.text.replace("\t", "    "), columns)]


def _fold(row: str, columns: int) -> list[str]:
    if cells(_STYLE.sub("", row)) <= columns:
        return [row]
    return [theme.load("dark").ansi(part) for part in wrap(Text.from_ansi(row), columns)]


def _after(rows: Sequence[Row], gone: _LetGo) -> tuple[list[Row], _LetGo]:
    """The rows after what was let go of, and how much of that was not among them."""
    kept = list[Row]()
    for place, row in enumerate(rows):
        if row.of != gone.of:
            kept.append(row)
            continue
        size = len(_characters(row.text))
        if size > len(gone.characters) or not (gone.characters or gone.bare):
            text = _cut(row.text, len(gone.characters)) if gone.characters else row.text
            return [*kept, row._replace(text=text), *rows[place + 1 :]], _LetGo(of=gone.of)
        gone = gone._replace(characters=gone.characters[size:], bare=gone.bare - (not gone.characters))
    return kept, gone


def _standing(seen: str, text: str) -> tuple[int, int]:
    """How many characters of the text stand above, where these were seen before it was drawn as it is now; and how many of
    those it has an answer to: all, unless the text ends before. Found by the fewest characters that came or went."""
    same = len(_common(seen, text))
    if same in (len(seen), len(text)):
        return same, same
    seen, text = seen[same:], text[same : same + len(seen) - same + _BAND]
    costs, best = {at: at for at in range(min(len(text), _BAND) + 1)}, (len(text), len(text), 0)
    for row, character in enumerate(seen, 1):
        before, costs = costs, {}
        for at in range(max(0, row - _BAND), min(len(text), row + _BAND) + 1):
            costs[at] = min(before.get(at, _FAR), costs.get(at - 1, _FAR)) + 1
            if at and text[at - 1] == character:
                costs[at] = min(costs[at], before.get(at - 1, _FAR))
        if len(text) in costs:
            best = min(best, (costs[len(text)], len(text), row))
    _, count, row = min([best, *((cost, at, len(seen)) for at, cost in costs.items())])
    return same + count, same + row


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


def _characters(row: str) -> str:
    """Those by which the row's text is known again."""
    return _MARKUP.sub("", _STYLE.sub("", row))


def _common(before: str, now: str) -> str:
    """What two texts begin with."""
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
