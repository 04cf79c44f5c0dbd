"""Other projects' configurations -> LlamaConfig. Pure functions over mappings.

Each function honours a key, or knows by name that it has no effect on what the model computes, or refuses it: a
setting that is silently dropped gives a model that is subtly wrong. MindFormers has its own module, mindformers.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from llamachat.checks import require, require_number, shown
from llamachat.core.spec import Dtype, Dtypes, LlamaConfig, RopeScaling, SamplingParams
from llamachat.errors import ConfigError
from llamachat.formats.quant_sources import quantization
from llamachat.system.metadata import Fields, names, naming


@dataclass(frozen=True)
class Translated:
    """What a configuration says."""

    config: LlamaConfig
    sampling: dict[str, Any]  # fields of SamplingParams that it sets
    ignored: tuple[str, ...]  # its keys that have no effect at inference
    max_length: int | None = None  # tokens of prompt and answer together, where it sets a limit


# Hugging Face ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """What a model_type implies: transformers' defaults for absent keys, and what is no option."""

    max_position_embeddings: int
    num_key_value_heads: int | None = None  # None: as many as query heads
    sliding_window: int | None = None  # None: there is none
    always_slides: bool = False  # in every layer; else where use_sliding_window and max_window_layers say so
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    qkv_bias: bool | None = None  # None: attention_bias decides over q, k, v and o


FAMILIES = {
    "llama": _Family(2048, bos_token_id=1, eos_token_id=2),
    "mistral": _Family(131072, 8, 4096, always_slides=True, bos_token_id=1, eos_token_id=2, qkv_bias=False),
    "qwen2": _Family(32768, 32, 4096, qkv_bias=True),
}

# Training, bookkeeping, other tasks' heads, or how (not what) transformers computes.
HF_NO_EFFECT = names(
    """
    _name_or_path _model_name_or_path architectures attention_dropout attn_implementation _attn_implementation
    _attn_implementation_autoset auto_map chunk_size_feed_forward classifier_dropout dtype embd_pdrop
    finetuning_task gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder
    is_llama_config keys_to_ignore_at_inference label2id max_sequence_length model_max_length num_labels
    output_attentions output_hidden_states output_scores prefix pretraining_tp problem_type resid_pdrop return_dict
    return_dict_in_generate task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript
    transformers_version transformers.js_config unk_token_id unsloth_fixed unsloth_version unsloth_version_info
    use_bfloat16 use_cache use_flash_attention use_flash_attn
    """
)

# Old writers put transformers' generation defaults into config.json; only other values than these mean something.
LEGACY_GENERATION: dict[str, tuple[object, ...]] = {
    "temperature": (1.0, 1, None),
    "top_k": (50, None),
    "top_p": (1.0, 1, None),
    "min_p": (0.0, 0, None),
    "repetition_penalty": (1.0, 1, None),
    "do_sample": (False, None),
}


