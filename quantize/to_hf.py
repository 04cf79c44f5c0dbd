"""A ModelSpec in the words of Hugging Face's config.json: the inverse of formats/hf_config.py.

What those words cannot say (biases on q, k, v alone beside one in the feed-forward part, arithmetic types, ...) stands
under a key of our own, so that the inverse is exact for every configuration.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from llamachat.core.spec import Dtypes, ModelSpec, RopeScaling
from llamachat.errors import ConfigError
from llamachat.families import FAMILIES
from llamachat.families.family import Family, Layout
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.hf_config import OWN, hf
from llamachat.formats.hf_rope import PART, ROPES
from llamachat.formats.hf_t5 import ACTIVATIONS, FLAGS, GATED, hf_t5
from llamachat.formats.labels import CLASSES, Labels

SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "bos_token_id",
    "pad_token_id",
)
T5_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_kv": "head_dim",
    "d_ff": "intermediate_size",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "relative_attention_num_buckets": "relative_buckets",
    "relative_attention_max_distance": "relative_distance",
    "decoder_start_token_id": "decoder_start_token_id",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
T5_OWN = (*FLAGS, "activation", "positions", "norm_kind", "attention_scale", "rope_theta", "rotary_dim")
ROPE_FIELDS = {  # those that a kind has, beside rope_type; transformers warns of others, and our reader refuses them
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
    ),
}


def hf_config(config: ModelSpec, labels: Labels | None = None) -> dict[str, Any]:
    """config.json's object, without quantization_config. Read by hf_config.hf it gives an equal configuration."""
    if isinstance(config, EncoderDecoderSpec):
        return t5_config(config)
    family = _family(config)
    beyond = {name: getattr(config, name) for name in _beyond(config, family)}
    if config.dtypes != Dtypes():
        beyond["dtypes"] = {name: value for name, value in asdict(config.dtypes).items() if value is not None}
    raw = _plain(config, family) | (_labels(labels) if labels else {})
    return {**raw, OWN: {name: list(v) if isinstance(v, tuple) else v for name, v in beyond.items()}} if beyond else raw


def head_config(config: ModelSpec) -> dict[str, Any]:
    """Its keys of what the head is, and is given."""
    scaled = {"scale_decoder_outputs": config.logit_multiplier != 1} if isinstance(config, EncoderDecoderSpec) else {}
    return {"tie_word_embeddings": config.tie_word_embeddings, **scaled}


def t5_config(config: EncoderDecoderSpec) -> dict[str, Any]:
    """The same of an encoder-decoder, read by hf_t5.hf_t5."""
    names = {ours: theirs for theirs, ours in reversed([*ACTIVATIONS.items()])}
    activation, gated = names[config.activation], GATED if config.gated else ""
    raw = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "feed_forward_proj": gated + ("gelu" if gated and activation == "gelu_new" else activation),
        **{theirs: getattr(config, ours) for theirs, ours in T5_NAMES.items()},
        "eos_token_id": list(config.eos_token_ids) or None,
        **head_config(config),
    }
    plain = hf_t5(raw, "the configuration").config
    beyond = {name: getattr(config, name) for name in T5_OWN if getattr(config, name) != getattr(plain, name)}
    if config.rope_scaling:
        beyond["rope_factor"] = config.rope_scaling.factor
    if config.dtypes != Dtypes():
        beyond["dtypes"] = {name: value for name, value in asdict(config.dtypes).items() if value is not None}
    return {**raw, OWN: beyond} if beyond else raw


def beyond_hf(config: ModelSpec) -> list[str]:
    """Which fields give a model that transformers has no class for."""
    return _beyond(config, _family(config))


def joined_in_hf(config: ModelSpec) -> bool:
    """Whether transformers joins, stacks or orders this model's matrices in its own way."""
    return _family(config).layout != Layout()


def _family(config: ModelSpec) -> Family:
    """The first whose config.json says most of it."""
    return min(FAMILIES.values(), key=lambda family: len(_beyond(config, family)))


def _beyond(config: ModelSpec, family: Family) -> list[str]:
    """Fields that this family's config.json cannot say; all, where it cannot be such a model at all."""
    names = [each.name for each in fields(ModelSpec) if each.name not in ("dtypes", "quantization")]
    try:
        read = hf(_plain(config, family), "the configuration").config
    except ConfigError:
        return names
    return [name for name in names if getattr(read, name) != getattr(config, name)]


def _plain(config: ModelSpec, family: Family) -> dict[str, Any]:
    architecture = family.architecture or family.name.capitalize()
    own = family.write(config)
    scaling = config.rope_scaling and _rope(config.rope_scaling, config.max_position_embeddings)
    rope = {**(scaling or {}), **own.get("rope_scaling", {})}
    part = {PART: config.rotary_dim / config.head_dim} if config.rotary_dim else {}
    return {
        "architectures": [f"{architecture}{CLASSES[config.head]}"],
        "model_type": family.name,
        **{name: getattr(config, name) for name in SAME_NAME},
        "eos_token_id": list(config.eos_token_ids) or None,  # an absent one has a default
        "hidden_act": "silu",
        **({"output_hidden_states": True} if config.return_hidden_states else {}),
        **part,
        **({"num_labels": config.num_labels} if config.num_labels else {}),
        **own,
        "rope_scaling": rope or ({"rope_type": "default"} if family.defaults.keys() & set(ROPES) else None),
    }


def _labels(labels: Labels) -> dict[str, Any]:
    named = {"id2label": {str(id): name for id, name in enumerate(labels.names)}}
    return named | ({"problem_type": labels.problem} if labels.problem else {})


def _rope(scaling: RopeScaling, context: int) -> Mapping[str, Any]:
    """GGUF's bare factors are longrope's, the same for every length."""
    if scaling.kind == "factors":
        original, factors = {"original_max_position_embeddings": context}, list(scaling.factors)
        same = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
        return {**same, **original, "short_factor": factors, "long_factor": factors}
    named = {name: getattr(scaling, name) for name in ROPE_FIELDS[scaling.kind]}
    said = {name: value for name, value in named.items() if value is not None and (value or name == "truncate")}
    return {"rope_type": scaling.kind} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in said.items()
    }
