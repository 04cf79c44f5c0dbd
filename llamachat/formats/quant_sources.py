"""Quantization settings of Hugging Face (bitsandbytes, MXFP4), MindFormers and our own checkpoints -> QuantConfig."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from llamachat.core.spec import QuantConfig
from llamachat.formats.prequantized.schemes import BITSANDBYTES, MXFP4, OURS, OWN, SCHEMES
from llamachat.system.metadata import Fields, naming


def quantization(raw: Mapping[str, Any], where: str) -> QuantConfig | None:
    """The QuantConfig that a quantization_config or quant_config means; None when it quantizes nothing.

    Raises ConfigError on an unknown method, and on options that would change results in a way that is not supported.
    """
    fields = Fields(raw, where)
    methods = {
        OURS.method: _ours,
        BITSANDBYTES.method: _bitsandbytes,
        MXFP4.method: _mxfp4,
        **dict.fromkeys(("rtn", "ptq", "smooth_quant"), _mindformers),
    }
    old_bitsandbytes = "load_in_4bit" in raw or "load_in_8bit" in raw  # older files do not name the method
    read = fields.choice("quant_method", methods, BITSANDBYTES.method if old_bitsandbytes else None)
    with naming(where):
        return read(fields)


def _ours(fields: Fields) -> QuantConfig:
    group, kv_bits = fields.get("group_size"), fields.get("kv_bits")
    config = QuantConfig(fields.choice("scheme", {name: name for name in OWN}), group, kv_bits, fields.strings("skip"))
    # the tensors say it themselves:
    fields.finish(("codebook", "double_quant", "head", "embedding", "overrides", "skip_modules"))
    return config


def _bitsandbytes(fields: Fields) -> QuantConfig | None:
    """BitsAndBytesConfig. Matrices that its tensors show to be quantized are; `skip` defaults to the head, as there."""
    four, eight = fields.flag("load_in_4bit", False), fields.flag("load_in_8bit", False)
    theirs = {name: scheme for name, scheme in SCHEMES.items() if scheme.storage is BITSANDBYTES}
    kinds = {scheme.codebook: name for name, scheme in theirs.items() if scheme.codebook}
    kind = fields.choice("bnb_4bit_quant_type", kinds, "fp4")
    skip = fields.strings("llm_int8_skip_modules", ("lm_head",))
    fields.neutral("llm_int8_has_fp16_weight", False)
    fields.finish(
        (
            "_load_in_4bit",  # repetitions of load_in_4bit and load_in_8bit
            "_load_in_8bit",
            "bnb_4bit_compute_dtype",  # the engine's choice
            "bnb_4bit_quant_storage",  # how the tensors are stored, which they say themselves
            "bnb_4bit_use_double_quant",
            "llm_int8_enable_fp32_cpu_offload",
            "llm_int8_threshold",  # splits off activations too large for int8; ours stay float
        )
    )
    if four and eight:
        fields.refuse("load_in_8bit", "false, as load_in_4bit is true")
    return QuantConfig(kind if four else "bnb-int8", skip=skip) if four or eight else None


def _mxfp4(fields: Fields) -> QuantConfig:
    """Which tensors are packed, they say themselves."""
    fields.finish(("modules_to_not_convert", "dequantize"))
    return QuantConfig(MXFP4.method)


# Of MindFormers' options, those that have no effect on weights and activations as they are used here.
MINDFORMERS_NO_EFFECT = {
    "mode": "quantize or deploy: which of its own checkpoints to expect",
    "backend": "the hardware",
    "act_quant_granularity": "only matters with quantized activations, which are refused",
    "kvcache_quant_granularity": "scales of an int8 cache are found at run time, per token and head",
    "weight_quant_granularity": "per_channel or per_group: group_size decides",
}


# Its names for the parts of a module's name; those of Hugging Face, which are ours, are understood as well.
MINDFORMERS_MODULES = {
    **{own: (own,) for own in ("model", "layers", "lm_head", "self_attn", "mlp", "embed_tokens")},
    **{own: (own,) for own in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
    "attention": ("self_attn",),
    "feed_forward": ("mlp",),
    "tok_embeddings": ("embed_tokens",),
    "wq": ("q_proj",),
    "wk": ("k_proj",),
    "wv": ("v_proj",),
    "wo": ("o_proj",),
    "w_qkv": ("q_proj", "k_proj", "v_proj"),
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "w_gate_hidden": ("gate_proj", "up_proj"),
}


def _mindformers(fields: Fields) -> QuantConfig | None:
    """RtnConfig, PtqConfig and SmoothQuantConfig, as far as they quantize weights or the cache.

    group_size 0, one scale per row there, means the scheme's own groups, which are finer. Activations in int8, and the
    smoothing that makes them bearable, are a type to compute in: the engine's choice, as compute_dtype is. MindFormers
    itself refuses both with rtn.
    """
    bits = {"None": None, "int8": 8, "int4": 4, "qint4x2": 4}
    weight = fields.choice("weight_dtype", bits, "None" if "weight_dtype" in fields.raw else "int8")
    cache = fields.choice("kvcache_dtype", {"None": None, "int8": 8}, "None")
    computed = fields.get("quant_method") != "rtn"
    fields.neutral("activation_dtype", "None", *(["int8"] if computed else []))
    fields.neutral("outliers_suppression", "None", *(["smooth"] if computed else []))
    fields.neutral("algorithm_args", {})
    fields.neutral("layer_policies", {})
    gptq = fields.choice("precision_recovery", {"none": False, "None": False, "gptq": True}, "none")
    group = fields.whole("group_size", 0, 0, 2**16) or None
    skip = tuple(own for name in fields.strings("modules_to_not_convert") for own in _own_names(fields, name))
    fields.finish(MINDFORMERS_NO_EFFECT)
    if weight is None and cache is None:
        return None
    if weight is None:
        fields.refuse("weight_dtype", "int8 or int4; for an int8 cache alone use --kv-bits 8")
    if gptq and weight == 8:
        fields.refuse("precision_recovery", "none with int8 weights")
    return QuantConfig("int8" if weight == 8 else "int4-gptq" if gptq else "int4", group, 8 if cache else None, skip)


def _own_names(fields: Fields, name: str) -> list[str]:
    """MindFormers' name of modules, or a part of one -> ours; feed_forward.w2 -> mlp.down_proj."""
    parts = [MINDFORMERS_MODULES.get(part, (part,) if part.isdecimal() else ()) for part in name.split(".")]
    if not all(parts):
        fields.refuse("modules_to_not_convert", f"names of modules, as {', '.join(MINDFORMERS_MODULES)}")
    return [".".join(own) for own in product(*parts)]
