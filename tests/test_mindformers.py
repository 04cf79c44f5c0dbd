"""MindFormers' parameters: each has its meaning here or a stated reason for having none; RoPE as FreqsMgr has it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat import mindformers
from llamachat.config import Dtypes, LlamaConfig, QuantConfig, RopeScaling, SamplingParams
from llamachat.config_sources import Translated
from llamachat.engine.rope import frequencies
from llamachat.errors import ConfigError
from llamachat.metadata import names, read_yaml

# Parameters of mindformers.models.llama.LlamaConfig in 1.3.2 and 2.1.0, and of its base class.
PARAMETERS = names(
    """
    batch_size seq_length hidden_size num_layers num_heads n_kv_heads max_position_embedding intermediate_size
    vocab_size multiple_of ffn_dim_multiplier rms_norm_eps bos_token_id eos_token_id pad_token_id ignore_token_id
    theta compute_dtype layernorm_compute_type softmax_compute_type rotary_dtype param_init_type residual_dtype
    embedding_init_type qkv_has_bias qkv_concat attn_proj_has_bias parallel_config moe_config use_past extend_method
    scaling_factor is_dynamic use_rope_slice use_flash_attention use_ring_attention use_attn_mask_compression
    use_eod_attn_mask_compression parallel_optimizer fine_grain_interleave pp_interleave_num offset init_method_std
    checkpoint_name_or_path repetition_penalty max_decode_length block_size num_blocks top_k top_p do_sample
    quant_config tie_word_embeddings llm_backend fused_rms_norm input_sliced_sig rmsnorm_compute_2d chunk_prefill
    calculate_per_token_loss pipeline_stage return_hidden_states parallel_decoding_params name_or_path _commit_hash
    pretrained_model_dir mindformers_version tokenizer_class architectures is_encoder_decoder is_sample_acceleration
    quantization_config quantization pet_config temperature type model_type
    """
)
# Each parameter that has a meaning here, with a value that is not its default.
HONOURED = {
    "seq_length": 4096,
    "hidden_size": 2048,
    "num_layers": 2,
    "num_heads": 16,
    "n_kv_heads": 4,
    "max_position_embedding": 8192,
    "intermediate_size": 999,
    "vocab_size": 64,
    "multiple_of": 1000,
    "ffn_dim_multiplier": 1.3,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 5,
    "eos_token_id": [6, 7],
    "pad_token_id": 8,
    "theta": 500000.0,
    "compute_dtype": "bfloat16",
    "layernorm_compute_type": "bfloat16",
    "softmax_compute_type": "float16",
    "rotary_dtype": "bfloat16",
    "residual_dtype": "float32",
    "qkv_has_bias": True,
    "attn_proj_has_bias": True,
    "extend_method": "DYNAMIC_NTK",
    "repetition_penalty": 1.2,
    "max_decode_length": 100,
    "temperature": 0.3,
    "top_k": 9,
    "top_p": 0.5,
    "do_sample": False,
    "quant_config": {"quant_method": "rtn", "kvcache_dtype": "int8"},
    "quantization_config": {"quant_method": "rtn"},
    "quantization": {"quant_method": "rtn"},
    "tie_word_embeddings": True,
}
# Only in these values, or together with another key.
REFUSED = {"pet_config": {"pet_type": "lora"}, "is_encoder_decoder": True, "moe_config": {"expert_num": 8}}
WITH_ANOTHER = {"scaling_factor"}


def translate(**parameters: Any) -> Translated:
    return mindformers.translate(parameters, "llama.yaml")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_parameter_is_honoured_or_refused_or_has_a_reason_to_be_ignored(name: str) -> None:
    default = translate()
    if name in HONOURED:
        assert translate(**{name: HONOURED[name]}) != default
        assert name not in mindformers.NO_EFFECT
    elif name in REFUSED:
        with pytest.raises(ConfigError, match=next(iter(REFUSED[name])) if name == "moe_config" else name):
            translate(**{name: REFUSED[name]})
    elif name not in WITH_ANOTHER:
        assert mindformers.NO_EFFECT[name]


def test_a_parameter_that_mindformers_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"llama\.yaml: the key 'num_layer' with the value 3 is unknown"):
        translate(num_layer=3)


def test_absent_parameters_have_mindformers_defaults() -> None:
    translated = translate()
    assert translated.config == LlamaConfig(
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


def test_every_model_parameter_reaches_its_field() -> None:
    given_ = {key: value for key, value in HONOURED.items() if not key.startswith("quantization")}
    translated = translate(**given_)
    assert translated.config == LlamaConfig(
        vocab_size=64,
        hidden_size=2048,
        intermediate_size=999,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        rope_theta=500000.0,
        rope_scaling=RopeScaling("dynamic", 2.0),
        tie_word_embeddings=True,
        qkv_bias=True,
        attention_out_bias=True,
        bos_token_id=5,
        eos_token_ids=(6, 7),
        pad_token_id=8,
        dtypes=Dtypes("bfloat16", "bfloat16", "float16", "bfloat16", "float32"),
        quantization=QuantConfig("int8", kv_bits=8),
    )
    assert translated.sampling == {"repetition_penalty": 1.2, "temperature": 0.0, "top_k": 9, "top_p": 0.5}
    assert translated.max_length == 100
    assert LlamaConfig.from_mindformers(given_) == translated.config


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


def test_dynamic_ntk_is_plain_up_to_the_context_and_mindformers_at_twice_it() -> None:
    config = translate(extend_method="DYNAMIC_NTK", seq_length=2048).config
    np.testing.assert_allclose(frequencies(config, 2048)[0], freqs_mgr(128, 10000.0, "None", 1)[0])
    base = 10000.0 * (2**2 - 1) ** (128 / 126)
    np.testing.assert_allclose(frequencies(config, 4096)[0], freqs_mgr(128, base, "None", 1)[0])


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
