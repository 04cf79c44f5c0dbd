"""Byte-level BPE of short texts in ASCII by tables alone: most prompts need no library, which takes a tenth of a second to build.

What it gives is what the library gives, to the id; whatever it does not know for sure it leaves to that.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from itertools import pairwise

from llamachat.tokenizers.hf import BYTE_OF

BUDGET = 20_000  # characters; by then the library would have been built in the time that they took
LONGEST = 64  # characters of a word; the time grows with the square
_SPACE = r"\t-\r "  # within brackets
_NONE = 1 << 62
_ASCII = {chr(byte): char for char, byte in BYTE_OF.items() if byte < 128}
# what a class of the expressions has in ASCII, for within brackets
_CLASSES = {
    r"\p{L}": "A-Za-z",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "",
    r"\p{Lm}": "",
    r"\p{Lo}": "",
    r"\p{M}": "",
    r"\p{N}": "0-9",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}",
    r"\s": _SPACE,
}


def in_ascii(pattern: str) -> str:
    """An expression with Unicode's classes as one of Python's that does the same to a text in ASCII."""
    out, inside = list[str](), False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern):
        inside = part == "[" or (inside and part != "]")
        if part == r"\S":
            out.append(f"[^{_SPACE}]")
        elif part in _CLASSES:
            out.append(_CLASSES[part] if inside else f"[{_CLASSES[part]}]")
        else:
            out.append(part)
    return "".join(out)


class ShortTexts:
    """`barred`: tokens that no text may give. `added`: those that are found in any text as they are. `merges`: "left right",
    first come first served. `whole_words`: a word that is a token is not merged.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        ids: Mapping[str, int],
        merges: Sequence[str],
        barred: Set[str],
        added: Set[str],
        whole_words: bool,
    ) -> None:
        self._patterns, self._ids, self._merges = patterns, ids, merges
        self._barred, self._added, self._whole_words = barred, added, whole_words
        self._left = BUDGET

    def encode(self, text: str) -> list[int] | None:
        """The ids; None where the library is to be asked, as from then on for every text when enough has been encoded."""
        self._left -= len(text)
        if self._left < 0 or not text.isascii() or any(name in text for name in self._added):
            return None
        out = list[int]()
        for word in self._words(text):
            if (ids := self._of_word(word)) is None:
                return None
            out += ids
        return out

    def _words(self, text: str) -> list[str]:
        words = [text]
        for split in self._splits:
            words = [part for word in words for part in split(word)]
        return words

    @cached_property
    def _splits(self) -> list[Callable[[str], list[str]]]:
        return [_isolating(re.compile(in_ascii(pattern))) for pattern in self._patterns]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(self._merges, range(len(self._merges)), strict=True))

    def _of_word(self, word: str) -> list[int] | None:
        if len(word) > LONGEST:
            return None
        parts = [_ASCII[char] for char in word]
        whole = "".join(parts)
        if self._whole_words and whole in self._ids:
            parts = [whole]
        elif not self._known(parts) or not self._merge(parts):
            return None
        return [self._ids[part] for part in parts] if self._known(parts) else None

    def _merge(self, parts: list[str]) -> bool:
        """Merge what is to be merged, the first of the merges first; False at a product that is no token."""
        while len(parts) > 1:
            ranks = [self._ranks.get(f"{left} {right}", _NONE) for left, right in pairwise(parts)]
            if (best := min(ranks)) == _NONE:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            if not self._known(parts[at : at + 1]):
                return False
        return True

    def _known(self, parts: Sequence[str]) -> bool:
        return all(part in self._ids and part not in self._barred for part in parts)


def _isolating(pattern: re.Pattern[str]) -> Callable[[str], list[str]]:
    """What cuts a text into the matches and what lies between them."""

    def split(text: str) -> list[str]:
        out, end = list[str](), 0
        for match in pattern.finditer(text):
            out += [text[end : match.start()], match[0]]
            end = match.end()
        return [part for part in (*out, text[end:]) if part]

    return split
