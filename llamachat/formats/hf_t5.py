"""config.json of T5 and mT5 -> spec; what Megatron-core's variant has besides stands under a key of ours when it is converted."""

from collections.abc import Mapping
from typing import Any, get_args

from llamachat.core.spec import RopeScaling
from llamachat.families.t5 import EncoderDecoderSpec, Inner, NormKind, Positions
from llamachat.formats.hf_config import OWN, dtypes, finished
from llamachat.formats.labels import CLASSES, KEYS
from llamachat.formats.quant_sources import quantization
from llamachat.formats.translated import Translated
from llamachat.system.metadata import Fields, names, naming

COMMON: dict[str, Any] = {
    "d_model": 512,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "n_positions": 512,  # of the texts that T5 was made with; nothing is bound by it
    "pad_token_id": 0,
    "eos_token_id": 1,
}
DEFAULTS: dict[str, dict[str, Any]] = {  # transformers', for absent keys
    "t5": COMMON | {"vocab_size": 32128, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"},
    "mt5": COMMON
    | {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    | {"decoder_start_token_id": 0},
}
GATED = "gated-"
ACTIVATIONS: Mapping[str, Inner] = {  # transformers' names of functions
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "swish": "silu",
}
NO_EFFECT = names("dropout_rate initializer_factor output_past")
FLAGS = ("qkv_bias", "attention_out_bias", "mlp_bias", "head_bias")  # under OWN, with the fields below
OTHER_CLASSES = ("EncoderModel", *(CLASSES[kind] for kind in ("sequence_labels", "token_labels", "span")))


def hf_t5(raw: Mapping[str, Any], where: str) -> Translated:
    """Raises ConfigError, naming `where`."""
    kind = Fields(raw, where).choice("model_type", {name: name for name in DEFAULTS})
    fields = Fields(DEFAULTS[kind] | dict(raw), where)
    fields.get("model_type")
    activation, gated = _activation(fields)
    _refuse_other_classes(fields)
    fields.neutral("is_encoder_decoder", True)
    fields.neutral("encoder_no_repeat_ngram_size", 0)
    fields.neutral("output_hidden_states", False)
    quantized, own = fields.inside("quantization_config"), fields.inside(OWN)
    heads, layers = fields.size("num_heads", "num_attention_heads"), fields.size("num_layers", "num_hidden_layers")
    hidden = fields.size("d_model", "hidden_size")
    ways: dict[str, Any] = {"activation": activation, "gated": gated, "attention_scale": 1.0}
    ways["logit_multiplier"] = hidden**-0.5 if _scales(fields, kind) else 1.0
    beyond, seed, length = _beyond(own, ways) if own else (ways, {}, None)
    with naming(where):
        config = EncoderDecoderSpec(
            vocab_size=fields.size("vocab_size", "vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.size("d_ff", "intermediate_size"),
            num_hidden_layers=fields.size("num_decoder_layers", "num_hidden_layers", layers),
            encoder_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=fields.size("d_kv", "head_dim"),
            max_position_embeddings=fields.size("n_positions", "max_position_embeddings"),
            rms_norm_eps=fields.number("layer_norm_epsilon"),
            relative_buckets=fields.whole("relative_attention_num_buckets"),
            relative_distance=fields.whole("relative_attention_max_distance"),
            tie_word_embeddings=True,  # unless the weights say otherwise, as in transformers
            decoder_start_token_id=fields.whole("decoder_start_token_id"),
            bos_token_id=fields.token("bos_token_id"),
            eos_token_ids=fields.tokens("eos_token_id"),
            pad_token_id=fields.token("pad_token_id"),
            quantization=quantization(quantized.raw, quantized.where) if quantized else None,
            **beyond,
        )
    sampling, ignored = finished(fields, NO_EFFECT | KEYS | {"architectures"})
    ignored = tuple(key for key in ignored if key in raw and key != "decoder_start_token_id")
    return Translated(config, sampling | seed, ignored, length)


def _refuse_other_classes(fields: Fields) -> None:
    """Those of an encoder alone, and of heads that classify."""
    given = fields.get("architectures")
    for name in given if isinstance(given, list) else ():
        if isinstance(name, str) and name.endswith(OTHER_CLASSES):
            fields.refuse("architectures", "a class that answers a source, as T5ForConditionalGeneration")


def _activation(fields: Fields) -> tuple[Inner, bool]:
    """T5 v1.1's "gated-gelu" means the tanh approximation, "gated-" and "gelu" of others the exact one."""
    known = {prefix + name: (name, prefix != "") for prefix in ("", GATED) for name in ACTIVATIONS}
    known[f"{GATED}gelu"] = "gelu_new", True
    name, gated = fields.choice("feed_forward_proj", known)
    fields.neutral("dense_act_fn", name)  # what transformers makes of it, and writes along
    fields.neutral("is_gated_act", gated)
    return ACTIVATIONS[name], gated


def _scales(fields: Fields, kind: str) -> bool:
    """Whether what the head gets is scaled: of T5 where embeddings are tied by the file's word, and never of mT5."""
    tied = fields.flag("tie_word_embeddings", True)
    return fields.flag("scale_decoder_outputs", tied) and kind == "t5"


def _beyond(own: Fields, ways: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """`ways` with what stands under OWN, which goes before the rest; a seed; and the longest text."""
    found: dict[str, Any] = {**ways, **{name: own.flag(name, False) for name in FLAGS}}
    for name, kinds in (("activation", Inner), ("positions", Positions), ("norm_kind", NormKind)):
        if own.get(name) is not None:
            found[name] = own.choice(name, {kind: kind for kind in get_args(kinds)})
    for name in ("attention_scale", "rope_theta"):
        if own.get(name) is not None:
            found[name] = own.number(name)
    if own.get("rotary_dim") is not None:
        found["rotary_dim"] = own.whole("rotary_dim")
    if own.get("rope_factor") is not None:
        with naming(own.where):
            found["rope_scaling"] = RopeScaling("linear", own.number("rope_factor"))
    found["dtypes"] = dtypes(own.inside("dtypes"))
    seed = {"seed": own.whole("seed", high=2**64 - 1)} if own.get("seed") is not None else {}
    length = own.whole("max_length", 0) or None
    own.finish(())
    return found, seed, length
