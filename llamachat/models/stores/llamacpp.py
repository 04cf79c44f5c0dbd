"""llama.cpp's downloads: LLAMA_CACHE, else `llama.cpp` in the user's folder for caches.

Its sources (common/common.cpp, common/hf-cache.cpp) have the layout: OWNER_REPOSITORY_FILE.gguf beside
manifest=OWNER=REPOSITORY=TAG.json, which names the file in the repository; newer versions take the Hugging Face cache, and
LLAMA_CACHE for the place of that.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamachat.errors import CatalogError
from llamachat.models.stores import huggingface
from llamachat.models.stores.plain_files import gguf_names, opened_at
from llamachat.models.stores.stored import Name, Store, Stored, document, files, home, place

MANIFEST = re.compile(r"manifest=([^=/]+)=([^=/]+)=([^=/]+)\.json")


def folders() -> Sequence[Path]:
    return [place("LLAMA_CACHE", default=_default())]


def _default() -> Path:
    if sys.platform == "darwin":
        return home("Library", "Caches", "llama.cpp")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home("AppData", "Local")), "llama.cpp")
    return place("XDG_CACHE_HOME", "llama.cpp", default=home(".cache", "llama.cpp"))


def names(folder: Path) -> Iterator[Name]:
    """OWNER/REPOSITORY:TAG where a manifest says it, else the file's name without its suffix."""
    found = list(files(folder))
    told = dict[Path, str]()
    for path in found:
        if (match := MANIFEST.fullmatch(path.name)) and (file := _file(folder, match[1], match[2], path)):
            told[file] = f"{match[1]}/{match[2]}:{match[3]}"
    for path in found:
        if path in told:
            yield told[path], path
        else:
            yield from gguf_names(folder, path)
    yield from huggingface.names(folder)


def _file(folder: Path, owner: str, repository: str, manifest: Path) -> Path | None:
    """What a manifest is of; None where it does not say."""
    try:
        told = document(manifest).get("ggufFile")
    except CatalogError:
        return None
    name = told.get("rfilename") if isinstance(told, dict) else None
    return folder / f"{owner}_{repository}_{name}".replace("/", "_") if isinstance(name, str) else None


def opened(folder: Path, name: str, path: Path) -> Stored:
    return opened_at(f"llama.cpp:{name}", path)


STORE = Store("llama.cpp", "llama.cpp", folders, names, opened, "delete {path} yourself")
