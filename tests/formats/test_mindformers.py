"""MindFormers' parameters: each has its meaning here or a stated reason for having none; RoPE as FreqsMgr has it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core.rope import cos_sin, frequencies
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Dtypes, Experts, ModelSpec, QuantConfig, RopeScaling
from llamachat.errors import ConfigError
from llamachat.formats import mindformers_config as mindformers
from llamachat.formats.translated import Translated
from llamachat.system.metadata import read_yaml


@dataclass(frozen=True)
class Parameter:
    """One of ModelSpec's: its default, another value as a YAML file has it, and what that one means here."""

    default: Any
    other: Any
    means: dict[str, Any] | None = None  # fields of the translation that differ; None: ignored, with a reason
    refused: str = ""  # or the words that refuse it
    beside: dict[str, Any] = field(default_factory=dict)  # where it means something only together with others


PI = {"extend_method": "PI"}
# The 61 parameters of mindformers.models.llama.LlamaConfig's constructor (2.0), each with its default.
CONSTRUCTOR = {
    "batch_size": Parameter(1, 4),
    "seq_length": Parameter(2048, 512, {"max_position_embeddings": 512, "max_length": 512}),
    "hidden_size": Parameter(4096, 2048, {"hidden_size": 2048, "head_dim": 64, "intermediate_size": 5632}),
    "num_layers": Parameter(32, 2, {"num_hidden_layers": 2}),
    "num_heads": Parameter(32, 16, {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256}),
    "n_kv_heads": Parameter(None, 4, {"num_key_value_heads": 4}),
    "max_position_embedding": Parameter(None, 8192, {"max_position_embeddings": 8192}),
    "intermediate_size": Parameter(None, 999, {"intermediate_size": 999}),
    "vocab_size": Parameter(32000, 64, {"vocab_size": 64}),
    "multiple_of": Parameter(256, 1000, {"intermediate_size": 11000}),
    "ffn_dim_multiplier": Parameter(None, 1.3, {"intermediate_size": 14336}),
    "rms_norm_eps": Parameter(1e-5, 2.0e-6, {"rms_norm_eps": 2e-6}),
    "bos_token_id": Parameter(1, 5, {"bos_token_id": 5}),
    "eos_token_id": Parameter(2, [6, 7], {"eos_token_ids": (6, 7)}),
    "pad_token_id": Parameter(0, 8, {"pad_token_id": 8}),
    "ignore_token_id": Parameter(-100, -1),
    "theta": Parameter(10000.0, 500000, {"rope_theta": 500000.0}),
    "compute_dtype": Parameter("float16", "bfloat16", {"compute": "bfloat16"}),
    "layernorm_compute_type": Parameter("float32", "bfloat16", {"norm": "bfloat16"}),
    "softmax_compute_type": Parameter("float32", "float16", {"softmax": "float16"}),
    "rotary_dtype": Parameter("float32", "bfloat16", {"rotary": "bfloat16"}),
    "param_init_type": Parameter("float16", "bfloat16"),
    "residual_dtype": Parameter(None, "float32", {"residual": "float32"}),
    "embedding_init_type": Parameter(None, "float32"),
    "qkv_has_bias": Parameter(False, True, {"qkv_bias": True}),
    "qkv_concat": Parameter(False, True),
    "attn_proj_has_bias": Parameter(False, True, {"attention_out_bias": True}),
    "parallel_config": Parameter({"data_parallel": 1}, {"data_parallel": 2, "model_parallel": 4}),
    "moe_config": Parameter(
        {"expert_num": 1, "num_experts_chosen": 1},
        {"expert_num": 8, "routing_policy": "TopkRouterV2"},
        {"experts": Experts(8, 1, 11008, normalized=False)},
    ),
    "use_past": Parameter(False, True),
    "extend_method": Parameter("None", "PI", {"rope_scaling": RopeScaling("linear", 1.0)}),
    "scaling_factor": Parameter(1.0, 4.0, {"rope_scaling": RopeScaling("linear", 4.0)}, beside=PI),
    "is_dynamic": Parameter(False, True),
    "use_rope_slice": Parameter(False, True),
    "use_flash_attention": Parameter(False, True),
    "use_ring_attention": Parameter(False, True),
    "use_attn_mask_compression": Parameter(False, True),
    "use_eod_attn_mask_compression": Parameter(False, True),
    "parallel_optimizer": Parameter(False, True),
    "fine_grain_interleave": Parameter(1, 2),
    "pp_interleave_num": Parameter(1, 2),
    "offset": Parameter(0, [0, 1, -1, 0]),
    "init_method_std": Parameter(0.01, 0.02),
    "checkpoint_name_or_path": Parameter("", "somewhere.ckpt"),
    "repetition_penalty": Parameter(1.0, 1.2, {"repetition_penalty": 1.2}),
    "max_decode_length": Parameter(1024, 100, {"max_length": 100}),
    "block_size": Parameter(16, 128),
    "num_blocks": Parameter(512, 1024),
    "top_k": Parameter(5, 9, {"top_k": 9}),
    "top_p": Parameter(1.0, 0.5, {"top_p": 0.5}),
    "do_sample": Parameter(True, False, {"temperature": 0.0}),
    "quant_config": Parameter(
        None, {"quant_method": "rtn", "kvcache_dtype": "int8"}, {"quantization": QuantConfig("int8", kv_bits=8)}
    ),
    "tie_word_embeddings": Parameter(False, True, {"tie_word_embeddings": True}),
    "llm_backend": Parameter("", "BuildIn"),
    "fused_rms_norm": Parameter(True, False),
    "input_sliced_sig": Parameter(False, True),
    "rmsnorm_compute_2d": Parameter(False, True),
    "chunk_prefill": Parameter(False, True),
    "calculate_per_token_loss": Parameter(False, True),
    "pipeline_stage": Parameter(None, {"start_stage": 0, "stage_num": 1, "offset": 0}),
    "return_hidden_states": Parameter(False, True, {"return_hidden_states": True}),
}
# What else stands in a model_config: parameters of its base class, of generation and of older versions, and keys that its
# own files carry along without ModelSpec knowing them.
BEYOND = {
    "type": Parameter("LlamaConfig", "ChatGLM2Config", refused="type is 'ChatGLM2Config'"),
    "model_type": Parameter("llama", "glm", refused="model_type is 'glm'"),
    "temperature": Parameter(1.0, 0.3, {"temperature": 0.3}),
    "max_length": Parameter(1024, 77, {"max_length": 77}),
    "max_new_tokens": Parameter(None, 20),
    "min_length": Parameter(0, 5, refused="min_length is 5"),
    "min_new_tokens": Parameter(None, 5, refused="min_new_tokens is 5"),
    "num_beams": Parameter(1, 4, refused="num_beams is 4"),
    "encoder_repetition_penalty": Parameter(1.0, 1.5, refused="encoder_repetition_penalty is 1.5"),
    "pet_config": Parameter(None, {"pet_type": "lora"}, refused="pet_config is {'pet_type': 'lora'}"),
    "is_encoder_decoder": Parameter(False, True, refused="is_encoder_decoder is True"),
    "quant": Parameter("", "w8a16", refused="quant is 'w8a16'"),
    "quantization_config": Parameter(None, {"quant_method": "rtn"}, {"quantization": QuantConfig("int8")}),
    "quantization": Parameter(None, {"quant_method": "rtn"}, {"quantization": QuantConfig("int8")}),
    "pretrain_seqlen": Parameter(None, 4096),
    **{
        name: Parameter(None, other)
        for name, other in {
            "auto_map": {"AutoTokenizer": ["tokenizer.Tokenizer", None]},
            "emb_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "num_block": 1024,
            "rotary_pct": 1.0,
            "rotary_emb_base": 1000000,
            "kv_channels": 128,
            "use_past_shard": True,
            "compute_in_2d": True,
            "use_kvcache_op": True,
            "is_flexible_shape": True,
            "use_paged_attention": True,
            "use_prompt_flash_attention": True,
            "use_incre_flash_attention": True,
            "use_3d_tensor_parallel": True,
            "tp_x": 2,
            "tp_y": 2,
            "tp_z": 2,
            "start_stage": 1,
            "stage_num": 2,
            "parallel_decoding_params": {"parallel_decoding": "la"},
            "parallel_decoding": "la",
            "window_size": 5,
            "level": 5,
            "guess_set_size": 3,
            "output_scores": True,
            "output_logits": True,
            "return_dict_in_generate": True,
            "renormalize_logits": True,
            "name_or_path": "x",
            "_name_or_path": "x",
            "pretrained_model_dir": "x",
            "_commit_hash": "0",
            "mindformers_version": "1.3.2",
            "tokenizer_class": "LlamaTokenizer",
            "architectures": "LlamaForCausalLM",
            "is_sample_acceleration": True,
        }.items()
    },
}
PARAMETERS = CONSTRUCTOR | BEYOND
# Where null is not the default but says "there is none".
NONE = {
    "bos_token_id": {"bos_token_id": None},
    "eos_token_id": {"eos_token_ids": ()},
    "pad_token_id": {"pad_token_id": None},
}


