"""The Hugging Face cache: what any program has fetched there.

huggingface_hub's documentation (Manage your cache) has the layout: models--OWNER--REPOSITORY with refs/REVISION, which holds a
commit, and snapshots/COMMIT, whose files are links to blobs. Its references are those of the hub itself, `hf:…`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from llamachat import paths
from llamachat.errors import CatalogError
from llamachat.models.sources import FOLDER, WORD
from llamachat.models.stores.plain_files import CONFIG, WEIGHTS, opened_at
from llamachat.models.stores.stored import Name, Store, Stored, files, is_first, subfolders, text

REPOSITORY = re.compile(rf"models--({WORD}?)--({WORD})")
FILE = re.compile(rf"{WORD}(/{WORD})?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


def folders() -> Sequence[Path]:
    return [paths.hub_cache_dir()]


def names(folder: Path) -> Iterator[Name]:
    """OWNER/REPOSITORY/FILE.gguf for each GGUF file, OWNER/REPOSITORY for safetensors; @REVISION where that is not main."""
    for repository in subfolders(folder, REPOSITORY):
        if match := REPOSITORY.fullmatch(repository.name):
            revision, snapshot = _snapshot(repository)
            at = "" if revision == MAIN else f"@{revision}"
            yield from ((f"{match[1]}/{match[2]}{inner}{at}", path) for inner, path in _models(snapshot))


def _snapshot(repository: Path) -> tuple[str, Path]:
    """That of main, else of the first revision by name; and which that is."""
    refs = sorted(files(repository / "refs"), key=lambda path: (path.name != MAIN, path.name))
    for ref in refs:
        with suppress(CatalogError):
            if COMMIT.fullmatch(commit := text(ref).strip()):
                return ref.name, repository / "snapshots" / commit
    return MAIN, repository / "snapshots" / "none"


def _models(snapshot: Path) -> Iterator[Name]:
    found = list(files(snapshot, depth=1))
    for path in found:
        inner = path.relative_to(snapshot).as_posix()
        if is_first(path) and FILE.fullmatch(inner):
            yield f"/{inner}", path
    here = {path.name: path for path in found if path.parent == snapshot}
    if CONFIG in here and any(map(WEIGHTS.fullmatch, here)):
        yield f":{FOLDER}" if any(map(is_first, found)) else "", snapshot


def opened(folder: Path, name: str, path: Path) -> Stored:
    return opened_at(f"hf:{name}", path)


STORE = Store("hf", "Hugging Face cache", folders, names, opened, "`llamachat models rm hf:{name}` deletes it")
