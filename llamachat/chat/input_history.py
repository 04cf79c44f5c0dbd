"""The file of what was typed, as prompt-toolkit keeps it: to be cleaned of what belongs to a dialog that is deleted.

An entry is a line with its time, which begins with #, and the typed lines, each behind a +.
"""

import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import BinaryIO

from llamachat.system import private
from llamachat.system.enclosed import parted

LONGEST = 1 << 20  # bytes of a line
_EDIT = re.compile(r"/edit\s+([+-]?\d+\s+)?")  # the command that asks what stands behind it


def forget(file: Path, questions: Set[str]) -> int:
    """Take out every entry that is one of these questions, or the words of one that went with files. Returns how many
    those were. Raises OSError."""
    wanted = _words(questions)
    if not wanted or not file.exists():
        return 0
    with file.open("rb") as stream:
        gone = sum(_typed(entry) in wanted for entry in _entries(stream))
    if gone:
        with file.open("rb") as stream, private.writing(file) as kept:
            kept.writelines(line for entry in _entries(stream) if _typed(entry) not in wanted for line in entry)
    return gone


def _words(questions: Set[str]) -> set[str]:
    return {text for each in questions for text in (each.strip(), parted(each)[0].strip()) if text}


def _entries(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Lines, by the entry that they are of."""
    entry = list[bytes]()
    while line := stream.readline(LONGEST):
        if entry and not line.startswith(b"+") and entry[-1].startswith(b"+"):
            yield entry
            entry = []
        entry.append(line)
    if entry:
        yield entry


def _typed(entry: list[bytes]) -> str:
    """What was typed there, as it was sent."""
    text = "".join(line[1:].decode(errors="replace") for line in entry if line.startswith(b"+")).strip()
    if edit := _EDIT.match(text):
        text = text[edit.end() :]
    if len(text) >= 6 and text.startswith('"""') and text.endswith('"""'):
        return text[3:-3].strip()
    return text[1:] if text.startswith("//") else text
