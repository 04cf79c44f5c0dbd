"""Granite 3 (https://github.com/ibm-granite): four scalars, on embedding, residual, scores and logits."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import (
    Changes,
    Family,
    Gguf,
    Key,
    Layout,
    attention_bias,
    factor,
    has_attention_bias,
    no_window,
)
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    biases = attention_bias(fields) | {"mlp_bias": fields.flag("mlp_bias", False)}
    scalars = {
        "embedding_multiplier": factor(fields, "embedding_multiplier"),
        "residual_multiplier": factor(fields, "residual_multiplier"),
        "attention_scale": factor(fields, "attention_multiplier"),
        "logit_multiplier": 1 / factor(fields, "logits_scaling"),
    }
    return biases | scalars | no_window(fields, layers)


def write(spec: ModelSpec) -> Changes:
    return has_attention_bias(spec) | {
        "mlp_bias": spec.mlp_bias,
        "embedding_multiplier": spec.embedding_multiplier,
        "residual_multiplier": spec.residual_multiplier,
        "attention_multiplier": spec.attention_scale or spec.head_dim**-0.5,
        "logits_scaling": 1 / spec.logit_multiplier,
    }


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    own.neutral(key("expert_count"), 0)
    return {
        "embedding_multiplier": own.number(key("embedding_scale"), 0) or 1.0,
        "residual_multiplier": own.number(key("residual_scale"), 0) or 1.0,
        "attention_scale": own.number(key("attention.scale"), 0) or None,
        "logit_multiplier": 1 / (own.number(key("logit_scale")) or 1.0),
    }


FAMILY = Family(
    "granite",
    read,
    write,
    {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    gguf=Gguf("granite", Layout(interleaved=True), read=read_gguf),
)
