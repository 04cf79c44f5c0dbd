"""Texts that go with a message: each before it, by name, in a code fence that nothing in it can close."""

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence

_NAME = re.compile(r"\S+\.[A-Za-z0-9]{1,10}|\./.+")  # no words that a person may write before code
_FENCE = re.compile(r"`{3,}")


def enclosed(name: str, text: str) -> str:
    """A text as it goes before a message. `name` is one line."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    written = name if _NAME.fullmatch(name) else f"./{name}"
    return f"{written}:\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"


def parted(message: str) -> tuple[str, tuple[str, ...]]:
    """A message's own words, and the texts that go with it, like "notes.md (12 lines)"."""
    lines = message.split("\n")
    fences = _fences(lines)
    own, attached, at = list[str](), list[str](), 0
    while at < len(lines):
        end = _end(lines, fences, at)
        if end is None:
            own.append(lines[at])
            at += 1
        else:
            attached.append(f"{lines[at][:-1].removeprefix('./')} ({end - at - 2} line{'s' * (end - at != 3)})")
            at = end + 1
    return "\n".join(own).strip("\n"), tuple(attached)


def own_words(message: str) -> str:
    """What a person said themselves; all of a message where there is nothing else."""
    return parted(message)[0] or message


def _fences(lines: Sequence[str]) -> dict[str, list[int]]:
    """Where each fence stands, by how it is written."""
    found = defaultdict[str, list[int]](list)
    for number, line in enumerate(lines):
        if _FENCE.fullmatch(line):
            found[line].append(number)
    return found


def _end(lines: Sequence[str], fences: dict[str, list[int]], at: int) -> int | None:
    """The line that closes the text whose name this line is; None where it is no such line."""
    if at + 1 == len(lines) or lines[at + 1] not in fences or not _names(lines[at]):
        return None
    places = fences[lines[at + 1]]
    after = bisect(places, at + 1)
    return places[after] if after < len(places) else None


def _names(line: str) -> bool:
    return line.endswith(":") and bool(_NAME.fullmatch(line[:-1]))
