"""Meta's releases: shards put together and RoPE pairs put apart give the tensors that transformers has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import arrays, save_meta, tiny_model

from llamachat.core.tensors import FloatTensor
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.formats.meta import open_meta


def same(folder: Path, expected: dict[str, Any]) -> None:
    checkpoint = open_meta(folder)
    tensors = dict(checkpoint.tensors())
    assert list(tensors) == list(checkpoint.index()) == list(checkpoint.config.tensor_shapes())
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert isinstance(tensor, FloatTensor)
        np.testing.assert_array_equal(tensor.data, expected[name], strict=True)
        assert checkpoint.index()[name].shape == tensor.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shards", "embedding_axis"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1)])
def test_tensors_are_the_model_s_however_it_was_split(
    tmp_path: Path, dtype: torch.dtype, shards: int, embedding_axis: int
) -> None:
    model = tiny_model(dtype, num_key_value_heads=4)
    same(save_meta(model, tmp_path, shards, embedding_axis), arrays(model))


def test_grouped_heads_are_put_apart_by_their_own_number(tmp_path: Path) -> None:
    model = tiny_model(num_key_value_heads=2)
    same(save_meta(model, tmp_path, shards=2), arrays(model))


@pytest.mark.parametrize("given", [-1, 320])
def test_the_vocabulary_size_is_that_of_the_weights(tmp_path: Path, given: int) -> None:
    assert open_meta(save_meta(tiny_model(), tmp_path, shards=2, vocab_size=given)).config.vocab_size == 320


def test_a_vocabulary_size_that_is_not_that_of_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="embed_tokens"):
        open_meta(save_meta(tiny_model(), tmp_path, vocab_size=321))


@pytest.mark.parametrize("folder", ["", "7B"])
def test_the_tokenizer_lies_beside_the_weights_or_one_folder_up(tmp_path: Path, folder: str) -> None:
    save_meta(tiny_model(), tmp_path / folder)
    if folder:
        (tmp_path / folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    tokenizer = open_meta(tmp_path / folder).tokenizer()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (320, 1, {2})


@pytest.mark.parametrize(("shards", "lost"), [(2, 0), (4, 2), (1, 0)])
def test_a_missing_shard_is_named(tmp_path: Path, shards: int, lost: int) -> None:
    save_meta(tiny_model(), tmp_path, shards)
    (tmp_path / f"consolidated.{lost:02}.pth").unlink()
    with pytest.raises(FormatError, match=rf"lacks 'consolidated\.{lost:02}\.pth'"):
        open_meta(tmp_path)


def test_a_missing_last_shard_is_noticed_by_the_shapes(tmp_path: Path) -> None:
    save_meta(tiny_model(), tmp_path, shards=2, vocab_size=320)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(FormatError, match="asks for"):
        open_meta(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.0.attention.wq.weight": torch.zeros(31, 64)}, "cannot be joined"),
        ({"layers.0.attention.wq.weight": torch.zeros(32, 64, dtype=torch.float16)}, "cannot be joined"),
        ({"layers.0.attention.wq.weight": torch.zeros(32, 64, dtype=torch.int8)}, "cannot be joined"),
        ({"layers.0.attention.wq.weight": None}, "differ in 'layers.0.attention.wq.weight'"),
        ({"layers.0.attention.wq.scales": torch.zeros(1)}, "differ in 'layers.0.attention.wq.scales'"),
        ({"output.weight": torch.tensor(1.0)}, "cannot be joined"),
    ],
)
def test_a_shard_that_does_not_fit_the_others_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_meta(tiny_model(), tmp_path, shards=2, vocab_size=320)
    change(tmp_path / "consolidated.01.pth", changes)
    with pytest.raises(FormatError, match=message):
        open_meta(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.0.attention.wq.scales": torch.zeros(1)}, "holds 'layers.0.attention.wq.scales'"),
        ({"layers.2.attention.wq.weight": torch.zeros(64, 64)}, "holds 'model.layers.2"),
        ({"extra": torch.zeros(1)}, "holds 'extra'"),
        ({"norm.weight": None}, "lacks 'model.norm.weight'"),
        ({"output.weight": None}, "lacks output.weight"),
        ({"output.weight": torch.tensor(1.0)}, "vocab|lm_head|embed"),
        ({"layers.1.feed_forward.w2.weight": torch.zeros(64, 255)}, r"\(64, 255\)"),
    ],
)
def test_tensors_that_are_not_the_configuration_s_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_meta(tiny_model(), tmp_path)
    change(tmp_path / "consolidated.00.pth", changes)
    with pytest.raises(ModelError, match=message):
        open_meta(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"dim": 64}', '{"dim": -64, "n_layers": 2, "n_heads": 4}'])
def test_a_damaged_params_file_is_refused(tmp_path: Path, text: str) -> None:
    save_meta(tiny_model(), tmp_path)
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(ModelError, match=r"params\.json"):
        open_meta(tmp_path)


def test_params_of_a_quantized_release_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization_args"):
        open_meta(
            save_meta(tiny_model(), tmp_path, quantization_args={"scheme": "int4_weight_int8_dynamic_activation"})
        )


def change(path: Path, changes: dict[str, Any]) -> None:
    state = torch.load(path) | changes
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)


def test_params_are_those_of_the_release(tmp_path: Path) -> None:
    save_meta(tiny_model(), tmp_path, rope_theta=500000.0)
    assert json.loads((tmp_path / "params.json").read_text())["dim"] == 64
    config = open_meta(tmp_path).config
    assert (config.rope_theta, config.intermediate_size, config.head_dim) == (500000.0, 256, 16)