def translate(**parameters: Any) -> Translated:
    return mindformers.translate(parameters, "llama.yaml")


def from_yaml(folder: Path, **parameters: Any) -> Translated:
    """The same through a whole YAML file."""
    path = folder / "predict.yaml"
    path.write_text(yaml.safe_dump({"model": {"model_config": {"type": "LlamaConfig"} | parameters}}))
    return mindformers.translate(read_yaml(path), str(path))


def flat(translated: Translated) -> dict[str, Any]:
    """All that a translation says but for what it ignores, under the names of `Parameter.means`."""
    config = translated.config
    return vars(config) | vars(config.dtypes) | translated.sampling | {"max_length": translated.max_length}


def differences(translated: Translated, plain: Translated) -> dict[str, Any]:
    before = flat(plain)
    return {key: value for key, value in flat(translated).items() if value != before[key] and key != "dtypes"}


def test_these_are_all_parameters_of_the_constructor() -> None:
    assert len(CONSTRUCTOR) == 61
    assert mindformers.NO_EFFECT.keys() | mindformers.NEUTRAL.keys() <= PARAMETERS.keys()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_parameter_is_honoured_refused_or_ignored_with_a_reason(tmp_path: Path, name: str) -> None:
    parameter = PARAMETERS[name]
    plain, given = from_yaml(tmp_path, **parameter.beside), {**parameter.beside, name: parameter.other}
    if parameter.refused:
        with pytest.raises(ConfigError) as caught:
            from_yaml(tmp_path, **given)
        assert str(caught.value).startswith(str(tmp_path / "predict.yaml"))
        assert parameter.refused in str(caught.value) and "\n" not in str(caught.value)
        return
    translated = from_yaml(tmp_path, **given)
    assert differences(translated, plain) == (parameter.means or {})
    assert (name in translated.ignored) == (parameter.means is None)
    assert parameter.means is not None or name == "pretrain_seqlen" or mindformers.NO_EFFECT[name]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("null", [None, "None"], ids=["null", "None"])
