"""Ministral 3 (https://huggingface.co/mistralai): YaRN, and queries that grow with their position beyond its original length."""

from llamachat.core.spec import ModelSpec, QueryScale
from llamachat.families.family import Changes, Family, Gguf, Key, Layout, always_slides, gguf_experts
from llamachat.system.metadata import Fields

BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", False)
    rope = next(inner for key in ("rope_parameters", "rope_scaling") if (inner := fields.inside(key)))
    beta = rope.number(BETA, 0)
    scale = QueryScale(beta, rope.whole(ORIGINAL, low=1)) if beta else None
    return {"query_scale": scale} | always_slides(fields, layers, None)


def write(spec: ModelSpec) -> Changes:
    rope = {BETA: spec.query_scale.beta, ORIGINAL: spec.query_scale.original} if spec.query_scale else {}
    return {"sliding_window": spec.sliding_window, "rope_scaling": rope}


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    """Also Mistral Small 3.1's and later, which have neither YaRN nor the scale."""
    context = own.size(key("context_length"), "max_position_embeddings")
    original = own.whole(key("rope.scaling.original_context_length"), context, 1)
    beta = own.number(key("attention.temperature_scale"), 0)
    return gguf_experts(own, key) | {"query_scale": QueryScale(beta, original) if beta else None}


FAMILY = Family(
    "ministral3",
    read,
    write,
    {
        "vocab_size": 131072,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            ORIGINAL: 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            BETA: 0.1,
        },
    },
    rope_no_effect=frozenset({BETA, ORIGINAL, "max_position_embeddings"}),
    gguf=Gguf("mistral3", Layout(interleaved=True), read=read_gguf),
)
