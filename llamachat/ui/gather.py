"""Files that a folder or a pattern stands for: bounded in what is looked at, without links and hidden ones."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from llamachat.errors import UsageError
from llamachat.system.sanitise import sanitise_line

MOST = 200  # files
LOOKED_AT = 20_000  # entries of folders
DEPTH = 50  # of folders within each other
_WILD = frozenset("*?[")


def is_pattern(name: str) -> bool:
    return not _WILD.isdisjoint(name)


def gathered(name: str) -> tuple[list[str], int]:
    """Paths of a folder's files ("docs/"), with those below, or of those that a pattern names (`**`: any folders), sorted; and
    how many hidden entries and links of a folder were passed over. Raises UsageError for too many."""
    parts = name.split("/")
    plain = next((place for place, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)
    start, walk = "".join(f"{part}/" for part in parts[:plain]), _Walk(name)
    found = sorted(walk.matching(start, parts[plain:] if is_pattern(name) else ["**", "*"]))
    return found, 0 if is_pattern(name) else len(walk.passed_over)


class _Walk:
    def __init__(self, name: str) -> None:
        self.passed_over: set[str] = set()
        self._name = sanitise_line(name[:80])
        self._left, self._found = LOOKED_AT, 0

    def matching(self, folder: str, parts: Sequence[str]) -> Iterator[str]:
        """Files below a folder ("" or with a slash at its end) whose path there matches these parts."""
        part, *rest = parts
        while rest[:1] == [part] == ["**"]:
            rest = rest[1:]
        if part == "**":
            yield from self.matching(folder, rest or ["*"])
            for entry in self._entries(folder):
                if entry.is_dir(follow_symlinks=False) and folder.count("/") < DEPTH:
                    yield from self.matching(f"{folder}{entry.name}/", parts)
            return
        for entry in self._entries(folder, hidden=part.startswith(".")):
            if not fnmatchcase(entry.name, part):
                continue
            if not rest and entry.is_file(follow_symlinks=False):
                self._count()
                yield folder + entry.name
            elif rest and entry.is_dir(follow_symlinks=False):
                yield from self.matching(f"{folder}{entry.name}/", rest)

    def _entries(self, folder: str, hidden: bool = False) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder or ".") as entries:
                return [entry for entry in entries if self._is_wanted(entry, hidden)]
        except (OSError, ValueError):
            return []

    def _is_wanted(self, entry: "os.DirEntry[str]", hidden: bool) -> bool:
        self._left -= 1
        if self._left < 0:
            raise UsageError(f"{self._name} has too many files to look through", "nothing was attached", "name a part")
        wanted = not entry.is_symlink() and (hidden or not entry.name.startswith("."))
        if not wanted:
            self.passed_over.add(entry.path)
        return wanted

    def _count(self) -> None:
        self._found += 1
        if self._found > MOST:
            raise UsageError(f"{self._name} has more than {MOST} files", "nothing was attached", "name a part of them")
