"""A model from the Hugging Face hub, in the cache that all of its tools share (HF_HOME): found, chosen, fetched, removed."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llamachat import paths
from llamachat.errors import CatalogError, FormatError, reading
from llamachat.events import Progress
from llamachat.models.fetch import choice
from llamachat.models.fetch.blobs import Blob, Shifted, fetch_blob, place
from llamachat.models.fetch.hub_answers import COMMIT, Listing, RepoFile, listing, translated
from llamachat.models.fetch.verified import folder_size, is_intact, require_room
from llamachat.models.first_look import glance
from llamachat.models.fit import file_fits
from llamachat.models.sources import FOLDER, HubSource
from llamachat.system import textfile
from llamachat.system.known import is_known
from llamachat.system.sanitise import sanitise_line

# What a model in Hugging Face's or our own format needs; more copies of the weights (consolidated, onnx) are left out.
NEEDED = re.compile(
    r"((1_Pooling/)?config|generation_config|special_tokens_map|added_tokens|vocab|manifest|modules)\.json|merges\.txt"
    r"|tokenizer[\w.-]*|chat_template[\w.-]*|model[\w.-]*\.safetensors(\.index\.json)?",
    re.ASCII,
)
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # names of blobs: git's sha1 of a small file, sha256 of a big one
MAX_INDEX = 64 << 20
MAX_REF = 1000
MAX_HELD = 10_000  # files of a repository, and commits of one, that are looked at here
NOTHING = "the model was not fetched"


@dataclass(frozen=True)
class Pick:
    """What a reference means: the folder, or one GGUF model, and the files of it."""

    source: HubSource  # with the file, where it is a GGUF model
    files: tuple[RepoFile, ...]
    listing: Listing

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def models(self) -> tuple[choice.GGUFFile, ...]:
        """All that the repository has."""
        return tuple(choice.models(self.listing.sizes))


def folder(source: HubSource) -> Path:
    return paths.hub_cache_dir() / f"models--{source.hub.replace('/', '--')}"


def locate(source: HubSource) -> Path | None:
    """The folder, or the GGUF file, that the reference means among what is here, if all of it is."""
    found = (_in_snapshot(source, snapshot) for snapshot in _snapshots(source))
    return next(filter(None, found), None)


def _in_snapshot(source: HubSource, snapshot: Path) -> Path | None:
    if source.file:
        parts = choice.parts_of(source.file)
        return snapshot / source.file if all((snapshot / part).is_file() for part in parts) else None
    if source.quant in (None, FOLDER) and _is_complete(snapshot):
        return snapshot
    chosen = choice.sole(choice.models(dict(_weights_in(snapshot))), source.quant, file_fits)
    return snapshot / chosen.name if chosen else None


def _weights_in(snapshot: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of each GGUF file."""
    for file, _ in zip(snapshot.rglob("*.gguf"), range(MAX_HELD), strict=False):
        if file.is_file():
            yield file.relative_to(snapshot).as_posix(), file.stat().st_size


def fetch(source: HubSource, progress: Progress, offline: bool, before: Callable[[Pick], None]) -> Path:
    """The verified model. Asks the hub only when something is missing, or may be: a folder that was never verified. Raises
    CatalogError. before: is told what was picked before it is downloaded."""
    found = locate(source)
    if found and all(is_known(file, name) for file, name in _blobs(found)):
        return found
    if not offline and not (found and found.is_file()):
        picked = pick(replace(source, revision=found.name) if found else source, progress)  # no later one unasked
        if not found:
            before(picked)
        with translated(source.hub, NOTHING, source.revision):
            download(picked, progress)
        found = locate(picked.source)
    if not found and offline:
        cause = f"{source.hub if source.quant == FOLDER else source.reference} is not on this machine"
        raise CatalogError(cause, "--offline forbids fetching it", "run once without --offline")
    if not found:
        cause = f"{source.hub} is incomplete: it lacks config.json, a tokenizer, or weights that its index names"
        raise CatalogError(cause, "it cannot be loaded", "choose another repository")
    for file, name in _blobs(found):
        if not is_intact(file, name, progress):
            _content(source, file).unlink()
            raise CatalogError(f"{file.name} of {source.hub} is damaged", "it was deleted", "fetch it again")
    return found


