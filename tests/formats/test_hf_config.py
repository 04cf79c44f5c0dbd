"""Translations against transformers' own reading of the same config.json, Meta's code, and the sizes of releases."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamachat.core.rope import frequencies
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import ModelSpec, QuantConfig, RopeScaling
from llamachat.errors import ConfigError
from llamachat.formats import hf_config
from llamachat.formats.lit import read_config
from llamachat.formats.meta import read_params
from llamachat.formats.quant_sources import quantization
from llamachat.formats.translated import Translated
from llamachat.system.metadata import names

WHERE = "config.json"
TINY = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}


def hf(**changes: Any) -> Translated:
    return hf_config.hf({**TINY, **changes}, WHERE)


# Hugging Face against transformers


def in_transformers(raw: dict[str, Any]) -> Any:
    return transformers.AutoConfig.for_model(**raw)


MODELS = [
    {},
    {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True, "rope_theta": 500000.0, "eos_token_id": [5, 6], "pad_token_id": 7},
    {"num_key_value_heads": None, "bos_token_id": None, "eos_token_id": None},
    {"model_type": "mistral"},
    {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": 2},
    {"model_type": "mistral", "sliding_window": 16, "num_key_value_heads": 4},
    {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": False,
        "sliding_window": 32,
        "max_window_layers": 2,
    },
    {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 32,
        "max_window_layers": 2,
    },
    {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 32,
        "max_window_layers": 28,
    },
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}},
    {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 1234.0}},
]


@pytest.mark.parametrize("changes", MODELS)
def test_what_transformers_writes_is_read_with_its_meaning(changes: dict[str, Any], tmp_path: Path) -> None:
    heads = {"num_key_value_heads": 4} if changes == {"model_type": "mistral"} else {}  # its default of 8 needs 8 heads
    original = in_transformers({**TINY, **heads, **changes})
    original.save_pretrained(tmp_path)
    config = hf_config.hf(json.loads((tmp_path / "config.json").read_text()), WHERE).config
    assert config == hf_config.hf({**TINY, **heads, **changes}, WHERE).config
    same = names(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    ) | names("max_position_embeddings rms_norm_eps tie_word_embeddings bos_token_id pad_token_id")
    assert {name: getattr(config, name) for name in same} == {name: getattr(original, name) for name in same}
    ends = original.eos_token_id
    assert config.eos_token_ids == tuple(ends if isinstance(ends, list) else [] if ends is None else [ends])
    assert config.rope_theta == original.rope_parameters["rope_theta"]


@pytest.mark.parametrize("changes", MODELS)
def test_the_tensors_are_those_of_transformers_model(changes: dict[str, Any]) -> None:
    raw = {**TINY, "num_key_value_heads": 4, **changes}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(in_transformers(raw))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert hf_config.hf(raw, WHERE).config.tensor_shapes() == theirs


@pytest.mark.parametrize("changes", [each for each in MODELS if "model_type" in each])
def test_each_layer_has_the_window_of_transformers(changes: dict[str, Any]) -> None:
    raw = {**TINY, "num_key_value_heads": 4, **changes}
    theirs = in_transformers(raw)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * TINY["num_hidden_layers"]
    config = hf_config.hf(raw, WHERE).config
    expected = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    assert [config.window(layer) for layer in range(len(kinds))] == expected


@pytest.mark.parametrize("context", [256, 1024])
@pytest.mark.parametrize(
    "rope",
    [
        {"type": "linear", "factor": 3},
        {"type": "dynamic", "factor": 2.0},
        LLAMA3_ROPE,
        YARN,
        YARN | {"factor": 8, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
        YARN | {"attention_factor": 0.8},
        {"rope_type": "yarn", "factor": 4.0},
        LONGROPE | {"original_max_position_embeddings": 64},
        LONGROPE | {"factor": 16.0, "original_max_position_embeddings": 128},
        LONGROPE | {"original_max_position_embeddings": 64, "attention_factor": 1.5},
    ],
)
def test_rope_has_the_frequencies_of_transformers(rope: dict[str, Any], context: int) -> None:
    raw = {**TINY, "rope_theta": 5000.0, "rope_scaling": rope}
    mine = frequencies(hf_config.hf(raw, WHERE).config, context)
    kind = rope.get("rope_type") or rope["type"]
    theirs = in_transformers(json.loads(json.dumps(raw)))
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=context)
    np.testing.assert_allclose(mine[0], inverse.numpy(), rtol=2e-6)
    assert mine[1] == pytest.approx(factor)


def test_factors_that_are_the_same_for_every_length_do_not_depend_on_it() -> None:
    same = LONGROPE | {"long_factor": LONGROPE["short_factor"], "attention_factor": 1.0}
    assert hf(rope_scaling=same).config.rope_scaling == RopeScaling("factors", factors=(1.0, 1.1, 1.2, 1.3))
    for scaled in (same | {"attention_factor": 1.1}, same | {"long_factor": [1.0, 1.1, 1.2, 1.4]}):
        rope = hf(rope_scaling=scaled).config.rope_scaling
        assert rope is not None
        assert rope.kind == "longrope"


def test_an_end_named_twice_is_one() -> None:
    assert hf(eos_token_id=[7, 5, 7]).config.eos_token_ids == (7, 5)


@pytest.mark.parametrize(
    "old", [LLAMA3_ROPE, {**LLAMA3_ROPE, "type": "llama3"}, {**LLAMA3_ROPE, "factor": 8, "finetuned": True}]
)
@pytest.mark.parametrize("theta", [{}, {"rope_theta": 1234.0}])
def test_rope_parameters_may_stand_beside_a_rope_scaling_that_says_the_same(
    old: dict[str, Any], theta: dict[str, float]
) -> None:
    new = {**LLAMA3_ROPE, "factor": 8.0, "rope_theta": 1234.0}
    alone = hf(rope_parameters=new).config
    config = hf(rope_parameters=new, rope_scaling={**old, "factor": 8}, **theta).config
    assert (config.rope_theta, config.rope_scaling) == (1234.0, alone.rope_scaling)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (LLAMA3_ROPE | {"factor": 8}, LLAMA3_ROPE | {"factor": 4}),
        ({"rope_type": "default"}, LLAMA3_ROPE),
        ({"rope_type": "linear", "factor": 2, "rope_theta": 5e5}, {"type": "linear", "factor": 2, "rope_theta": 1e4}),
    ],
)
def test_rope_parameters_that_contradict_rope_scaling_are_an_error_that_names_both(
    new: dict[str, Any], old: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"rope_parameters is .*, but rope_scaling is .*contradict"):
        hf(rope_parameters=new, rope_scaling=old)


def test_original_context_beside_rope_scaling_has_the_last_word() -> None:
    rope = hf(rope_scaling=LONGROPE, original_max_position_embeddings=32).config.rope_scaling
    assert rope is not None
    assert (rope.original_max_position_embeddings, rope.factor) == (32, 8)


REAL = {
    "Llama 3.1 8B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 8192},
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 128256,
    },
    "SmolLM2 135M": {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "vocab_size": 49152,
    },
    "LLaMA 7B, early conversion": {
        "_name_or_path": "x",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pad_token_id": -1,
        "rms_norm_eps": 1e-06,
        "vocab_size": 32000,
    },
}
PARAMETERS = {"Llama 3.1 8B": 8_030_261_248, "SmolLM2 135M": 134_515_008, "LLaMA 7B, early conversion": 6_738_415_616}


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_are_read_and_have_the_published_number_of_parameters(name: str) -> None:
    translated = hf_config.hf(REAL[name], WHERE)
    assert sum(np.prod(shape) for shape in translated.config.tensor_shapes().values()) == PARAMETERS[name]
    assert translated.sampling == {}
    assert set(translated.ignored) < set(REAL[name])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_experts": 8}, "num_experts"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"hidden_size": 2**21}, "hidden_size"),
        ({"hidden_size": 30}, "4 heads"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "attention_bias": False}, "attention_bias"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "type is 'mrope'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "rope_type": "dynamic"}}, "type"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "surprise": 1}}, "surprise"),
        ({"rope_scaling": LLAMA3_ROPE, "rope_parameters": YARN}, "rope_scaling"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quant_method is 'awq'"),
        ({"num_beams": 4}, "num_beams"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_would_change_the_result_is_refused_by_file_and_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        hf(**changes)
    assert str(caught.value).startswith(WHERE)


def test_other_model_types_are_answered_with_the_supported_ones() -> None:
    with pytest.raises(ConfigError, match="llama, mistral, qwen2"):
        hf(model_type="gpt2")


def test_layer_types_override_max_window_layers() -> None:
    kinds = ["full_attention"] * 3 + ["sliding_attention"]
    raw = {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config = hf(model_type="qwen2", layer_types=kinds, **raw).config
    assert [config.window(layer) for layer in range(4)] == [None, None, None, 8]
    with pytest.raises(ConfigError, match="layer_types"):
        hf(model_type="qwen2", layer_types=kinds[::-1], **raw)


def test_old_generation_settings_in_config_json_count_when_they_differ_from_the_defaults() -> None:
    translated = hf(temperature=0.3, top_k=50, top_p=1.0, do_sample=False, max_length=20, num_beams=1)
    assert translated.sampling == {"temperature": 0.3}
    assert {"top_k", "top_p", "do_sample", "max_length"} <= set(translated.ignored)
    assert "temperature" not in translated.ignored


# Any value under any key: a config or a ConfigError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, 2**40, "yarn"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
META = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1, "use_scaled_rope": True}
LIT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
SOURCES = [
    (
        hf_config.hf,
        REAL["Llama 3.1 8B"] | {"sliding_window": None, "layer_types": None, "quantization_config": None},
    ),
    (
        hf_config.hf,
        TINY | {"model_type": "mistral", "num_key_value_heads": 4, "head_dim": 8, "rope_parameters": YARN},
    ),
    (hf_config.hf, TINY | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 8}),
    (
        lambda raw, where: read_params(raw, where, 100),
        META | {"rope_scaling_factor": 8, "ffn_dim_multiplier": 1.3},
    ),
    (read_config, LIT | {"padded_vocab_size": 128, "block_size": 9}),
]


@settings(max_examples=300)
@given(st.data())
def test_any_value_under_any_key_gives_a_configuration_or_a_config_error(data: st.DataObject) -> None:
    translate, raw = data.draw(st.sampled_from(SOURCES))
    assert isinstance(translate(raw, WHERE).config, ModelSpec)
    target = dict(raw)
    nested = [key for key, value in raw.items() if isinstance(value, dict)]
    if nested and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(nested))
        target[key] = raw[key] | {data.draw(st.sampled_from([*raw[key], "new"])): data.draw(VALUES)}
    else:
        target[data.draw(st.sampled_from([*raw, "new"]))] = data.draw(VALUES)
    try:
        translated = translate(target, WHERE)
    except ConfigError as error:
        assert str(error).startswith(WHERE)
    else:
        assert isinstance(translated.config, ModelSpec)
        SamplingParams(**translated.sampling)


# generation_config.json


@pytest.mark.parametrize(
    ("raw", "sampling"),
    [
        ({}, {}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1]},
            {"temperature": 0.6, "top_p": 0.9},
        ),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        (
            {"top_k": 20, "repetition_penalty": 1.05, "min_p": 0.1},
            {"top_k": 20, "repetition_penalty": 1.05, "min_p": 0.1},
        ),
        ({"top_k": -1, "temperature": None}, {"top_k": 0}),
        ({"max_length": 4096, "use_cache": True, "transformers_version": "5", "num_beams": 1, "unheard_of": 1}, {}),
    ],
)
def test_generation_settings_become_sampling_parameters(raw: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert hf_config.generation(raw, "generation_config.json") == sampling


@pytest.mark.parametrize(
    "raw",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 1.5},
        {"top_k": 2.0},
        {"do_sample": 1},
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [5]},
    ],
)
def test_generation_settings_that_cannot_be_followed_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"generation_config.json: {next(iter(raw))}"):
        hf_config.generation(raw, "generation_config.json")


def test_eos_ids_come_from_a_number_or_a_list() -> None:
    assert [hf_config.eos_ids(raw, "f") for raw in ({}, {"eos_token_id": 3}, {"eos_token_id": [3, 4]})] == [
        (),
        (3,),
        (3, 4),
    ]


# Meta

RELEASES = {  # params.json, and from the papers or Hugging Face's conversions: feed-forward width, context
    "LLaMA 7B": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06}, 11008, 2048),
    "LLaMA 65B": ({"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05}, 22016, 2048),
    "Llama 2 13B": (
        {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "vocab_size": -1},
        13824,
        4096,
    ),
    "Llama 2 70B": (
        {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80},
        28672,
        4096,
    ),
    "Llama 3 8B": (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024}
        | {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0},
        14336,
        8192,
    ),
    "Llama 3.1 405B": (
        {"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 4096}
        | {"ffn_dim_multiplier": 1.2, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True},
        53248,
        131072,
    ),
    "Llama 3.2 1B": (
        {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 256}
        | {"ffn_dim_multiplier": 1.5, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True},
        8192,
        131072,
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_metas_releases_have_their_known_sizes(name: str) -> None:
    params, width, context = RELEASES[name]
    config = read_params(params, "params.json", 32000).config
    assert (config.intermediate_size, config.max_position_embeddings) == (width, context)
    assert config.vocab_size == (params.get("vocab_size", -1) if params.get("vocab_size", -1) > 0 else 32000)
    assert config.num_key_value_heads == params.get("n_kv_heads", params["n_heads"])
    assert config.rope_theta == params.get("rope_theta", 10000)


def test_scaled_rope_has_the_frequencies_of_metas_code(llama_models_dir: Path) -> None:
    source = ast.parse((llama_models_dir / "llama_models/llama3/model.py").read_text())
    wanted = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "apply_scaling"]
    scope = {"torch": torch}
    exec(compile(ast.Module(wanted, []), "model.py", "exec"), scope)
    config = read_params(RELEASES["Llama 3.2 1B"][0], "params.json", 0).config
    plain, _ = frequencies(replace(config, rope_scaling=None), 8192)
    scaled, _ = frequencies(config, 8192)
    np.testing.assert_allclose(scaled, scope["apply_scaling"](torch.tensor(plain)).numpy(), rtol=1e-9)


def test_metas_later_keys_for_the_scale_of_rope_are_honoured() -> None:
    params = RELEASES["Llama 3.2 1B"][0] | {"rope_scaling_factor": 32, "rope_high_freq_factor": 3}
    rope = read_params(params, "params.json", 0).config.rope_scaling
    assert rope == RopeScaling("llama3", 32, 8192, high_freq_factor=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation"}},
        {"lora_args": {"rank": 16}},
        {"vision_num_cross_attention_layers": 8},
        {"n_experts": 8},
        {"dim": 0},
        {"n_heads": 5},
        {"vocab_size": 0},
        {"multiple_of": 0},
        {"ffn_dim_multiplier": -1},
        {"ffn_dim_multiplier": 1e300},
        {"ffn_dim_multiplier": 1e308},
    ],
)
def test_params_that_cannot_be_followed_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"params\.json: "):
        read_params(META | changes, "params.json", 100)


def test_metas_serving_sizes_have_no_effect_but_max_seq_len_is_the_context() -> None:
    translated = read_params(META | {"max_batch_size": 4, "max_seq_len": 512}, "params.json", 100)
    assert translated.config.max_position_embeddings == 512
    assert translated.ignored == ("max_batch_size",)


# lit-llama


@pytest.mark.parametrize(
    ("layers", "heads", "width", "inner"), [(32, 32, 4096, 11008), (40, 40, 5120, 13824), (80, 64, 8192, 22016)]
)
def test_lit_llama_sizes_are_those_of_its_code(layers: int, heads: int, width: int, inner: int) -> None:
    config = read_config({"n_layer": layers, "n_head": heads, "n_embd": width}, "lit").config
    assert (config.intermediate_size, config.head_dim, config.num_key_value_heads) == (inner, 128, heads)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (32000, 2048, 1e-5)


def test_lit_llama_pads_the_vocabulary_to_64_unless_told() -> None:
    assert read_config(LIT, "lit").config.vocab_size == 128
    assert read_config(LIT | {"padded_vocab_size": 101, "block_size": 7}, "lit").config.vocab_size == 101


# Quantization

BNB = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
}
EIGHT = {"load_in_4bit": False, "load_in_8bit": True}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (BNB, QuantConfig("bnb-nf4", skip=("lm_head",))),
        (
            BNB | {"bnb_4bit_quant_type": "fp4", "llm_int8_skip_modules": ["a", "b"]},
            QuantConfig("bnb-fp4", skip=("a", "b")),
        ),
        (BNB | EIGHT, QuantConfig("bnb-int8", skip=("lm_head",))),
        ({"load_in_8bit": True}, QuantConfig("bnb-int8", skip=("lm_head",))),
        (BNB | {"load_in_4bit": False}, None),
        ({"quant_method": "llamachat", "scheme": "int4"}, QuantConfig("int4")),
        (
            {"quant_method": "llamachat", "scheme": "int8", "group_size": 64, "kv_bits": 8, "skip": ["lm_head"]},
            QuantConfig("int8", 64, 8, ("lm_head",)),
        ),
        ({"quant_method": "rtn", "weight_dtype": "int8", "activation_dtype": "None"}, QuantConfig("int8")),
        (
            {"quant_method": "rtn", "kvcache_dtype": "int8", "modules_to_not_convert": ["lm_head"]},
            QuantConfig("int8", None, 8, ("lm_head",)),
        ),
        (
            {"quant_method": "ptq", "weight_dtype": "int4", "group_size": 128, "weight_quant_granularity": "per_group"},
            QuantConfig("int4", 128),
        ),
        (
            {"quant_method": "ptq", "weight_dtype": "int4", "precision_recovery": "gptq", "mode": "deploy"},
            QuantConfig("int4-gptq"),
        ),
        ({"quant_method": "ptq", "weight_dtype": None, "kvcache_dtype": None, "outliers_suppression": "None"}, None),
        (
            {"quant_method": "smooth_quant", "activation_dtype": "int8", "outliers_suppression": "smooth"},
            QuantConfig("int8"),
        ),
        (
            {"quant_method": "ptq", "modules_to_not_convert": ["lm_head", "w2", "layers.1.attention.w_qkv", "o_proj"]},
            QuantConfig(
                "int8",
                skip=(
                    "lm_head",
                    "down_proj",
                    *(f"layers.1.self_attn.{part}_proj" for part in "qkv"),
                    "o_proj",
                ),
            ),
        ),
    ],
)
def test_quantization_settings_are_understood(raw: dict[str, Any], expected: QuantConfig | None) -> None:
    assert quantization(raw, WHERE) == expected


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method"),
        ({}, "quant_method"),
        (BNB | {"load_in_8bit": True}, "load_in_8bit"),
        (BNB | {"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type"),
        (BNB | {"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
        (BNB | {"surprise": 1}, "surprise"),
        ({"quant_method": "llamachat", "scheme": "bnb-nf4"}, "scheme"),
        ({"quant_method": "llamachat", "scheme": "int4", "group_size": 33}, "group_size"),
        ({"quant_method": "llamachat", "scheme": "int4", "kv_bits": "8"}, "kv_bits"),
        ({"quant_method": "rtn", "activation_dtype": "int8"}, "activation_dtype"),
        ({"quant_method": "rtn", "outliers_suppression": "smooth"}, "outliers_suppression"),
        ({"quant_method": "smooth_quant", "activation_dtype": "int4"}, "activation_dtype"),
        ({"quant_method": "ptq", "modules_to_not_convert": ["w4"]}, "modules_to_not_convert"),
        ({"quant_method": "ptq", "modules_to_not_convert": ["lm_head", "layers.0.w2*"]}, "modules_to_not_convert"),
        ({"quant_method": "ptq", "outliers_suppression": "awq"}, "outliers_suppression"),
        ({"quant_method": "ptq", "algorithm_args": {"alpha": 0.5}}, "algorithm_args"),
        ({"quant_method": "ptq", "layer_policies": {"w2": {}}}, "layer_policies"),
        ({"quant_method": "ptq", "precision_recovery": "gptq"}, "precision_recovery"),
        ({"quant_method": "rtn", "weight_dtype": None, "kvcache_dtype": "int8"}, "weight_dtype"),
        ({"quant_method": "rtn", "weight_dtype": "int16"}, "weight_dtype"),
    ],
)
def test_quantization_settings_that_cannot_be_followed_are_refused(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        quantization(raw, WHERE)


def test_what_transformers_writes_for_bitsandbytes_is_read() -> None:
    written = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_json_string(
        use_diff=False
    )
    theirs = json.loads(written)
    assert hf(quantization_config=theirs).config.quantization == QuantConfig("bnb-nf4", skip=("lm_head",))
