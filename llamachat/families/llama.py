"""LLaMA, Llama 2 and 3, TinyLlama, SmolLM2 (arXiv 2302.13971, 2307.09288, 2407.21783); in GGUF files Mistral and Mixtral too."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import (
    Changes,
    Family,
    Gguf,
    Key,
    Layout,
    attention_bias,
    gguf_experts,
    has_attention_bias,
    no_window,
)
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    return attention_bias(fields) | {"mlp_bias": fields.flag("mlp_bias", False)} | no_window(fields, layers)


def write(spec: ModelSpec) -> Changes:
    return has_attention_bias(spec) | {"mlp_bias": spec.mlp_bias}


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return gguf_experts(own, key) | {"sliding_window": own.whole(key("attention.sliding_window"), 0) or None}


FAMILY = Family(
    "llama",
    read,
    write,
    {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    gguf=Gguf("llama", Layout(interleaved=True), read=read_gguf),
)
