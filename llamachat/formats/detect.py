"""Which format a path holds, told by its content and by the file names that the formats themselves prescribe."""

import re
from pathlib import Path

from llamachat.errors import FormatError, reader
from llamachat.formats import Checkpoint

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


@reader
def open_checkpoint(path: Path) -> Checkpoint:
    """The model in a file (GGUF, lit-llama) or folder (any format), opened by headers alone. Raises ModelError."""
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise FormatError(f"{path} is neither a file nor a folder", "there is no model there", "check the path")
    if (path / "config.json").is_file():
        from llamachat.formats.hf import open_hf

        return open_hf(path)
    if (path / "params.json").is_file():
        from llamachat.formats.meta import open_meta

        return open_meta(path)
    if (path / "lit-llama.pth").is_file():
        return _open_file(path / "lit-llama.pth")
    return _open_file(_only_gguf(path))


def _open_file(path: Path) -> Checkpoint:
    from llamachat.formats.gguf import is_gguf, open_gguf

    if is_gguf(path):
        return open_gguf(path)
    if path.suffix in (".yaml", ".yml"):
        from llamachat.formats.mindformers import open_mindformers

        return open_mindformers(path)
    if path.suffix == ".pth":
        from llamachat.formats.lit import open_lit

        return open_lit(path)
    raise FormatError(
        f"{path} is no GGUF, lit-llama (.pth) or MindFormers (.yaml) file",
        "it cannot be read alone",
        "for other formats give the folder that holds the model",
    )


def _only_gguf(folder: Path) -> Path:
    """The folder's one GGUF file, or the first of its one split set."""
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise FormatError(
            f"{folder} has no config.json (Hugging Face, llamachat), params.json (Meta), lit-llama.pth or .gguf file",
            "there is no model there",
            "check the path",
        )
    sets = {match.groups() if (match := SPLIT.fullmatch(file.name)) else file.name for file in files}
    if len(sets) > 1:
        raise FormatError(
            f"{folder} has {len(sets)} GGUF models", "it is not clear which is meant", "give the file's path"
        )
    return files[0]
