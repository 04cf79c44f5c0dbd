"""The formats, and which of them a path holds: told by its content, and by the file names that the formats themselves prescribe.

A format is a row here and a file beside this one, which reads its own configuration and names the files that it read.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import FormatError, reader
from llamachat.formats import Checkpoint
from llamachat.formats.gguf import is_gguf, open_gguf
from llamachat.formats.lazy import refuse_empty

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Format:
    """`marks`: files of which one says that a folder is of this format; none where it is a file's only."""

    name: str
    open: Callable[[Path], Checkpoint]  # a folder with its mark, or a file
    marks: tuple[str, ...] = ()
    is_file: Callable[[Path], bool] | None = None  # whether this file is one
    called: str = ""  # how errors name its files

    def holds(self, path: Path) -> bool:
        """Whether this is a model of this format."""
        if path.is_file():
            return self.is_file is not None and self.is_file(path)
        return any((path / mark).is_file() for mark in self.marks)


GGUF = Format("GGUF", open_gguf, (), is_gguf, "GGUF")


def formats() -> Iterator[Format]:
    """All of them, each imported when it is asked for: most models are of the first."""
    yield GGUF
    from llamachat.formats.hf import open_hf

    yield Format("Hugging Face", open_hf, ("config.json",))
    from llamachat.formats.meta import open_meta

    yield Format("Meta", open_meta, ("params.json",))
    from llamachat.formats.lit import WEIGHTS, open_lit

    yield Format("lit-llama", open_lit, (WEIGHTS,), lambda path: path.suffix == ".pth", "lit-llama (.pth)")
    from llamachat.formats.megatron import MARKS, NAME, open_megatron

    yield Format("Megatron", open_megatron, MARKS, lambda path: path.name == NAME, f"Megatron ({NAME})")
    from llamachat.formats.mindformers import open_mindformers

    yield Format(
        "MindFormers",
        lambda path: open_mindformers(path, open_checkpoint),
        (),
        lambda path: path.suffix in (".yaml", ".yml"),
        "MindFormers (.yaml)",
    )


@reader
def open_checkpoint(path: Path) -> Checkpoint:
    """The model in a file or folder, opened by headers alone. Raises ModelError."""
    if not path.exists():
        raise FormatError(f"{path} is neither a file nor a folder", "there is no model there", "check the path")
    refuse_empty(path)
    for each in formats():
        if each.holds(path):
            return each.open(path)
    if path.is_dir():
        return open_gguf(_only_gguf(path))
    *others, last = (each.called for each in formats() if each.is_file)
    raise FormatError(
        f"{path} is no {', '.join(others)} or {last} file",
        "it cannot be read alone",
        "for other formats give the folder that holds the model",
    )


def _only_gguf(folder: Path) -> Path:
    """The folder's one GGUF file, or the first of its one split set."""
    files = sorted(folder.glob("*.gguf"))
    if not files:
        marks = [f"{each.marks[0]} ({each.name})" for each in formats() if each.marks]
        raise FormatError(
            f"{folder} has no {', '.join(marks)} or .gguf file", "there is no model there", "check the path"
        )
    sets = {match.groups() if (match := SPLIT.fullmatch(file.name)) else file.name for file in files}
    if len(sets) > 1:
        raise FormatError(
            f"{folder} has {len(sets)} GGUF models", "it is not clear which is meant", "give the file's path"
        )
    return files[0]