def _snapshots(source: HubSource) -> Iterator[Path]:
    """Of the revision; where none is asked for also of others that were fetched, the latest first."""
    commits = folder(source) / "snapshots"
    first = _snapshot(source)
    if first:
        yield first
    if source.revision is None and commits.is_dir():
        others = [each for each, _ in zip(commits.iterdir(), range(MAX_HELD), strict=False) if each != first]
        yield from sorted(filter(_is_commit, others), key=lambda each: each.stat().st_mtime, reverse=True)


def _is_commit(snapshot: Path) -> bool:
    return COMMIT.fullmatch(snapshot.name) is not None and snapshot.is_dir()


def _snapshot(source: HubSource) -> Path | None:
    commit = revision = source.revision or "main"
    if not COMMIT.fullmatch(revision):
        commit = ""
        with suppress(OSError, ValueError):
            commit = textfile.read(folder(source) / "refs" / revision, MAX_REF).decode().strip()
    snapshot = folder(source) / "snapshots" / commit
    return snapshot if _is_commit(snapshot) else None


def _is_complete(snapshot: Path) -> bool:
    index = snapshot / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        try:
            with reading(index), index.open("rb") as stream:
                weights = set(json.loads(stream.read(MAX_INDEX))["weight_map"].values())
        except FormatError:
            return False
    parts = {"config.json", *weights}
    return all(isinstance(p, str) and NEEDED.fullmatch(p) and (snapshot / p).is_file() for p in parts) and any(
        snapshot.glob("tokenizer*")
    )


def _blobs(found: Path) -> list[tuple[Path, str]]:
    """(file, digest) of each file that can be verified: the cache links a file to a blob named by its digest.

    Where links are not to be had (Windows), files are copies; then only what `download` verified is known.
    """
    inside = (file for file in found.rglob("*") if NEEDED.fullmatch(file.relative_to(found).as_posix()))
    files = sorted(inside) if found.is_dir() else _parts(found)
    named = [(file, file.readlink().name) for file in files if file.is_symlink()]
    return [(file, name) for file, name in named if DIGEST.fullmatch(name)]


def pick(source: HubSource, progress: Progress) -> Pick:
    """What the reference means in the hub's repository. Raises CatalogError."""
    progress(f"asking for {source.hub}", 0, None)
    with translated(source.hub, NOTHING, source.revision):
        held = listing(source)
    names, source = _meant(source, held)
    return Pick(source, tuple(held.files[name] for name in names), held)


def _meant(source: HubSource, held: Listing) -> tuple[list[str], HubSource]:
    """Names of the files, and the source with the GGUF file that was chosen."""
    if source.file:
        parts = [*choice.parts_of(source.file)]
        if missing := next((part for part in parts if part not in held.files), None):
            raise CatalogError(f"{source.hub} has no {missing}", NOTHING, _has(held))
        return parts, source
    needed = [name for name in held.files if NEEDED.fullmatch(name)]
    has_folder = any(name.endswith(".safetensors") for name in needed)
    has_gguf = any(name.endswith(".gguf") for name in held.files)
    if not has_folder and (source.quant == FOLDER or not has_gguf):
        cause = f"{source.hub} has no model*.safetensors" + ("" if has_gguf else " and no GGUF file")
        raise CatalogError(cause, NOTHING, "choose a repository in one of these formats")
    found = choice.models(held.sizes)
    if source.quant == FOLDER or (source.quant is None and has_folder and not choice.best(found, file_fits)):
        return needed, source
    chosen = choice.choose(source.hub, found, source.quant, file_fits)
    return [*chosen.parts], replace(source, file=chosen.name, quant=None)