def test_a_parameter_at_its_default_or_null_changes_nothing(tmp_path: Path, name: str, null: str | None) -> None:
    parameter, plain = PARAMETERS[name], translate()
    assert differences(from_yaml(tmp_path, **{name: parameter.default}), plain) == {}
    assert differences(from_yaml(tmp_path, **{name: null}), plain) == NONE.get(name, {})


def test_a_parameter_that_mindformers_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"llama\.yaml: the key 'num_layer' with the value 3 is unknown"):
        translate(num_layer=3)


def test_absent_parameters_have_mindformers_defaults() -> None:
    translated = translate()
    assert translated.config == ModelSpec(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
        dtypes=Dtypes(compute="float16"),
    )
    assert translated.sampling == {"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 5, "top_p": 1.0}
    assert translated.max_length == 1024
    assert translate().config == translated.config


@pytest.mark.parametrize(
    ("parameters", "width"),
    [
        ({"hidden_size": 4096}, 11008),
        ({"hidden_size": 5120, "num_heads": 40}, 13824),
        ({"hidden_size": 8192, "num_heads": 64, "ffn_dim_multiplier": 1.3}, 28672),  # Llama 2 70B
        ({"hidden_size": 8192, "num_heads": 64, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),
    ],
)
def test_feed_forward_width_is_mindformers(parameters: dict[str, Any], width: int) -> None:
    assert translate(**parameters).config.intermediate_size == width


# RoPE: FreqsMgr, written out


def freqs_mgr(head_dim: int, theta: float, method: str, factor: Any) -> tuple[Any, float]:
    """(frequencies, scale of cosine and sine) as mindformers/modules/layers.py has them."""
    base = theta * factor if method == "NTK" else theta
    freqs = 1.0 / base ** (np.arange(0, head_dim, 2) / head_dim)
    if method == "PI":
        return freqs / factor, 1.0
    if method == "YARN":
        turns = [
            factor["original_max_position_embeddings"] / (factor[key] * 2 * math.pi)
            for key in ("beta_fast", "beta_slow")
        ]
        low, high = (head_dim * math.log(turn) / (2 * math.log(theta)) for turn in turns)
        low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
        keep = 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
        scales = [0.1 * factor[key] * math.log(factor["factor"]) + 1 for key in ("mscale", "mscale_all_dim")]
        return freqs / factor["factor"] * (1 - keep) + freqs * keep, scales[0] / scales[1]
    if method == "LLAMA3":
        turns = factor["original_max_position_embeddings"] * freqs / (2 * math.pi)
        low, high = factor["low_freq_factor"], factor["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - smooth) * freqs / factor["factor"] + smooth * freqs, 1.0
    return freqs, 1.0


YARN = {
    "factor": 8.0,
    "original_max_position_embeddings": 2048,
    "beta_slow": 1.0,
    "beta_fast": 32.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": 2048, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("None", 1.0),
        ("None", 4.0),
        ("PI", 4.0),
        ("PI", 2),
        ("NTK", 4.0),
        ("YARN", YARN),
        ("YARN", YARN | {"mscale": 0}),
        ("LLAMA3", LLAMA3),
    ],
)
def test_extend_methods_have_the_frequencies_of_freqs_mgr(method: str, factor: Any) -> None:
    config = translate(extend_method=method, scaling_factor=factor, seq_length=16384).config
    found = frequencies(config, 16384)
    expected = freqs_mgr(128, 10000.0, method, factor)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    assert found[1] == pytest.approx(expected[1])


@pytest.mark.parametrize("factor", [1.0, 4.0, {"factor": 8.0}, None])
@pytest.mark.parametrize("length", [1, 2048, 2049, 5000, 40000])
def test_dynamic_ntk_is_plain_in_mindformers_llama_at_every_length(factor: Any, length: int) -> None:
    """Its LlamaModel has FreqsMgr for every method, whose one table of positions is built from theta alone.

    The formula of FreqsMgrDynamicNTK, which other models there have, is not it: it would differ from 2,049 tokens on.
    """
    config = translate(extend_method="DYNAMIC_NTK", scaling_factor=factor, seq_length=2048, theta=500000.0).config
    positions = np.arange(max(0, length - 3), length)
    table = np.outer(positions, 1.0 / 500000.0 ** (np.arange(0, 128, 2)[:64] / 128))
    found = cos_sin(positions, *frequencies(config, length))
    np.testing.assert_allclose(found, (np.cos(table), np.sin(table)), rtol=1e-9, atol=1e-9)
    other = 500000.0 * (2 ** np.ceil(np.log2(max(length / 2048, 1)) + 1) - 1) ** (128 / 126)
    assert (length > 2048) == (not np.allclose(frequencies(config, length)[0], other ** (-np.arange(0, 128, 2) / 128)))


def test_what_an_extend_method_does_not_read_is_listed_as_ignored() -> None:
    assert {"extend_method", "scaling_factor"} <= set(
        translate(extend_method="DYNAMIC_NTK", scaling_factor=4.0).ignored
    )
    assert "scaling_factor" in translate(scaling_factor=4.0).ignored
    assert not {"extend_method", "scaling_factor"} & set(translate(extend_method="PI", scaling_factor=4.0).ignored)


def test_an_extension_by_the_trained_length_of_old_versions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pretrain_seqlen is 2048; expected is scaling_factor"):
        translate(extend_method="PI", pretrain_seqlen=2048)
    assert translate(extend_method="PI", pretrain_seqlen=2048, scaling_factor=2.0).config.rope_scaling is not None


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("YARN", 4.0),
        ("YARN", YARN | {"surprise": 1}),
        ("YARN", {"factor": 2.0}),
        ("LLAMA3", LLAMA3 | {"low_freq_factor": 4.0}),
        ("LLAMA3", None),
        ("PI", 0),
        ("PI", {"factor": 2.0, "more": 1}),
        ("PI", "2"),
        ("NTK", -1.0),
        ("ALIBI", 1.0),
        ("yarn", YARN),
    ],
)
def test_extend_methods_that_do_not_fit_their_factor_are_refused(method: str, factor: Any) -> None:
    with pytest.raises(ConfigError, match=r"llama\.yaml"):
        translate(extend_method=method, scaling_factor=factor)