def hf(raw: Mapping[str, Any], where: str) -> Translated:
    """Hugging Face's config.json of a llama, mistral or qwen2 model. Raises ConfigError, naming `where`."""
    fields = Fields(raw, where)
    family = fields.choice("model_type", FAMILIES)
    layers = fields.size("num_hidden_layers", "num_hidden_layers")
    hidden = fields.size("hidden_size", "hidden_size")
    heads = fields.size("num_attention_heads", "num_attention_heads")
    kv_heads = heads if "num_key_value_heads" in raw else family.num_key_value_heads or heads
    context = fields.size("max_position_embeddings", "max_position_embeddings", family.max_position_embeddings)
    theta, scaling = _rope(fields, context)
    window, full = _window(fields, family, layers)
    fields.choice("hidden_act", {"silu": None, "swish": None}, "silu")
    fields.neutral("partial_rotary_factor", 1.0, 1)
    fields.neutral("pruned_heads", {})
    for key in ("rope_interleaved", "use_mrope", "add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"):
        fields.neutral(key, False)
    attention_bias, quantized = _bias(fields, "attention_bias", family.qkv_bias), fields.inside("quantization_config")
    own = fields.inside(OWN)
    with naming(where):
        config = LlamaConfig(
            vocab_size=fields.size("vocab_size", "vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.size("intermediate_size", "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=fields.size("num_key_value_heads", "num_key_value_heads", kv_heads),
            head_dim=fields.whole("head_dim", 0, 1) or head_share(fields, hidden, heads),
            max_position_embeddings=context,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=attention_bias,
            attention_out_bias=attention_bias if family.qkv_bias is None else False,
            mlp_bias=_bias(fields, "mlp_bias", None if family.qkv_bias is None else False),
            sliding_window=window,
            full_attention_layers=full,
            bos_token_id=fields.token("bos_token_id", family.bos_token_id),
            eos_token_ids=fields.tokens("eos_token_id", family.eos_token_id),
            pad_token_id=fields.token("pad_token_id"),
            quantization=quantization(quantized.raw, quantized.where) if quantized else None,
        )
    _refuse_other_ways(fields)
    legacy = {key: fields.get(key) for key, neutral in LEGACY_GENERATION.items() if raw.get(key) not in neutral}
    ignored = fields.finish(HF_NO_EFFECT | GENERATION_NO_EFFECT | (LEGACY_GENERATION.keys() - legacy.keys()))
    translated = Translated(config, generation(legacy, where), ignored)
    return _extended(translated, own) if own else translated


def head_share(fields: Fields, hidden: int, heads: int) -> int:
    """The hidden size shared out among the heads."""
    if hidden % heads:
        raise ConfigError(f"{fields.where}: {heads} heads do not divide a width of {hidden}", "it cannot be built")
    return hidden // heads


def _bias(fields: Fields, key: str, fixed: bool | None) -> bool:
    """A bias that the key switches, unless the family has it fixed; then the key may only say the same."""
    if fixed is None:
        return fields.flag(key, False)
    fields.neutral(key, fixed)
    return fixed


def _window(fields: Fields, family: _Family, layers: int) -> tuple[int | None, int]:
    """(sliding window, number of first layers that ignore it)."""
    window: int | None = fields.whole("sliding_window", 0, 1) or None
    full = min(fields.whole("max_window_layers", 28), layers)
    if family.sliding_window is None:
        fields.neutral("sliding_window")
    elif "sliding_window" not in fields.raw:  # which is not the same as null
        window = family.sliding_window
    if family.always_slides:
        fields.neutral("use_sliding_window", True)
        full = 0
    elif not fields.flag("use_sliding_window", False):
        window = None
    kinds = fields.strings("layer_types")
    if kinds and window and not family.always_slides:
        full = (*kinds, "sliding_attention").index("sliding_attention")
    if window is None or full >= layers:
        window, full = None, 0
    expected = ["sliding_attention" if window and layer >= full else "full_attention" for layer in range(layers)]
    if kinds and list(kinds) != expected:
        fields.refuse("layer_types", "full_attention for the first layers and sliding_attention for the rest")
    return window, full


def _rope(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from rope_theta and rope_scaling, or from transformers 5's rope_parameters, which holds both."""
    theta = fields.number("rope_theta", 10000.0)
    original = fields.whole("original_max_position_embeddings", 0, 1) or None
    keys = [key for key in ("rope_parameters", "rope_scaling") if fields.inside(key)]
    found: list[tuple[float, RopeScaling | None]] = []
    for key in keys:  # a theta that the second does not name is the first's
        found.append(_rope_of(fields, key, found[0][0] if found else theta, context, original))
    if len(set(found)) > 1:
        new, old = (f"{key} is {shown(fields.raw[key])}" for key in keys)
        raise ConfigError(f"{fields.where}: {new}, but {old}", "they contradict each other", "remove the wrong one")
    return found[0] if found else (theta, None)


def _rope_of(
    fields: Fields, key: str, theta: float, context: int, original: int | None
) -> tuple[float, RopeScaling | None]:
    inner = fields.inside(key)
    assert inner is not None
    theta = inner.number("rope_theta", theta)
    inner.neutral("partial_rotary_factor", 1.0, 1)
    scaling = _rope_scaling(inner, context, original)
    inner.finish(("finetuned",))
    return theta, scaling


ROPE_KINDS = {kind: kind for kind in ("default", "linear", "dynamic", "yarn", "longrope", "llama3")} | {
    "su": "longrope"
}


def _rope_scaling(fields: Fields, context: int, original: int | None) -> RopeScaling | None:
    """The scaling of a mapping with rope_type (or type); `original` overrides its original_max_position_embeddings."""
    kind = fields.choice("rope_type" if fields.get("rope_type") is not None else "type", ROPE_KINDS, "default")
    if fields.get("type") is not None and fields.choice("type", ROPE_KINDS) != kind:
        fields.refuse("type", "the same as rope_type")
    if kind == "default":
        return None
    given = original or fields.get("original_max_position_embeddings") is not None
    inner = fields.whole("original_max_position_embeddings", context, 1)
    original = original or inner
    factor = fields.number("factor", max(context / original, 1e-6) if kind in ("yarn", "longrope") else None)
    with naming(fields.where):
        match kind:
            case "linear":
                return RopeScaling("linear", factor)
            case "dynamic":
                return RopeScaling("dynamic", factor, original if given else 0)
            case "llama3":
                low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
                return RopeScaling("llama3", factor, original, low, high)
        attention = fields.number("attention_factor") if fields.get("attention_factor") is not None else None
        if kind == "longrope":
            short, long = fields.numbers("short_factor"), fields.numbers("long_factor")
            return RopeScaling.longrope(factor, original, attention, short, long)
        return RopeScaling(
            "yarn",
            factor,
            original,
            beta_fast=fields.number("beta_fast", 0) or 32.0,
            beta_slow=fields.number("beta_slow", 0) or 1.0,
            truncate=fields.flag("truncate", True),
            mscale=fields.number("mscale", 0),
            mscale_all_dim=fields.number("mscale_all_dim", 0),
            attention_factor=attention,
        )


# Our own converted models --------------------------------------------------------------------------------------------

OWN = "llamachat"  # in the config.json of a converted model: what Hugging Face's keys cannot say of it
BIASES = ("qkv_bias", "attention_out_bias", "mlp_bias")


def _extended(told: Translated, own: Fields) -> Translated:
    """With what stands under OWN, which goes before the rest."""
    config, quantized = told.config, told.config.quantization
    biases: dict[str, Any] = {name: own.flag(name, getattr(config, name)) for name in BIASES}
    window = own.whole("sliding_window", config.sliding_window or 0) or None
    full = own.whole("full_attention_layers", config.full_attention_layers)
    if quantized is None:
        own.neutral("kv_bits")
    with naming(own.where):
        config = replace(
            config,
            **biases,
            sliding_window=window,
            full_attention_layers=full,
            dtypes=_dtypes(own.inside("dtypes")),
            quantization=quantized and replace(quantized, kv_bits=own.get("kv_bits") or quantized.kv_bits),
        )
    seed = {"seed": own.whole("seed", high=2**64 - 1)} if own.get("seed") is not None else {}
    length = own.whole("max_length", 0) or None
    own.finish(())
    return Translated(config, {**told.sampling, **seed}, told.ignored, length)


def _dtypes(fields: Fields | None) -> Dtypes:
    if fields is None:
        return Dtypes()
    known = {dtype: dtype for dtype in get_args(Dtype)}
    names = [each.name for each in dataclasses.fields(Dtypes)]
    given = {name: fields.choice(name, known) for name in names if fields.get(name) is not None}
    fields.finish(())
    return Dtypes(**given)


# generation_config.json -----------------------------------------------------------------------------------------------

# What would choose other tokens and is not offered, with the values at which it does nothing.
GENERATION_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("num_beams", "num_beam_groups", "typical_p", "encoder_repetition_penalty", "guidance_scale"), (1, 1.0)
    ),
    **dict.fromkeys(("penalty_alpha", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"), (0, 0.0)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "force_words_ids"), ([],)),
    **dict.fromkeys(("constraints", "sequence_bias", "dola_layers", "stop_strings", "watermarking_config"), ([], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "top_h"), ()),
}
# Beam search, encoders, several answers at once, lengths: old config.json files repeat their settings.
GENERATION_NO_EFFECT = names(
    """
    cross_attention_hidden_size decoder_start_token_id diversity_penalty early_stopping encoder_no_repeat_ngram_size
    length_penalty max_length max_new_tokens num_return_sequences remove_invalid_values sep_token_id
    """
)


def _refuse_other_ways(fields: Fields) -> None:
    for key, values in GENERATION_NEUTRAL.items():
        fields.neutral(key, *values)


def generation(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of SamplingParams that a generation_config.json sets; do_sample false is temperature 0.

    Lengths, caches and output options have no say here: an answer ends with its turn. Raises ConfigError on values that
    cannot be, and on ways of choosing tokens that are not offered.
    """
    fields = Fields(raw, where)
    _refuse_other_ways(fields)
    plain = ("temperature", "top_p", "min_p", "repetition_penalty")
    sampling: dict[str, Any] = {name: fields.number(name) for name in plain if raw.get(name) is not None}
    if raw.get("top_k") is not None:
        sampling["top_k"] = max(fields.whole("top_k", low=-1), 0)  # vLLM's -1 and transformers' 0 both mean no limit
    if not fields.flag("do_sample", True):
        sampling["temperature"] = 0.0
    with naming(where):
        SamplingParams(**sampling)
    return sampling


def eos_ids(raw: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ids that end a sequence or turn in a config.json or generation_config.json."""
    return Fields(raw, where).tokens("eos_token_id")


# Meta and lit-llama ---------------------------------------------------------------------------------------------------


def meta(params: Mapping[str, Any], where: str, vocab_size: int) -> Translated:
    """Meta's params.json; `vocab_size`, from the weights, stands in for Llama 1's and 2's -1. Raises ConfigError.

    As in Meta's llama_models: use_scaled_rope means a factor of 8 unless the file has another, also for Llama 3.2.
    """
    fields = Fields(params, where)
    for key in ("quantization_args", "lora_args", "vision_model", "moe_args"):
        fields.neutral(key)
    fields.neutral("vision_num_cross_attention_layers", -1)
    hidden, heads = fields.size("dim", "hidden_size"), fields.size("n_heads", "num_attention_heads")
    multiplier = fields.number("ffn_dim_multiplier", 0) or 1.0
    require_number(f"{where}: ffn_dim_multiplier", multiplier, 1e-6, 1e6)
    theta = fields.number("rope_theta", 10000.0)  # Llama 1 and 2 do not name it, Llama 3 does
    eps, kv_heads = fields.number("norm_eps", 1e-5), fields.size("n_kv_heads", "num_key_value_heads", heads)
    given = fields.whole("vocab_size", -1, -1)
    require(given != 0, f"{where}: vocab_size", given, "-1, or the number of tokens")
    layers, scaling = fields.size("n_layers", "num_hidden_layers"), _meta_rope(fields)
    with naming(where):
        config = LlamaConfig(
            vocab_size=given if given > 0 else vocab_size,
            hidden_size=hidden,
            intermediate_size=feed_forward(fields, int(int(2 * 4 * hidden / 3) * multiplier), 256),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_share(fields, hidden, heads),
            max_position_embeddings=fields.size("max_seq_len", "max_position_embeddings", _trained_context(fields)),
            rms_norm_eps=eps,
            rope_theta=theta,
            rope_scaling=scaling,
        )
    ignored = fields.finish(("max_batch_size", "model_parallel_size", "vision_chunk_size", "vision_max_num_chunks"))
    return Translated(config, {}, ignored)


def feed_forward(fields: Fields, width: int, multiple: int) -> int:
    """A feed-forward width rounded up to `multiple_of` (or its default)."""
    multiple = fields.whole("multiple_of", multiple, 1, 2**20)
    return -(-width // multiple) * multiple


def _meta_rope(fields: Fields) -> RopeScaling | None:
    factor, high = fields.number("rope_scaling_factor", 8), fields.number("rope_high_freq_factor", 4)
    if not fields.flag("use_scaled_rope", False):
        return None
    with naming(fields.where):
        return RopeScaling("llama3", factor, original_max_position_embeddings=8192, high_freq_factor=high)


def _trained_context(fields: Fields) -> int:
    """No params.json names the context that the model was trained on, but what tells the releases apart is in it."""
    if fields.flag("use_scaled_rope", False):
        return 131072  # Llama 3.1 and later
    if (theta := fields.number("rope_theta", 10000.0)) > 10000:
        return 8192 if theta <= 500000 else 16384  # Llama 3, Code Llama
    large1 = fields.get("n_layers") == 80 and fields.get("n_kv_heads") is None
    return 2048 if large1 or fields.number("norm_eps", 1e-5) < 1e-5 else 4096  # Llama 1, Llama 2


def lit(raw: Mapping[str, Any], where: str) -> Translated:
    """lit-llama's LLaMAConfig; absent keys have its defaults. Raises ConfigError."""
    fields = Fields(raw, where)
    hidden, heads = fields.size("n_embd", "hidden_size", 4096), fields.size("n_head", "num_attention_heads", 32)
    padded = -(-fields.size("vocab_size", "vocab_size", 32000) // 64) * 64
    with naming(where):
        config = LlamaConfig(
            vocab_size=fields.size("padded_vocab_size", "vocab_size", padded),
            hidden_size=hidden,
            intermediate_size=-(-int(2 * 4 * hidden / 3) // 256) * 256,
            num_hidden_layers=fields.size("n_layer", "num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_share(fields, hidden, heads),
            max_position_embeddings=fields.size("block_size", "max_position_embeddings", 2048),
            rms_norm_eps=1e-5,
        )
    return Translated(config, {}, fields.finish(()))
