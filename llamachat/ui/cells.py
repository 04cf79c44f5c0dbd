"""Text in terminal cells: how wide it is, how it wraps, how it is cut.

Terminals disagree about joined emoji: new ones draw one glyph, others all its parts. Where text must not run over the
edge the wider reading counts, so that a line is at worst shorter than it could be.
"""

import re
from collections.abc import Sequence

from rich.cells import get_character_cell_size, split_graphemes
from rich.text import Text

_IDEOGRAPH = "\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6\U00020000-\U0003ffff"
_OPENING = "（「『【〈《〔［｛"
_CLOSING = "）」』】〉》〕］｝、。，．！？：；ー々"
# What stays together: a word with the spaces before it, or an ideograph with its brackets and stops.
_WORD = re.compile(rf" *[{_OPENING}]*(?:[^ {_IDEOGRAPH}]+|[{_IDEOGRAPH}]|(?= |$))[{_CLOSING}]*")

_WORD_CELLS = 18  # of the longest: paths, addresses and numbers of many digits are longer


def cells(text: str) -> int:
    """The most cells that a terminal may need for a text of one line, without tabs."""
    if text.isascii():
        return len(text)
    return sum(map(get_character_cell_size, text)) + text.count("\ufe0f")


def wrap(text: Text, width: int) -> list[Text]:
    """Lines of at most `width` cells, broken at word ends where words are not wider than that; never none."""
    return [part for line in text.split("\n", allow_blank=True) for part in _wrap_line(line, width)] or [Text()]


def fit(wanted: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns that have `room` together: the widest give first, none below its `least`. None: not even those fit."""
    if sum(least) > room:
        return None
    limit = max(wanted, default=0)
    while sum(sizes := [max(min(size, limit), low) for size, low in zip(wanted, least, strict=True)]) > room:
        limit -= 1
    return sizes


def widest_word(text: str) -> int:
    """The cells that a text needs so that no word of it is broken; what is longer than words are may be."""
    return min(_WORD_CELLS, max((cells(match[0].strip()) for match in _WORD.finditer(text)), default=0))


def chop(text: Text, width: int) -> list[Text]:
    """Lines of at most `width` cells, broken anywhere but within a character."""
    if cells(text.plain) <= width:
        return [text]
    offsets, used = [], 0
    for start, end, _ in split_graphemes(text.plain)[0]:
        size = cells(text.plain[start:end])
        if used and used + size > width:
            offsets.append(start)
            used = 0
        used += size
    return list(text.divide(offsets))


def cut(text: str, width: int) -> str:
    """At most `width` cells of a text, with an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    kept = chop(Text(text), width - 1)[0].plain.rstrip() if width > 1 else ""
    return kept + "…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _wrap_line(line: Text, width: int) -> list[Text]:
    if cells(line.plain) <= width:
        return [line]
    parts = list(line.divide(_breaks(line.plain, width)))
    for part in parts:
        part.rstrip()
    return parts


def _breaks(text: str, width: int) -> list[int]:
    """Where the lines after the first begin."""
    offsets: list[int] = []
    used = 0
    for match in _WORD.finditer(text):
        word = match[0].lstrip(" ")
        start, size = match.end() - len(word), cells(word)
        used += start - match.start() + size
        if not word or used <= width:
            continue
        if start:
            offsets.append(start)
        pieces = _pieces(word, width)
        for piece in pieces[:-1]:
            start += len(piece)
            offsets.append(start)
        used = cells(pieces[-1])
    return offsets


def _pieces(word: str, width: int) -> list[str]:
    """A word in lines: where it is too wide for one behind slashes, such as a path has, else anywhere."""
    pieces = [""]
    for part in re.split("(?<=/)", word):
        if pieces[-1] and cells(pieces[-1] + part) > width:
            pieces.append("")
        *whole, rest = [piece.plain for piece in chop(Text(pieces.pop() + part), width)]
        pieces += [*whole, rest]
    return pieces


def count(number: int, noun: str) -> str:
    """Like "1 token" and "2 tokens"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
