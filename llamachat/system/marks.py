"""How many combining marks a base may bear: what is written does with a few, a flood of them smears over other lines.

Points, accents and signs of one canonical combining class go to the same place of their base, one over the other. The
most that is written there is four (a vowel's length, both breves, breathing and accent, in dictionaries of Greek), and
eight in all (the consonants of a Tibetan stack).
"""

import re
from collections import Counter
from unicodedata import category, combining

PLACE, ALL = 4, 8  # marks that a base may bear

# Where combining marks are, and letters that they stand among; Chinese, Japanese, Korean and Latin letters are not there.
_AMONG = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u1cff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\u2cef-\u2cf1\u2d7f\u2de0-\u2dff"
    "\u302a-\u302f\u3099\u309a\ua66f-\uabff\ufb1e\ufe00-\ufe2f\U000101fd-\U00011fff\U00013430-\U0001345f"
    "\U00016af0-\U00016fff\U0001bc9d-\U0001bc9e\U0001cf00-\U0001d244\U0001da00-\U0001e95f\U000e0100-\U000e01ef]+"
)
_JOINERS = "\u200c\u200d"  # neither marks nor bases: a flood may not hide behind them


def spelled(character: str) -> str:
    """How a character is shown that is not passed on, ⟨U+202E⟩."""
    return f"⟨U+{ord(character):04X}⟩"


class Marks:
    """Spells out the marks that are too many for their base, in a text that comes in pieces."""

    def __init__(self) -> None:
        self._borne = Counter[int | str]()  # by the base so far, in each place

    def feed(self, text: str) -> str:
        """The piece as it may be shown."""
        if text.isascii():
            if text:
                self._borne.clear()
            return text
        end = 0

        def settle(match: re.Match[str]) -> str:
            nonlocal end
            if match.start() > end:  # a base of a script without marks
                self._borne.clear()
            end = match.end()
            return "".join(map(self._settle, match[0]))

        shown = _AMONG.sub(settle, text)
        if end < len(text):
            self._borne.clear()
        return shown

    def _settle(self, character: str) -> str:
        if character in _JOINERS:
            return character
        if category(character) not in ("Mn", "Me"):
            self._borne.clear()
            return character
        place = combining(character) or character
        self._borne[place] += 1
        few = self._borne[place] <= PLACE and self._borne.total() <= ALL
        return character if few else spelled(character)
