"""Large texts that were pasted: the input shows their size instead, since they would hide all else, and be slow."""

import re

_LARGE = 1000  # characters
_LARGE_LINES = 12
NAMED = re.compile(r"\[pasted [\d,]+ characters(?: #\d+)?\]")


class Pasted:
    """Those of one chat, by what stands for them."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def folded(self, text: str) -> str:
        """A text as it stands in the input: one that is large by its size."""
        large = len(text) > _LARGE or text.count("\n") >= _LARGE_LINES
        return self._name(text) if large else text

    def _name(self, text: str) -> str:
        known = (name for name, kept in self._texts.items() if kept == text)
        number = f" #{len(self._texts) + 1}" if self._texts else ""
        name = next(known, f"[pasted {len(text):,} characters{number}]")
        self._texts[name] = text
        return name

    def whole(self, shown: str) -> str:
        """What stands in the input, with the texts in place of their sizes."""
        return NAMED.sub(lambda match: self._texts.get(match[0], match[0]), shown) if self._texts else shown
