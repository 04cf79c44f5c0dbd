"""What a dialog is called in lists, and by which name its file begins: both come of a question's own words."""

import re
import unicodedata
from collections.abc import Sequence

from llamachat.system.enclosed import parted

LONGEST_TITLE = 200  # characters
LONGEST_SLUG = 32  # characters
_BYTES = 70  # of them; so a name has room for a number behind it


def title(question: str) -> str:
    """The first line of what was asked, or the first attached file where nothing else was said."""
    words, attached = parted(question)
    return (first_line(words) or next(iter(attached), ""))[:LONGEST_TITLE]


def slug(words: str) -> str:
    """A name for a file that a person can read and type, like "name-the-capital-of-france"; empty where there are no words."""
    kept = (each if each.isalnum() or unicodedata.category(each)[0] == "M" else " " for each in _joined(words))
    return _some("".join(kept).lower().split())


def _joined(words: str) -> str:
    """Without apostrophes within words."""
    return re.sub(r"(?<=\w)['’](?=\w)", "", unicodedata.normalize("NFC", words[:LONGEST_TITLE]))


def _some(words: Sequence[str]) -> str:
    """As many of them as a short name holds, with hyphens."""
    name = "-".join(words)
    if len(name) > LONGEST_SLUG:
        name = name[: LONGEST_SLUG + 1]
        name = name.rpartition("-")[0] or name[:LONGEST_SLUG]
    return name.encode()[:_BYTES].decode(errors="ignore").strip("-")


def first_line(text: str) -> str:
    """What stands for a message in a list."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
