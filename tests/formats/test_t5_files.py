"""T5's folders and GGUF files as people have them, and broken ones, each of which ends in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from t5_models import save_t5, save_t5_gguf, t5_model

from llamachat.core.tensors import dequantize
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.hf_t5 import hf_t5

Arrays = dict[str, Any]
# What t5-small's and flan-T5's authors published.
SMALL = {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
    "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}}, "vocab_size": 32128,
}  # fmt: skip
FLAN = SMALL | {
    "d_ff": 1024, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "num_heads": 6,
    "num_decoder_layers": 8, "num_layers": 8, "relative_attention_max_distance": 128, "tie_word_embeddings": False,
    "transformers_version": "4.23.1", "use_cache": True, "torch_dtype": "float32", "tokenizer_class": "T5Tokenizer",
}  # fmt: skip
MT5 = {key: value for key, value in FLAN.items() if key != "decoder_start_token_id"} | {"model_type": "mt5"}


def spec(raw: dict[str, Any]) -> EncoderDecoderSpec:
    config = hf_t5(raw, "config.json").config
    assert isinstance(config, EncoderDecoderSpec)
    return config


def test_released_configurations_say_what_their_models_are() -> None:
    small, flan, mt5 = map(spec, (SMALL, FLAN, MT5))
    assert spec(SMALL | {"output_hidden_states": False}) == small
    assert (small.activation, small.gated, small.logit_multiplier) == ("relu", False, 512**-0.5)
    assert (flan.activation, flan.gated, flan.logit_multiplier) == ("gelu_pytorch_tanh", True, 1.0)
    assert (flan.num_attention_heads * flan.head_dim, flan.hidden_size) == (384, 512)
    assert (mt5.logit_multiplier, mt5.decoder_start_token_id) == (1.0, 0)
    assert all(each.attention_scale == 1 and each.longest_source is None for each in (small, flan, mt5))
    assert hf_t5(SMALL, "config.json").ignored == (
        "architectures", "dropout_rate", "initializer_factor", "output_past", "task_specific_params",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # as transformers 5 writes v1.1
        ({"tie_word_embeddings": True, "model_type": "mt5"}, False),
    ],
)
def test_the_head_is_scaled_where_transformers_scales_it(said: dict[str, Any], scaled: bool) -> None:
    assert (spec(SMALL | said).logit_multiplier != 1) == scaled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'"),
        ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu'"),
        ({"is_gated_act": True}, "is_gated_act is True"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"d_model": 0}, "d_model is 0"),
        ({"d_model": "512"}, "d_model is '512'"),
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_decoder_layers": -1}, "num_decoder_layers is -1"),
        ({"num_heads": 2**40}, "num_heads is"),
        ({"d_kv": 3}, "head_dim is 3"),
        ({"relative_attention_num_buckets": 2}, "relative buckets is 2"),
        ({"relative_attention_max_distance": 10}, "relative distance is 10"),
        ({"relative_attention_max_distance": 2**29}, "relative distance is"),
        ({"layer_norm_epsilon": 0}, "rms_norm_eps is 0"),
        ({"decoder_start_token_id": 32128}, "decoder_start_token_id is 32128"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id is missing"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size is 3"),
        ({"rotary": True}, "the key 'rotary' with the value True is unknown"),
        ({"llamachat": {"positions": "sinusoid"}}, "positions is 'sinusoid'"),
        ({"llamachat": {"rope_factor": 0}}, "factor is 0"),
        ({"llamachat": {"depth": 1}}, "the key 'depth'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error_that_names_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        hf_t5(SMALL | changes, "config.json")
    assert str(error.value).startswith("config.json") and "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_t5(tmp_path / "t5")


def write_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[Arrays], object]) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")


def values(folder: Path) -> Arrays:
    return {name: dequantize(tensor) for name, tensor in open_checkpoint(folder).tensors()}


def test_a_stack_may_repeat_the_embedding_or_be_its_only_owner(folder: Path) -> None:
    right = values(folder)
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    rewrite(folder, lambda arrays: arrays.update(dict.fromkeys(copies, arrays["shared.weight"])))
    assert values(folder).keys() == right.keys()
    rewrite(folder, lambda arrays: arrays.pop("shared.weight"))
    np.testing.assert_array_equal(values(folder)["model.embed_tokens.weight"], right["model.embed_tokens.weight"])
    rewrite(folder, lambda arrays: arrays.update({"decoder.embed_tokens.weight": arrays["lm_head.weight"]}))
    with pytest.raises(FormatError, match=r"'decoder\.embed_tokens\.weight'"):
        open_checkpoint(folder)


def test_the_table_that_cross_attention_never_reads_is_left_out(folder: Path) -> None:
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewrite(folder, lambda arrays: arrays.update({name: np.zeros((32, 4), np.float32)}))
    assert values(folder).keys() == open_checkpoint(folder).config.tensor_shapes().keys()


def test_a_head_that_is_the_embedding_ties_the_model(folder: Path) -> None:
    assert not open_checkpoint(folder).config.tie_word_embeddings
    rewrite(folder, lambda arrays: arrays.update({"lm_head.weight": arrays["shared.weight"]}))
    assert open_checkpoint(folder).config.tie_word_embeddings
    rewrite(folder, lambda arrays: arrays.pop("lm_head.weight"))
    assert open_checkpoint(folder).config.tie_word_embeddings


def test_generation_config_has_the_last_word_on_where_an_answer_begins(folder: Path) -> None:
    write_config(folder, "generation_config.json", decoder_start_token_id=5, eos_token_id=[1, 7])
    config = open_checkpoint(folder).config
    assert isinstance(config, EncoderDecoderSpec)
    assert (config.decoder_start_token_id, config.eos_token_ids) == (5, (1, 7))
    write_config(folder, "generation_config.json", decoder_start_token_id=5000)
    with pytest.raises(ConfigError, match=r"generation_config.json: decoder_start_token_id is 5000"):
        open_checkpoint(folder)


BROKEN: list[tuple[Callable[[Arrays], object], str]] = [
    (lambda arrays: arrays.pop("decoder.final_layer_norm.weight"), r"lacks 'decoder\.norm\.weight'"),
    (lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("encoder.")], "lacks 'encoder"),
    (lambda arrays: arrays.pop("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"), "lacks 'enc"),
    (lambda arrays: arrays.update({"score.weight": arrays["shared.weight"]}), "holds 'score.weight'"),
    (lambda arrays: arrays.update({"encoder.block.7.layer.0.layer_norm.weight": np.ones(64, np.float32)}), "holds"),
    (lambda arrays: arrays.update({"token_embd.weight": arrays["shared.weight"]}), "names a tensor in two ways"),
    (
        lambda arrays: arrays.update({"shared.weight": arrays["shared.weight"][:, :32]}),
        r"'model.embed_tokens.weight' in .* is \(128, 32\)",
    ),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_missing_and_unknown_tensors_are_named(folder: Path, change: Callable[[Arrays], object], said: str) -> None:
    rewrite(folder, change)
    with pytest.raises(FormatError, match=said) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForSequenceClassification", "MT5ForQuestionAnswering"])
def test_classes_that_answer_nothing_are_refused_by_name(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    with pytest.raises(ConfigError, match=rf"architectures is \['{name}'\]; expected is a class that answers a source"):
        open_checkpoint(folder)


def test_types_with_an_encoder_that_are_not_read_are_refused_by_name(folder: Path) -> None:
    write_config(folder, model_type="umt5")
    with pytest.raises(ConfigError, match=r"model_type is 'umt5'; expected is one of .*t5, mt5"):
        open_checkpoint(folder)


def test_more_layers_than_tensors_are_no_work(folder: Path) -> None:
    write_config(folder, num_decoder_layers=1024)
    with pytest.raises(FormatError, match="tensors for 1024 layers"):
        open_checkpoint(folder)


# GGUF -----------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_says_the_same_as_its_folder(tmp_path: Path) -> None:
    for case in ("t5", "v1.1"):
        file = open_checkpoint(save_t5_gguf(t5_model(case), tmp_path / f"{case}.gguf")).config
        assert file == open_checkpoint(save_t5(tmp_path / case, case)).config


def test_decoders_of_old_files_have_as_many_layers_as_their_encoders(tmp_path: Path) -> None:
    model = t5_model(num_decoder_layers=2)
    path = save_t5_gguf(model, tmp_path / "t5.gguf", **{"t5.decoder_block_count": None})
    assert open_checkpoint(path).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "t5encoder"}, "an encoder without its decoder"),
        ({"t5.decoder_start_token_id": None}, "decoder_start_token_id is missing"),
        ({"t5.decoder_start_token_id": 500}, "decoder_start_token_id is 500"),
        ({"t5.attention.relative_buckets_count": 1}, "relative buckets is 1"),
        ({"t5.attention.value_length": 16}, "value_length is 16"),
        ({"t5.attention.head_count": 10**6}, "head_count is 1000000"),
        ({"t5.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"t5.decoder_block_count": 4}, "lacks 'decoder.layers.3"),
        ({"t5.rope.freq_base": 1e4}, "the key 't5.rope.freq_base'"),
    ],
)
def test_a_gguf_file_that_cannot_be_ends_in_a_line(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = save_t5_gguf(t5_model(), tmp_path / "t5.gguf", **metadata)
    with pytest.raises(ModelError, match=said) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