# Whole YAML files

YAML = """
seed: 0
output_dir: './output'
load_checkpoint: ''
run_mode: 'predict'
trainer: {type: CausalLanguageModelingTrainer, model_name: 'llama2_7b'}
eval_dataset: &eval_dataset
  batch_size: 1
eval_dataset_task:
  dataset_config: *eval_dataset
context:
  device_target: "Ascend"
model:
  model_config:
    type: LlamaConfig
    batch_size: 1 # add for increase predict
    seq_length: 4096
    hidden_size: 4096
    num_layers: 32
    num_heads: 32
    vocab_size: 32000
    multiple_of: 256
    rms_norm_eps: 1.0e-5
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float16"
    rotary_dtype: "float32"
    use_past: True
    scaling_factor: 1.0
    extend_method: "None" # support "None", "PI", "NTK"
    block_size: 16
    num_blocks: 512
    repetition_penalty: 1
    max_decode_length: 512
    top_k: 3
    top_p: 1
    do_sample: False
    quantization_config:
      quant_method: 'rtn'
      weight_dtype: 'int8'
      activation_dtype: None
      kvcache_dtype: None
      outliers_suppression: None
      modules_to_not_convert: ['lm_head']
      algorithm_args: {}
  arch:
    type: LlamaForCausalLM
processor:
  tokenizer: {type: LlamaTokenizer}
"""


