"""open_checkpoint finds each format by what is there, and says what it looked for when nothing is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_gguf, save_hf, save_lit, save_meta, tiny_model

from llamachat.errors import FormatError
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.safetensors_file import read_safetensors


@pytest.mark.parametrize(
    ("save", "file"),
    [
        (save_hf, ""),
        (save_meta, ""),
        (save_lit, ""),
        (save_lit, "lit-llama.pth"),
        (save_gguf_folder := lambda model, folder: (save_gguf(model, folder), folder)[1], ""),
        (save_gguf_folder, "model.gguf"),
    ],
)
def test_a_path_is_opened_as_what_lies_there(tmp_path: Path, save: Callable[[Any, Path], Path], file: str) -> None:
    folder = save(tiny_model(), tmp_path / "model")
    assert open_checkpoint(folder / file).index()["model.norm.weight"].shape == (64,)


def test_a_gguf_file_needs_no_suffix(tmp_path: Path) -> None:
    path = save_gguf(tiny_model(), tmp_path).rename(tmp_path / "weights")
    assert open_checkpoint(path).config.hidden_size == 64


def test_a_folder_with_one_split_gguf_set_is_opened(tmp_path: Path) -> None:
    save_gguf(tiny_model(), tmp_path, split=10)
    assert len(list(tmp_path.glob("*.gguf"))) > 1
    assert "model.norm.weight" in open_checkpoint(tmp_path).index()


def test_a_folder_with_two_gguf_models_is_refused(tmp_path: Path) -> None:
    save_gguf(tiny_model(), tmp_path).rename(tmp_path / "a.gguf")
    save_gguf(tiny_model(), tmp_path)
    with pytest.raises(FormatError, match="2 GGUF models"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json.*params\.json.*lit-llama\.pth.*gguf"):
        open_checkpoint(tmp_path)


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="neither a file nor a folder"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_an_empty_file_is_told_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    read = open_checkpoint if name.endswith("gguf") else read_safetensors
    with pytest.raises(FormatError, match=rf"{name} is empty; there is nothing to read; fetch it again"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"G", b"hello world"])
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(FormatError, match="is no GGUF"):
        open_checkpoint(tmp_path / "model.bin")
