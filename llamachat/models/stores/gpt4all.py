"""GPT4All's models: GGUF files in one folder.

Its documentation (Settings, Download Path) and sources (gpt4all-chat/src/mysettings.cpp, the Python package) have the places:
nomic.ai/GPT4All in the user's folder for data, what `modelPath` in its settings says, and ~/.cache/gpt4all.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamachat.errors import CatalogError
from llamachat.models.stores.plain_files import gguf_names, opened_at
from llamachat.models.stores.stored import Name, Store, Stored, files, home, place, text

OWN = ("nomic.ai", "GPT4All")
UNFINISHED = "incomplete-"
CHOSEN = re.compile(r"^modelPath=(.+)$", re.MULTILINE)


def folders() -> Sequence[Path]:
    return list(dict.fromkeys((*_chosen(), _default(), home(".cache", "gpt4all"))))


def _default() -> Path:
    if sys.platform == "darwin":
        return home("Library", "Application Support", *OWN)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home("AppData", "Local")), *OWN)
    return place("XDG_DATA_HOME", *OWN, default=home(".local", "share", *OWN))


def _chosen() -> list[Path]:
    """What its settings say; they are elsewhere on macOS."""
    windows = sys.platform == "win32"
    config = place("APPDATA" if windows else "XDG_CONFIG_HOME", default=home(".config"))
    try:
        return [Path(match[1].strip(' "')) for match in CHOSEN.finditer(text(config / "nomic.ai" / "GPT4All.ini"))][:1]
    except CatalogError:
        return []


def names(folder: Path) -> Iterator[Name]:
    for path in files(folder):
        if not path.name.startswith(UNFINISHED):
            yield from gguf_names(folder, path)


def opened(folder: Path, name: str, path: Path) -> Stored:
    return opened_at(f"gpt4all:{name}", path)


STORE = Store("gpt4all", "GPT4All", folders, names, opened, "remove it in GPT4All, under Models")
