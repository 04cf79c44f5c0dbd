"""Hugging Face's config.json and generation_config.json -> spec and sampling. Pure functions over mappings."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Dtype, Dtypes, HeadKind, LayerType, ModelSpec
from llamachat.errors import ConfigError
from llamachat.families import FAMILIES, WITH_PICTURES
from llamachat.families.family import Family, first_full, layer_types
from llamachat.formats import labels as headed
from llamachat.formats.hf_rope import ROPES, rope_fields
from llamachat.formats.quant_sources import quantization
from llamachat.formats.translated import Translated, head_share
from llamachat.system.metadata import Fields, names, naming

# Training, bookkeeping, or how (not what) transformers computes.
HF_NO_EFFECT = names(
    """
    _name_or_path _model_name_or_path attention_dropout attn_implementation _attn_implementation
    _attn_implementation_autoset auto_map chunk_size_feed_forward classifier_dropout dtype embd_pdrop
    finetuning_task gradient_checkpointing hidden_dropout hidden_dropout_prob initializer_range is_decoder
    is_llama_config keys_to_ignore_at_inference max_sequence_length model_max_length
    output_attentions output_scores prefix pretraining_tp resid_pdrop return_dict
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


# Of a model that sees pictures too, what is said outside its text_config; it has the last word, on its head the only one.
SHARED = (
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "dtype", "torch_dtype",
)  # fmt: skip


HEADED = ("architectures", *headed.KEYS)
KNOWN = FAMILIES | {name: FAMILIES[inner] for name, inner in WITH_PICTURES.items()}


def hf(raw: Mapping[str, Any], where: str, head: HeadKind | None = None) -> Translated:
    """config.json of a model of FAMILIES; `head`: which the weights show, where it names no class that has it. Raises
    ConfigError, naming `where`."""
    given, unread = text_part(raw, where)
    family = Fields(given, where).choice("model_type", KNOWN)
    fields = Fields(_with_defaults(given, family), where)
    fields.get("model_type")
    layers = fields.size("num_hidden_layers", "num_hidden_layers")
    hidden = fields.size("hidden_size", "hidden_size")
    heads = fields.size("num_attention_heads", "num_attention_heads")
    context = fields.size("max_position_embeddings", "max_position_embeddings")
    head_dim = fields.whole("head_dim", 0, 1) or head_share(fields, hidden, heads)
    activation = fields.choice(family.activation_key, family.activations, next(iter(family.activations)))
    fields.neutral("pruned_heads", {})
    for key in ("rope_interleaved", "use_mrope", "add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"):
        fields.neutral(key, False)
    quantized = fields.inside("quantization_config")
    own = fields.inside(OWN)
    named = headed.head_kind(fields)
    labels = headed.read_labels(fields, head := head or named)
    with naming(where):
        ways = {"hidden_act": activation} | rope_fields(fields, family, context, head_dim) | family.read(fields, layers)
        if ways["sliding_window"] is None:
            ways["sliding_rope"] = None
        if labels:  # whose logits transformers neither scales nor caps
            ways |= {"num_labels": len(labels.names), "logit_multiplier": 1.0, "logit_softcap": None}
        config = ModelSpec(
            head=head,
            vocab_size=fields.size("vocab_size", "vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.size("intermediate_size", "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=fields.size("num_key_value_heads", "num_key_value_heads", heads),
            head_dim=head_dim,
            max_position_embeddings=context,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            bos_token_id=fields.token("bos_token_id"),
            eos_token_ids=fields.tokens("eos_token_id"),
            pad_token_id=fields.token("pad_token_id"),
            return_hidden_states=fields.flag("output_hidden_states", False),
            quantization=quantization(quantized.raw, quantized.where) if quantized else None,
            **ways,
        )
    sampling, without = finished(fields, (frozenset() if labels else headed.KEYS) | family.no_effect)
    ignored = tuple(key for key in without if key in given)
    translated = Translated(config, sampling, ignored + unread, layout=family.layout, labels=labels)
    return _extended(translated, own) if own else translated


def finished(fields: Fields, no_effect: frozenset[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a config.json says of sampling, and those of its keys that have no effect; `no_effect`: of its family's own."""
    _refuse_other_ways(fields)
    legacy = {key: fields.get(key) for key, neutral in LEGACY_GENERATION.items() if fields.raw.get(key) not in neutral}
    without = HF_NO_EFFECT | GENERATION_NO_EFFECT | no_effect | (LEGACY_GENERATION.keys() - legacy.keys())
    return generation(legacy, fields.where), fields.finish(without)


def text_part(raw: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The configuration of a text model, and what is left of one that sees pictures too: keys that the text needs not."""
    inner = WITH_PICTURES.get(str(raw.get("model_type")))
    if inner is None:
        return raw, ()
    text = Fields(raw, where).inside("text_config")
    if text is None:
        raise ConfigError(f"{where} has no text_config", "there is no text model to build")
    shared = {key: raw[key] for key in (*SHARED, *HEADED) if raw.get(key) is not None}
    said = {key: value for key, value in text.raw.items() if key not in HEADED}
    unread = tuple(key for key in raw if key not in (*SHARED, *HEADED, "text_config"))
    return {"model_type": inner} | said | shared, unread


def _with_defaults(given: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """With what transformers takes for absent keys; a RoPE scaling has two names."""
    rope = any(given.get(key) is not None for key in ROPES)
    return {key: value for key, value in family.defaults.items() if not (rope and key in ROPES)} | dict(given)


# Our own converted models --------------------------------------------------------------------------------------------

OWN = "llamachat"  # in the config.json of a converted model: what Hugging Face's keys cannot say of it
BIASES = ("qkv_bias", "attention_out_bias", "mlp_bias")


def _extended(told: Translated, own: Fields) -> Translated:
    """With what stands under OWN, which goes before the rest."""
    config, quantized = told.config, told.config.quantization
    biases: dict[str, Any] = {name: own.flag(name, getattr(config, name)) for name in BIASES}
    window = own.whole("sliding_window", config.sliding_window or 0) or None
    types = _layer_types(own, config)
    if quantized is None:
        own.neutral("kv_bits")
    with naming(own.where):
        config = replace(
            config,
            **biases,
            sliding_window=window,
            layer_types=types,
            norm_offset=own.number("norm_offset", config.norm_offset),
            dtypes=dtypes(own.inside("dtypes")),
            quantization=quantized and replace(quantized, kv_bits=own.get("kv_bits") or quantized.kv_bits),
        )
    seed = {"seed": own.whole("seed", high=2**64 - 1)} if own.get("seed") is not None else {}
    length = own.whole("max_length", 0) or None
    pooling = own.text("pooling", "") or None
    own.finish(())
    return replace(told, config=config, sampling={**told.sampling, **seed}, max_length=length, pooling=pooling)


def _layer_types(own: Fields, config: ModelSpec) -> tuple[LayerType, ...]:
    """Which layers slide; models that were converted long ago name how many of the first do not."""
    full, given = own.whole("full_attention_layers", -1, -1), layer_types(own)
    return given or (config.layer_types if full < 0 else first_full(config.num_hidden_layers, full))


def dtypes(fields: Fields | None) -> Dtypes:
    """What stands under "dtypes" there."""
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
