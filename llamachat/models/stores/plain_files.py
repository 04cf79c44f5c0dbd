"""Models as files and folders under their own names: what most programs keep them as."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from llamachat.errors import CatalogError
from llamachat.models.stores.stored import Name, Stored, files, is_first, size

CONFIG = "config.json"
WEIGHTS = re.compile(r"model[\w.-]*\.safetensors")


def gguf_names(folder: Path, path: Path) -> Iterator[Name]:
    """The name of a GGUF file, by its place in the folder, unless it is a later part of one."""
    if is_first(path):
        yield str(path)[len(str(folder)) + 1 : -len(".gguf")].replace(os.sep, "/"), path


def opened_at(reference: str, path: Path) -> Stored:
    """A file or a folder. Raises CatalogError for one that is not whole."""
    if path.is_dir():
        return Stored(reference, path, folder_size(path))
    return Stored(reference, path, size(path))


def folder_size(path: Path) -> int:
    """Bytes of the weights in a folder of safetensors. Raises CatalogError where there are none."""
    weights = [file for file in files(path) if WEIGHTS.fullmatch(file.name)]
    if not weights:
        raise CatalogError(f"{path} has no weights", "the model is not whole", "fetch it again where it came from")
    return sum(map(size, weights))
