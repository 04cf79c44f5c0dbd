"""Qwen3 (arXiv 2505.09388): RMSNorm of each head's query and key, and no biases; the last layers may have a sliding window."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import Changes, Family, Gguf, attention_bias, has_attention_bias, may_slide, slides
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("mlp_bias", False)
    return {"qk_norm": "head"} | attention_bias(fields) | may_slide(fields, layers, 4096)


def write(spec: ModelSpec) -> Changes:
    return has_attention_bias(spec) | slides(spec)


FAMILY = Family(
    "qwen3",
    read,
    write,
    {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    gguf=Gguf("qwen3", said={"qk_norm": "head"}),
)