def test_a_moe_config_with_one_expert_is_that_of_a_dense_model(tmp_path: Path) -> None:
    path = tmp_path / "predict.yaml"
    path.write_text(YAML + "moe_config: {expert_num: 1, capacity_factor: 1.1, routing_policy: TopkRouterV2}\n")
    assert "moe_config" in mindformers.translate(read_yaml(path), str(path)).ignored


def test_a_whole_yaml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "predict_llama2_7b.yaml"
    path.write_text(YAML)
    translated = mindformers.translate(read_yaml(path), str(path))
    assert translated.config.intermediate_size == 11008
    assert translated.config.dtypes == Dtypes("float16", "float32", "float16", "float32")
    assert translated.config.quantization == QuantConfig("int8", skip=("lm_head",))
    assert translated.sampling == {"repetition_penalty": 1, "temperature": 0, "top_k": 3, "top_p": 1, "seed": 0}
    assert translated.max_length == 512
    assert {"processor", "load_checkpoint", "block_size", "use_past"} <= set(translated.ignored)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("run_mode:", "run_moode:", "'run_moode'"),
        ("LlamaForCausalLM", "GLMForConditionalGeneration", "model: arch: type is 'GLM"),
        ("type: LlamaConfig", "type: ChatGLM2Config", "model: model_config: type is 'ChatGLM2Config'"),
        ("num_heads: 32", "num_heads: 31", "31 heads"),
        ("rms_norm_eps: 1.0e-5", "rms_norm_eps: 1e-5", "rms_norm_eps is '1e-5'"),  # text, to YAML
        ("activation_dtype: None", "activation_dtype: int8", "activation_dtype"),
        ("  model_config:", "  other:", "no model.model_config"),
        ("seed: 0", "seed: -1", "seed is -1"),
        ("run_mode:", "moe_config: {expert_num: 8}\nrun_mode:", "yaml: moe_config: routing_policy is"),
        (
            "    type: LlamaConfig",
            "    type: LlamaConfig\n    moe_config: {expert_num: 2, routing_policy: TopkRouterV2, shared_expert_num: 1}",
            "shared_expert_num is 1",
        ),
        (
            "  arch:",
            "  moe_config: {expert_num: 8}\n  arch:",
            "model: the key 'moe_config' with the value {'expert_num': 8}",
        ),
        ("run_mode:", "adapter_id: one\nrun_mode:", "adapter_id is 'one'"),
        ("    type: LlamaForCausalLM", "    type: LlamaForCausalLM\n    head: other", "arch: the key 'head'"),
    ],
)
def test_what_a_yaml_file_gets_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "predict.yaml"
    path.write_text(YAML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=says) as caught:
        mindformers.translate(read_yaml(path), str(path))
    assert str(caught.value).startswith(str(path))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just([1])
    | st.just({"factor": 2.0})
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PARAMETERS)), VALUES | st.sampled_from(["PI", "NTK", "YARN", "LLAMA3"]), max_size=4
    )
)
def test_any_parameters_give_a_configuration_or_a_config_error(parameters: dict[str, Any]) -> None:
    try:
        translated = translate(**parameters)
    except ConfigError as error:
        assert str(error).startswith("llama.yaml")
    else:
        SamplingParams(**translated.sampling)
