"""What a dialog is called in lists, and by which name its file begins: both come of a question's own words."""

import re
import unicodedata
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence

LONGEST_TITLE = 200  # characters
LONGEST_SLUG = 32  # characters
_BYTES = 70  # of them; so a name has room for a number behind it
_FILE = re.compile(r"(\S+\.[A-Za-z0-9]{1,10}):")  # how an attached file's name stands before its text
_FENCE = re.compile(r"`{3,}")


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


def parted(question: str) -> tuple[str, tuple[str, ...]]:
    """A question's own words, and the files that were attached to it, like "notes.md (12 lines)"."""
    lines = question.split("\n")
    fences = _fences(lines)
    own, attached, at = list[str](), list[str](), 0
    while at < len(lines):
        end = _end(lines, fences, at)
        if end is None:
            own.append(lines[at])
            at += 1
        else:
            attached.append(f"{lines[at][:-1]} ({end - at - 2} line{'s' * (end - at != 3)})")
            at = end + 1
    return "\n".join(own).strip("\n"), tuple(attached)


def _fences(lines: Sequence[str]) -> dict[str, list[int]]:
    """Where each fence stands, by how it is written."""
    found = defaultdict[str, list[int]](list)
    for number, line in enumerate(lines):
        if _FENCE.fullmatch(line):
            found[line].append(number)
    return found


def _end(lines: Sequence[str], fences: dict[str, list[int]], at: int) -> int | None:
    """The line that closes the file whose name this line is; None where it is no such line."""
    if at + 1 == len(lines) or lines[at + 1] not in fences or not _FILE.fullmatch(lines[at]):
        return None
    places = fences[lines[at + 1]]
    return next(iter(places[bisect(places, at + 1) :]), None)


def first_line(text: str) -> str:
    """What stands for a message in a list."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
