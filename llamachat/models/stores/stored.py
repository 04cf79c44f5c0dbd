"""What another program keeps models in, and a model there. All of it is only ever read, and none of it is trusted."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from llamachat.errors import CatalogError, reading
from llamachat.system import textfile
from llamachat.system.metadata import parse_json
from llamachat.system.sanitise import sanitise_line

MOST = 10_000  # entries of folders that are looked at in one store
SHOWN = 1_000  # models of one store that are listed
LIMIT = 1 << 20  # bytes of a manifest, or of a text in one
PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
FIRST = "00001"

Name = tuple[str, Path]  # of a model, and the file or folder that tells of it


@dataclass(frozen=True)
class Stored:
    """A model that is here already, in one file (or the first of a split set) or in one folder."""

    reference: str  # as -m takes it
    path: Path
    nbytes: int
    system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)  # fields of SamplingParams
    notes: tuple[str, ...] = ()  # what a person who asked for it should know
    lacks: str = ""  # why it cannot be run, as far as the store knows


@dataclass(frozen=True)
class Store:
    """A program's models. `names` and `open` are given one of the folders.

    `names` hands out what is there, in any order, raises nothing and does not look inside of what it names. `open` raises
    LlamachatError for a model that is not whole.
    """

    name: str  # what its references begin with, before a colon
    called: str
    folders: Callable[[], Sequence[Path]]  # that there may be
    names: Callable[[Path], Iterator[Name]]
    open: Callable[[Path, str, Path], Stored]
    remove: str  # how a model is removed there; {name} and {path} stand for it
    same: Callable[[str], str] = lambda name: name.lower().removesuffix(".gguf")  # alike for names of one model

    def reference(self, name: str) -> str:
        return f"{self.name}:{name}"


def home(*parts: str) -> Path:
    """A path in the person's folder; one that is not there where no such folder is known."""
    return Path(os.path.expanduser("~"), *parts)  # noqa: PTH111 (raises nothing without a home)


def place(variable: str, *parts: str, default: Path) -> Path:
    """What lies where an environment variable says, or else here."""
    named = os.environ.get(variable, "").strip(" \"'")
    return Path(named, *parts) if named else default


def files(top: Path, depth: int = 0) -> Iterator[Path]:
    """Files in a folder and so many levels of folders below it, by name; links are followed. What cannot be read is left out,
    and so is what comes after MOST entries."""
    waiting, left = [(top, depth)], MOST
    while waiting and left > 0:
        folder, below = waiting.pop()
        found = _entries(folder, left)
        left -= len(found)
        yield from (path for path, is_folder in found if not is_folder)
        if below:
            waiting += [(path, below - 1) for path, is_folder in reversed(found) if is_folder]


def subfolders(folder: Path, named: re.Pattern[str]) -> list[Path]:
    """Those whose names match, by name; of very many the first."""
    return [path for path, is_folder in _entries(folder, MOST) if is_folder and named.fullmatch(path.name)][:SHOWN]


def _entries(folder: Path, most: int) -> list[tuple[Path, bool]]:
    """Files and folders, and which of them are folders."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(islice(scanned, most), key=lambda entry: entry.name)
            return [found for entry in entries if (found := _kind(entry))]
    except (OSError, ValueError):
        return []


def _kind(entry: "os.DirEntry[str]") -> tuple[Path, bool] | None:
    """None for what is neither, cannot be looked at, or has a name that no person could type."""
    try:
        told = entry.name.isprintable() and (entry.name.isascii() or sanitise_line(entry.name) == entry.name)
        if told and (entry.is_dir() or entry.is_file()):
            return Path(entry.path), entry.is_dir()
    except OSError:  # a link to itself, for one
        pass
    return None


def is_first(path: Path) -> bool:
    """Whether a model begins in this GGUF file: it is whole, or the first of its parts."""
    part = PART.fullmatch(path.name)
    return path.suffix.lower() == ".gguf" and (part is None or part[2] == FIRST)


def size(path: Path) -> int:
    """Bytes of a file, or of all the parts that it is the first of. Raises CatalogError where it is not whole."""
    part = PART.fullmatch(path.name)
    count = int(part[3]) if part else 1
    names = (f"{part[1]}-{n:05}-of-{part[3]}.gguf" if part else path.name for n in range(1, count + 1))
    total = 0
    for file in map(path.with_name, names):
        if not file.is_file():
            raise CatalogError(f"{file} is not there", "the model is not whole", "fetch it again where it came from")
        total += file.stat().st_size
    return total


def document(path: Path) -> dict[str, object]:
    """The object in a small JSON file. Raises CatalogError."""
    return parse_json(text(path), str(path), CatalogError)


def text(path: Path) -> str:
    """A small file. Raises CatalogError."""
    with reading(f"{path} cannot be read", CatalogError, "the model is not used"):
        return textfile.read(path, LIMIT).decode()
