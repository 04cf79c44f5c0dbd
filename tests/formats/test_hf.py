"""Hugging Face folders: the tensors transformers saved, what configures them, and refusal of what does not fit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import arrays, save_bin, save_hf, save_tokenizer, tiny_model
from safetensors.torch import load_file, save_file

from llamachat.core.tensors import FloatTensor
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.formats import Checkpoint
from llamachat.formats.hf import open_hf

INDEX = "model.safetensors.index.json"
RAG = '{"name": "rag", "template": "R"}'


def same(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == expected.keys() == checkpoint.index().keys()
    for name, tensor in tensors.items():
        assert isinstance(tensor, FloatTensor)
        np.testing.assert_array_equal(tensor.data, expected[name], strict=True)
        assert checkpoint.index()[name].shape == tensor.shape
        assert checkpoint.index()[name].nbytes == tensor.nbytes


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "save", [save_hf, lambda model, path: save_hf(model, path, sharded=True), save_bin], ids=["one", "shards", "bin"]
)
def test_tensors_are_the_ones_transformers_saved(
    tmp_path: Path, dtype: torch.dtype, save: Callable[[Any, Path], Path]
) -> None:
    model = tiny_model(dtype, num_key_value_heads=2)
    same(open_hf(save(model, tmp_path / "m")), arrays(model))


def test_a_model_of_many_shards_is_really_sharded(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path, sharded=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_the_configuration_is_the_model_s(tmp_path: Path) -> None:
    config = open_hf(save_hf(tiny_model(num_key_value_heads=2), tmp_path)).config
    assert (config.hidden_size, config.num_key_value_heads, config.head_dim, config.vocab_size) == (64, 2, 16, 320)


def test_tensors_come_in_the_model_s_order(tmp_path: Path) -> None:
    checkpoint = open_hf(save_hf(tiny_model(), tmp_path, sharded=True))
    assert [name for name, _ in checkpoint.tensors()] == list(checkpoint.config.tensor_shapes())


@pytest.mark.parametrize("save", [save_hf, save_bin])
def test_a_tied_head_is_left_out_even_when_the_file_repeats_it(
    tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    model = tiny_model(tie_word_embeddings=True)
    expected = arrays(model)
    del expected["lm_head.weight"]
    checkpoint = open_hf(save(model, tmp_path))
    same(checkpoint, expected)
    assert checkpoint.config.tie_word_embeddings


@pytest.mark.parametrize("save", [save_hf, save_bin])
def test_a_tied_model_may_hold_its_one_matrix_under_the_heads_name(
    tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    model = tiny_model()
    model.model.embed_tokens = torch.nn.Module()  # so that the head alone is stored
    expected = {name: array for name, array in arrays(model).items() if name != "lm_head.weight"}
    expected["model.embed_tokens.weight"] = arrays(model)["lm_head.weight"]
    save(model, tmp_path)
    with pytest.raises(FormatError, match=r"lacks 'model\.embed_tokens"):
        open_hf(tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=True)
    checkpoint = open_hf(tmp_path)
    same(checkpoint, expected)
    assert checkpoint.config.tie_word_embeddings


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_kept(tmp_path: Path) -> None:
    model = tiny_model()
    save_hf(model, tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=True)
    checkpoint = open_hf(tmp_path)
    same(checkpoint, arrays(model))
    assert not checkpoint.config.tie_word_embeddings


def test_ids_that_end_a_turn_are_those_of_both_files(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    change(tmp_path / "config.json", eos_token_id=2)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, 2, 9], "do_sample": True, "top_p": 0.8})
    )
    checkpoint = open_hf(tmp_path)
    assert checkpoint.config.eos_token_ids == (2, 7, 9)
    assert checkpoint.sampling["top_p"] == 0.8


@pytest.mark.parametrize("ids", [-2, 2**40, [1, "2"], 1.5, True, {"a": 1}])
def test_an_end_that_is_no_token_id_is_refused(tmp_path: Path, ids: Any) -> None:
    save_hf(tiny_model(), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(ConfigError, match="eos_token_id"):
        open_hf(tmp_path)


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config.json": '{"chat_template": "A"}'}, "A"),
        ({"tokenizer_config.json": '{"chat_template": "A"}', "chat_template.jinja": "B"}, "B"),
        ({"tokenizer_config.json": f'{{"chat_template": [{RAG}, {{"name": "default", "template": "D"}}]}}'}, "D"),
        ({"tokenizer_config.json": f'{{"chat_template": [{RAG}]}}'}, None),
        ({"tokenizer_config.json": "{}"}, None),
    ],
)
def test_the_chat_template_is_the_default_one(tmp_path: Path, files: dict[str, str], template: str | None) -> None:
    save_hf(tiny_model(), tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert open_hf(tmp_path).chat_template == template


def test_a_chat_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(FormatError, match="chat_template"):
        open_hf(tmp_path)


def test_the_tokenizer_is_the_folder_s(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = open_hf(tmp_path).tokenizer()
    assert tokenizer.decode(tokenizer.encode("the lazy dog")).strip() == "the lazy dog"


def test_tensors_that_lie_crookedly_in_their_file_are_straightened_out(tmp_path: Path) -> None:
    path = save_hf(tiny_model(), tmp_path) / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    checkpoint = open_hf(tmp_path)
    same(checkpoint, arrays(tiny_model()))
    assert all(isinstance(tensor, FloatTensor) and tensor.data.flags.aligned for _, tensor in checkpoint.tensors())


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__delitem__(name)


def adding(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__setitem__(name, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.norm.weight"), r"lacks 'model\.norm\.weight'"),
        (without("lm_head.weight"), r"lacks 'lm_head\.weight'"),
        (adding("model.layers.2.mlp.up_proj.weight", torch.zeros(256, 64)), r"holds 'model\.layers\.2"),
        (adding("model.layers.0.self_attn.q_proj.bias", torch.zeros(64)), r"holds .*q_proj\.bias"),
        (adding("model.norm.weight", torch.zeros(63)), r"\(63,\)"),
        (adding("model.norm.weight", torch.zeros(64, dtype=torch.int8)), "int8"),
        (adding("\x1b]0;owned\x07", torch.zeros(64)), r"\\x1b"),
    ],
)
def test_tensors_that_are_not_the_configuration_s_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    save_hf(tiny_model(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    damage(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        open_hf(tmp_path)


def test_a_configuration_of_a_billion_layers_is_refused_at_once(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    change(tmp_path / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError):
        open_hf(tmp_path)


@pytest.mark.parametrize(
    "home",
    [
        "../elsewhere.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        "a\\b",
        "\0",
        "nothing.safetensors",
        INDEX,
    ],
)
def test_a_shard_that_is_not_a_file_beside_its_index_is_refused(tmp_path: Path, home: str) -> None:
    folder = save_hf(tiny_model(), tmp_path / "m", sharded=True)
    first = next(folder.glob("*.safetensors"))
    for place in (tmp_path / "elsewhere.safetensors", folder / "sub/x.safetensors"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(first.read_bytes())
    listing = json.loads((folder / INDEX).read_text())["weight_map"]
    change(folder / INDEX, weight_map={name: home if file == first.name else file for name, file in listing.items()})
    with pytest.raises(FormatError):
        open_hf(folder)


def listing_of(folder: Path) -> dict[str, str]:
    listing: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return listing


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path, sharded=True)
    lost = listing_of(tmp_path)["model.norm.weight"]
    (tmp_path / lost).unlink()
    with pytest.raises(FormatError, match=lost):
        open_hf(tmp_path)


def test_a_tensor_listed_in_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path, sharded=True)
    listing = listing_of(tmp_path)
    other = next(file for file in listing.values() if file != listing["model.norm.weight"])
    change(tmp_path / INDEX, weight_map=listing | {"model.norm.weight": other})
    with pytest.raises(FormatError, match=r"disagree about 'model\.norm\.weight'"):
        open_hf(tmp_path)


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path, sharded=True)
    listing = listing_of(tmp_path)
    other = next(file for file in listing.values() if file != listing["model.norm.weight"])
    state = load_file(tmp_path / other) | {"model.norm.weight": torch.zeros(64)}
    save_file(state, tmp_path / other)
    with pytest.raises(FormatError, match=r"disagree about 'model\.norm\.weight'"):
        open_hf(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    save_hf(tiny_model(), tmp_path, sharded=True)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json"):
        open_hf(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_json_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    save_hf(tiny_model(), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        open_hf(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="neither"):
        open_hf(tmp_path)


def test_a_safetensors_folder_is_read_without_torch(tmp_path: Path) -> None:
    save_hf(tiny_model(), tmp_path)
    program = (
        "import sys, pathlib; from llamachat.formats.hf import open_hf;"
        "n = sum(1 for _ in open_hf(pathlib.Path(sys.argv[1])).tensors()); print(n, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["21", "False"]