def _has(held: Listing) -> str:
    names = [each.name for each in choice.models(held.sizes)]
    return f"it has {choice.listed(names)}" if names else "name one in safetensors or GGUF format"


def download(picked: Pick, progress: Progress) -> None:
    """Bring what is missing of these files, each verified. Call within `translated`."""
    from huggingface_hub import hf_hub_url

    source, commit = picked.source, picked.listing.commit
    blobs = [Blob.of(file, folder(source)) for file in picked.files]
    done = 0
    folder(source).mkdir(parents=True, exist_ok=True)
    require_room(folder(source), sum(blob.missing for blob in blobs), source.hub)
    for file, blob in zip(picked.files, blobs, strict=True):
        url = hf_hub_url(source.hub, file.name, revision=commit)
        check = partial(_require_running, source.hub) if file.name.endswith(".gguf") else None
        fetch_blob(url, blob, Shifted(progress, source.hub, done, picked.size), check)
        place(blob, folder(source) / "snapshots" / commit / file.name)
        done += blob.size
    if (revision := source.revision or "main") != commit:
        ref = folder(source) / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    progress(f"fetching {source.hub}", picked.size, picked.size)


def _require_running(hub: str, begun: Path) -> None:
    """Raises CatalogError for a GGUF file, of which the beginning is here, that cannot run."""
    if lacks := glance(begun).lacks:
        remedy = "`llamachat models search` tells of each whether it runs"
        raise CatalogError(f"{hub} cannot run here: {sanitise_line(lacks)}", "no more of it was fetched", remedy)


def usage(source: HubSource) -> int:
    """Bytes of it on this disk; of what is not whole, those of unfinished downloads too."""
    if not _is_one(source):
        return folder_size(folder(source))
    found = locate(source)
    files = _parts(found) if found else (folder(source) / "blobs").glob("*.incomplete")
    return sum(file.stat().st_size for file in files)


def _is_one(source: HubSource) -> bool:
    """Whether it names one GGUF model."""
    return bool(source.file or (source.quant and source.quant != FOLDER))


def _parts(found: Path) -> list[Path]:
    return [found.parent / part for part in choice.parts_of(found.name)]


def remove(source: HubSource) -> None:
    """Delete a GGUF model that is named, or what has come of it; nothing else there, or nothing named: all revisions go."""
    found = locate(source) if _is_one(source) else None
    gone = {_content(source, part) for part in _parts(found)} if found else set()
    files = [file for file in (folder(source) / "snapshots").rglob("*") if file.is_symlink() or file.is_file()]
    kept = {file for file in files if _content(source, file) not in gone}
    if not _is_one(source) or not kept:
        _remove_repository(source)
        return
    begun = [] if found else (folder(source) / "blobs").glob("*.incomplete")
    for file in [*(each for each in files if each not in kept), *gone, *begun]:
        file.unlink(missing_ok=True)


def _content(source: HubSource, file: Path) -> Path:
    """Where a snapshot's file has its bytes: in the blob of this repository that it links to. A link to anywhere else stands for
    itself: what is there is not the cache's."""
    target = file.parent / file.readlink() if file.is_symlink() else file
    blobs = (folder(source) / "blobs").resolve()
    return blobs / target.name if target.parent.resolve() == blobs else file


def _remove_repository(source: HubSource) -> None:
    """As huggingface_hub would."""
    from huggingface_hub import scan_cache_dir

    info = scan_cache_dir(paths.hub_cache_dir())
    revisions = [r.commit_hash for repo in info.repos if repo.repo_path == folder(source) for r in repo.revisions]
    info.delete_revisions(*revisions).execute()  # also lets go of blobs shared with other repositories
    shutil.rmtree(folder(source), ignore_errors=not folder(source).exists())  # unfinished downloads
