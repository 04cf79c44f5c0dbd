"""Conversion: what comes out means the same; it survives being killed; what fails leaves the old output alone."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from checkpoints import same_coding, save_gguf, save_hf, save_lit, save_meta, save_tokenizer, tiny_model
from safetensors.numpy import load_file, save_file

from llamachat.core.spec import QuantConfig
from llamachat.core.tensors import FloatTensor, dequantize
from llamachat.errors import FormatError, ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.prequantized.ours import verify
from quantize.convert import REPORT, convert
from quantize.once import Quantized, quantized_once, quantized_path
from quantize.recipe import Recipe, from_config
from quantize.writer import FolderWriter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_hf(tiny_model(), tmp_path / "source")
    save_tokenizer(folder)
    return folder


def make(source: Path, out: Path, recipe: Recipe | None = None, **options: Any) -> Path:
    convert(open_checkpoint(source), out, recipe or Recipe(), **options)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("scheme", ["int8", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"])
def test_the_output_opens_and_is_close_to_the_source(source: Path, tmp_path: Path, scheme: Any) -> None:
    out = make(source, tmp_path / "out", Recipe(scheme))
    verify(out)
    original = dict(open_checkpoint(source).tensors())
    opened = open_checkpoint(out)
    assert opened.config.quantization is not None
    assert opened.config.quantization.scheme == scheme
    for name, tensor in opened.tensors():
        values, before = dequantize(tensor), dequantize(original[name])
        bound = 0.0 if isinstance(tensor, FloatTensor) else 0.02 if "int8" in scheme or "embed" in name else 0.2
        assert np.linalg.norm(values - before) <= bound * np.linalg.norm(before), name
    assert opened.tokenizer().encode("the fox") == open_checkpoint(source).tokenizer().encode("the fox")


def gguf_vocabulary(scratch: Path) -> dict[str, Any]:
    """The tokenizer of save_tokenizer in GGUF's keys."""
    save_tokenizer(scratch)
    library = sentencepiece.SentencePieceProcessor(str(scratch / "tokenizer.model"))
    ids = range(library.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [library.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [
            2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in ids
        ],
    }


@pytest.mark.parametrize("form", ["gguf", "meta", "lit"])
def test_every_format_gives_the_weights_that_hugging_faces_gives(tmp_path: Path, form: str) -> None:
    model = tiny_model()
    home = tmp_path / "home" / form
    home.parent.mkdir()
    if form == "gguf":
        save_gguf(model, home, metadata=gguf_vocabulary(home.parent))
    else:
        {"meta": save_meta, "lit": save_lit}[form](model, home)
    ours = open_checkpoint(make(home, tmp_path / "out"))
    expected = dict(open_checkpoint(make(save_hf(model, tmp_path / "hf"), tmp_path / "out-hf")).tensors())
    for name, tensor in ours.tensors():
        np.testing.assert_array_equal(dequantize(tensor), dequantize(expected[name]), err_msg=name)
    text = "over the lazy dog"
    assert ours.tokenizer().encode(text) == open_checkpoint(home).tokenizer().encode(text)
    kept = ("hidden_size", "rope_theta", "head_dim", "eos_token_ids", "rms_norm_eps", "max_position_embeddings")
    before = open_checkpoint(home).config
    assert [getattr(ours.config, key) for key in kept] == [getattr(before, key) for key in kept]


@pytest.mark.parametrize("scheme", ["int4", "bnb-nf4"])
def test_the_same_bytes_come_out_every_time_on_any_number_of_threads(source: Path, tmp_path: Path, scheme: Any) -> None:
    one = files(make(source, tmp_path / "one", Recipe(scheme), threads=1))
    assert one == files(make(source, tmp_path / "two", Recipe(scheme), threads=5))


def test_a_killed_conversion_is_resumed_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole = files(make(source, tmp_path / "whole"))
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    code = (
        "import sys, time; from pathlib import Path; from quantize.convert import convert\n"
        "journal = Path(sys.argv[3])\n"
        "def wait(*counts):\n"
        "    while journal.exists() and journal.read_bytes().count(b'\\n') >= 5: time.sleep(0.1)  # to be killed\n"
        "from quantize.recipe import Recipe; from llamachat.formats.detect import open_checkpoint\n"
        "convert(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), Recipe(), progress=wait)"
    )
    journal = partial / "journal.jsonl"
    child = subprocess.Popen([sys.executable, "-c", code, str(source), str(out), str(journal)])
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not out.exists()
    done: list[str] = []
    make(source, out, resume=True, progress=lambda name, *counts: done.append(name))
    assert files(out) == whole
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["journal", "weights", "torn line"])
def test_what_a_power_cut_lost_is_made_again(source: Path, tmp_path: Path, damage: str, monkeypatch: Any) -> None:
    whole = files(make(source, tmp_path / "whole"))
    interrupt(source, tmp_path / "out", monkeypatch, after=8)
    partial = tmp_path / ".out.partial"
    journal, weights = partial / "journal.jsonl", partial / "model.safetensors"
    if damage == "journal":
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1000] + bytes(1000))
    else:
        journal.write_text(journal.read_text()[:-30])
    make(source, tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == whole


def interrupt(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop a conversion, as Ctrl-C does, once so many tensors are written."""
    add, count = FolderWriter.add, 0

    def limited(self: FolderWriter, *arguments: Any) -> None:
        nonlocal count
        if count == after:
            raise KeyboardInterrupt
        count += 1
        add(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderWriter, "add", limited)
        make(source, out)


def test_resuming_with_other_options_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(source, tmp_path / "out", monkeypatch, after=3)
    with pytest.raises(UsageError, match="other options"):
        make(source, tmp_path / "out", Recipe("int8"), resume=True)
    make(source, tmp_path / "out", Recipe("int8"))


def test_a_full_disk_is_one_line_and_leaves_the_old_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(make(source, tmp_path / "out", Recipe("int8")))

    def full(self: FolderWriter, *arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "add", full)
        with pytest.raises(ModelError, match=r"No space left.*unchanged.*--resume"):
            make(source, tmp_path / "out")
    assert files(tmp_path / "out") == before
    after = make(source, tmp_path / "out", resume=True)
    assert files(after) != before


def test_a_read_only_place_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        make(source, tmp_path / "out")


@pytest.mark.parametrize("scheme", ["int4", "bnb-nf4"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_not_a_number_is_named(source: Path, tmp_path: Path, name: str, scheme: Any) -> None:
    before = files(make(source, tmp_path / "out", Recipe("int8")))
    tensors = load_file(source / "model.safetensors")
    tensors[name].reshape(-1)[5] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=f"{name} has values that are not finite"):
        make(source, tmp_path / "out", Recipe(scheme))
    assert files(tmp_path / "out") == before


def test_a_missing_tensor_is_named(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="up_proj"):
        make(source, tmp_path / "out")


def test_a_folder_that_is_no_model_of_ours_is_never_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="no converted model"):
        make(source, tmp_path / "out")
    with pytest.raises(UsageError, match="no converted model"):
        make(source, source)


def test_the_report_counts_every_byte_and_names_every_tensor(source: Path, tmp_path: Path) -> None:
    recipe = Recipe(overrides=("*.o_proj=int8",))
    done = convert(open_checkpoint(source), tmp_path / "out", recipe)
    facts = done.summary()
    assert facts["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert facts["source_bytes"] == sum(p.numel() for p in tiny_model().parameters()) * 4
    assert 4.5 < facts["bits_per_linear_weight"] < 8.5
    tensors = json.loads((tmp_path / "out" / REPORT).read_text())["tensors"]
    assert tensors.keys() == open_checkpoint(source).index().keys()
    assert tensors["model.layers.0.self_attn.o_proj.weight"]["error"] < 0.01
    assert 0.05 < tensors["model.layers.0.self_attn.q_proj.weight"]["error"] < 0.09


def test_bfloat16_sources_keep_their_vectors_as_they_are(tmp_path: Path) -> None:
    source = save_hf(tiny_model(torch.bfloat16), tmp_path / "source")
    out = dict(open_checkpoint(make(source, tmp_path / "out")).tensors())
    norm = out["model.norm.weight"]
    assert isinstance(norm, FloatTensor)
    assert norm.data.dtype == np.uint16


def test_a_model_to_be_quantized_is_converted_once_and_again_when_it_changes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    config = QuantConfig("int4", skip=("o_proj",))
    first = quantized_once(open_checkpoint(source), config)
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    again = quantized_once(open_checkpoint(source), config)
    assert (again.path, (again.path / "model.safetensors").stat().st_mtime_ns) == (first.path, stamp)
    assert again.index()["model.layers.0.self_attn.o_proj.weight"].packing is None
    assert {file.stat().st_mode & 0o777 for file in first.path.iterdir()} == {0o600}
    assert {folder.stat().st_mode & 0o777 for folder in (first.path, first.path.parent)} == {0o700}
    generation = source / "generation_config.json"
    generation.write_text(generation.read_text() + " ")
    assert quantized_once(open_checkpoint(source), config).path != first.path


@pytest.mark.parametrize("changed", ["lit_config.json", "tokenizer.model"])
def test_what_is_kept_is_made_anew_when_any_file_of_the_source_changes(tmp_path: Path, changed: str) -> None:
    """Also one that lies beside the weights' file, or above its folder."""
    home = save_lit(tiny_model(), tmp_path / "lit")
    before = quantized_path(open_checkpoint(home), QuantConfig("int4"))
    assert quantized_path(open_checkpoint(home), QuantConfig("int4")) == before
    file = home / changed if (home / changed).exists() else home.parent / changed
    if changed == "lit_config.json":
        file.write_text('{"n_head": 2}')
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert quantized_path(open_checkpoint(home), QuantConfig("int4")) != before


def test_every_part_of_a_split_file_counts(tmp_path: Path) -> None:
    first = save_gguf(tiny_model(), tmp_path / "gguf", split=8)
    before = quantized_path(open_checkpoint(first), QuantConfig("int4"))
    last = sorted(first.parent.glob("*.gguf"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert quantized_path(open_checkpoint(first), QuantConfig("int4")) != before


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "more", "manifest", "mode"])
def test_what_was_converted_is_made_anew_unless_it_is_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    config = QuantConfig("int8")
    folder = quantized_once(open_checkpoint(source), config).path
    right = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = folder / "model.safetensors"
    content = right[weights.name]
    match damage:
        case "flip":
            weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "cut":
            weights.write_bytes(content[:-1])
        case "gone":
            weights.unlink()
        case "more":
            (folder / "tokenizer.json").write_text("{}")
        case "manifest":
            (folder / "manifest.json").write_text('{"sha256": {}}')
        case "mode":
            folder.chmod(0o777)
    assert quantized_once(open_checkpoint(source), config).path == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == right
    assert folder.stat().st_mode & 0o777 == 0o700


def test_loading_quantized_gives_the_weights_of_a_conversion(source: Path, tmp_path: Path) -> None:
    config = QuantConfig("int4", skip=("o_proj",))
    loaded = Quantized(open_checkpoint(source), config)
    converted = dict(open_checkpoint(make(source, tmp_path / "out", from_config(config))).tensors())
    for name, tensor in loaded.tensors():
        np.testing.assert_array_equal(dequantize(tensor), dequantize(converted[name]), err_msg=name)
        same_coding(loaded.index()[name].packing, tensor)
