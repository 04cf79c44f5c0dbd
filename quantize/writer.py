"""A model folder written beside its place, tensor by tensor, so that a killed conversion can go on, then renamed.

`.NAME.partial/` holds model.safetensors, whose header is written last into room left for it, and journal.jsonl: what is
being made, then a line for each tensor whose bytes are in the file, with their checksum, since after a power cut the
journal may know of bytes that the disk does not.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.core.tensors import Array
from llamachat.errors import LlamachatError, ModelError, UsageError
from llamachat.formats.prequantized.ours import MANIFEST, digests
from llamachat.formats.safetensors_file import DTYPES

WEIGHTS, JOURNAL = "model.safetensors", "journal.jsonl"
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
CHUNK = 1 << 22


def beginning(room: int) -> int:
    """Where the tensors begin in a file whose header may take so many bytes."""
    return -(-(8 + room) // 64) * 64


class FolderWriter:
    """Use within `writing`, which makes, resumes and publishes it. `done` maps tensor names to their journal lines."""

    def __init__(self, folder: Path, making: Mapping[str, Any], room: int) -> None:
        self.folder = folder
        self.base = beginning(room)
        self.done: dict[str, dict[str, Any]] = {}
        self._end = self.base
        journal, weights = folder / JOURNAL, folder / WEIGHTS
        if not journal.exists():
            weights.touch()
            journal.write_text(json.dumps(making) + "\n", encoding="utf-8")
        self._weights, self._journal = weights.open("r+b"), journal.open("r+", encoding="utf-8")

    def recover(self, making: Mapping[str, Any]) -> None:
        """Take over what both journal and file have whole; forget the rest."""
        keep = 0
        for number, line in enumerate(self._journal.read().splitlines(keepends=True)):
            try:
                entry = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                entry = None
            if number == 0 and entry != json.loads(json.dumps(making)):
                raise UsageError(
                    f"{self.folder} was begun from another source or with other options",
                    "it cannot be resumed",
                    "leave out --resume to start afresh",
                )
            if entry is None or (number and not self._intact(entry)):
                break
            keep += len(line.encode())
            if number:
                self.done[entry["name"]] = entry
                self._end = entry["end"]
        self._journal.seek(keep)
        self._journal.truncate()
        self._weights.truncate(self._end)
        self._weights.seek(self._end)

    def _intact(self, entry: Mapping[str, Any]) -> bool:
        self._weights.seek(self._end)
        left, checksum = entry["end"] - self._end, 0
        while left and (chunk := self._weights.read(min(left, CHUNK))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
        return not left and checksum == entry["crc32"]

    def add(self, name: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Append a tensor's arrays, by their names in the file, and note it with some facts for the report."""
        parts, checksum = [], 0
        for key, array in arrays.items():
            data = np.ascontiguousarray(array).reshape(array.shape)
            start = self._end
            view = data.reshape(-1).view(np.uint8).data
            self._weights.write(view)
            checksum, self._end = zlib.crc32(view, checksum), start + data.nbytes
            parts.append({"name": key, "dtype": KINDS[data.dtype], "shape": data.shape, "start": start})
        self._weights.flush()
        entry = {"name": name, "end": self._end, "crc32": checksum, "parts": parts, "facts": facts}
        self.done[name] = json.loads(json.dumps(entry))
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()

    def stored(self, name: str) -> dict[str, Array]:
        """The arrays of a tensor that is in the file already."""
        return {
            part["name"]: np.fromfile(
                self.folder / WEIGHTS, DTYPES[part["dtype"]], prod(part["shape"]), offset=part["start"]
            ).reshape(part["shape"])
            for part in self.done[name]["parts"]
        }

    def finish(self) -> None:
        """Write the header; the journal's work is done."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for entry in self.done.values():
            starts = [part["start"] - self.base for part in entry["parts"]] + [entry["end"] - self.base]
            for part, (start, stop) in zip(entry["parts"], pairwise(starts), strict=True):
                header[part["name"]] = {"dtype": part["dtype"], "shape": part["shape"], "data_offsets": [start, stop]}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= self.base - 8, "the room for the header is too small"
        self._weights.seek(0)
        self._weights.write((self.base - 8).to_bytes(8, "little") + text.ljust(self.base - 8))
        self.close()
        (self.folder / JOURNAL).unlink()

    def close(self) -> None:
        self._weights.close()
        self._journal.close()


@contextmanager
def writing(
    out: Path, making: Mapping[str, Any], room: int, resume: bool, check: Callable[[Path], None]
) -> Iterator[FolderWriter]:
    """A writer of the folder `out`, which appears when the block ends well, replacing one that we made before.

    `making` says what is made from what; an unfinished folder is resumed only if it says the same. `room` is what the
    file's header may take, in bytes. `check` may refuse the finished folder by an error of ours; it is then deleted.
    Raises UsageError when `out` holds something else, ModelError when the disk is full or the place is read-only; `out`
    is then as it was.
    """
    if out.exists() and not (out / MANIFEST).is_file() and not _empty(out):
        raise UsageError(f"{out} exists and is no converted model", "it was left alone", "choose another output folder")
    partial = out.parent / f".{out.name}.partial"
    with disk_errors(out):
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        writer = FolderWriter(partial, making, room)
        try:
            writer.recover(making)
            yield writer
            writer.finish()
        finally:
            writer.close()
        try:
            check(partial)
        except LlamachatError:
            shutil.rmtree(partial)
            raise
        manifest = {"sha256": digests(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish(partial, out)


def _empty(out: Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _publish(partial: Path, out: Path) -> None:
    """Everything on the disk, then the new folder in the old one's place."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    old = out.parent / f".{out.name}.old"
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    _sync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # where folders cannot be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """A failing disk becomes one line. Of other errors, ours pass."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{out} cannot be written: {error.strerror or error}",
            "what was there before is unchanged",
            "make room or choose another place, then go on with --resume",
        ) from error
