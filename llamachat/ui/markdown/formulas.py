r"""Where formulas are in a text: LaTeX between \( and \), \[ and \], $ and $, $$ and $$, \begin{align} and its end.

What only looks like one stays what it is: $5 and $10, $PATH, an escaped \[bracket\]. A dollar counts as pandoc has it
(tex_math_dollars), and as GitHub does where a word or a digit follows.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$$": "$$", "$": "$"}
_BODY = {  # up to and with what ends it
    r"\(": re.compile(r"((?:[^\\]++|\\[^)])*+)\\\)", re.DOTALL),
    r"\[": re.compile(r"((?:[^\\]++|\\[^\]])*+)\\\]", re.DOTALL),
    "$$": re.compile(r"((?:[^\\$]++|\\.|\$(?!\$))*+)\$\$(?!\$)", re.DOTALL),
    "$": re.compile(r"((?:[^\\$\n]++|\\.)*+)\$(?![\w{$])"),
}
_STRONG = re.compile(r"\\[A-Za-z]|[\^_{]")
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
_OPERATOR = re.compile(r"[=+<>/*|−-]")
_BEGIN = re.compile(
    r"\\begin\{((?:align(?:at|ed)?|equation|gather(?:ed)?|multline|eqnarray|split|cases|array|[pbBvV]?matrix)\*?)\}"
)
_DISPLAY = re.compile(rf"(`+)|{_BEGIN.pattern}|\\end\{{\w+\*?\}}|\\\\|\\\[|\\\]|(?<!\$)\$\$(?!\$)")
_PARTS = re.compile(r"(?P<code>(?<!`)(`+)(?!`).*?(?<!`)\2(?!`))|(?P<sign>\\[(\[]|\\begin\b|\$\$?)|\\.", re.DOTALL)


class Formula(NamedTuple):
    source: str  # without the signs around it
    end: int  # behind it in the text
    closed: bool


def formula(text: str, start: int) -> Formula | None:
    """The one that begins there, if one does. One that is not closed goes on to the text's end, but for a single dollar's."""
    if begun := _BEGIN.match(text, start):
        ends = text.find(rf"\end{{{begun[1]}}}", start)
        end = text.index("}", ends) + 1 if ends >= 0 else len(text)
        return Formula(text[start:end], end, ends >= 0)
    sign = text[start : start + 2]
    if sign not in _CLOSING:
        sign = sign[:1]
    if sign not in _CLOSING or (sign[0] == "$" and not _may_open(text, start, sign)):
        return None
    inside, last = start + len(sign), _last(text)
    if last[_CLOSING[sign]] >= inside and (found := _BODY[sign].match(text, inside)):
        return Formula(found[1], found.end(), True) if _is_one(found[1], sign, text, start, found.end()) else None
    if sign == "$":
        return None
    alone = text.startswith("\n", inside) and not text[:start].rpartition("\n")[2].strip()
    opens = last[_STRONG.pattern] >= inside or (alone and _is_one(text[inside:], sign, text, start, len(text)))
    return Formula(text[inside:], len(text), False) if opens else None


@lru_cache(4)
def _last(text: str) -> Mapping[str, int]:
    """Where each closing sign stands last, and what only formulas have; -1: nowhere. A text may be nothing but beginnings, and
    must not be searched to its end for each."""
    strong = max((found.start() for found in _STRONG.finditer(text)), default=-1)
    return {**{sign: text.rfind(sign) for sign in _CLOSING.values()}, _STRONG.pattern: strong}


def _may_open(text: str, start: int, sign: str) -> bool:
    """Whether a dollar is neither of a price, a variable nor a row of them."""
    before, behind = text[start - 1 : start], text[start + len(sign) : start + len(sign) + 1]
    return not (before == "$" or behind in ("", "$")) and (sign == "$$" or not (before.isalnum() or behind.isspace()))


def _is_one(inside: str, sign: str, text: str, start: int, end: int) -> bool:
    """Whether what lies between such signs is a formula rather than words."""
    if not inside.strip() or (sign == "$" and inside[-1].isspace()):
        return False
    if _STRONG.search(inside):
        return True
    if sign == r"\[" and not _OPERATOR.search(inside):  # an escaped bracket, unless it has the line for itself
        before, behind = text[:start].rpartition("\n")[2], text[end:].partition("\n")[0]
        return not (before.strip() or behind.strip())
    return not (_WORD.search(inside) and re.search(r"\s", inside if sign[0] == "$" else inside.strip()))


def formulas(text: str) -> list[tuple[int, int]]:
    """Where formulas are, those in code left out."""
    found, start = list[tuple[int, int]](), 0
    while part := _PARTS.search(text, start):
        start = part.end()
        if part["sign"] and (one := formula(text, part.start())):
            start = one.end
            found.append((part.start(), start))
    return found


def open_display(sign: str, line: str) -> str:
    r"""What closes the displayed formula that a line leaves open, or nothing; `sign`: what closes the one that it is in.

    One that begins within a line counts where nothing else is on it (\[), or not at all ($$, which may be a price).
    """
    start = 0
    while part := _DISPLAY.search(line, start):
        start = part.end()
        if sign:
            sign = "" if part[0] == sign else sign
        elif part[1]:
            closed = line.find(part[1], start)
            start = closed + len(part[1]) if closed >= 0 else start
        elif part[2]:
            ends = rf"\end{{{part[2]}}}"
            sign = "" if ends in line[start:] else ends
        elif part[0] in _CLOSING:
            alone = not line[: part.start()].strip() or (part[0] == r"\[" and not line[start:].strip())
            closed = line.find(_CLOSING[part[0]], start)
            start = closed + 2 if closed >= 0 else start
            sign = _CLOSING[part[0]] if closed < 0 and alone else ""
    return sign


def opening(sign: str) -> str:
    """What such a formula began with."""
    if sign.startswith(r"\end"):
        return sign.replace("end", "begin", 1)
    return next(begins for begins, ends in _CLOSING.items() if ends == sign)


def open_dollar(text: str) -> bool:
    """Whether a text that may go on ends within a formula between single dollars."""
    start = max((end for _, end in formulas(text)), default=0)
    place = text.find("$", start)
    return place >= 0 and _may_open(text, place, "$") and "\n" not in text[place:] and bool(_STRONG.search(text, place))
