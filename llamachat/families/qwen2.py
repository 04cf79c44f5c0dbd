"""Qwen2 and 2.5 (arXiv 2407.10671): biases on query, key and value; the last layers may have a sliding window."""

from llamachat.families.family import Changes, Family, Gguf, may_slide, slides
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", True)
    fields.neutral("mlp_bias", False)
    return {"qkv_bias": True} | may_slide(fields, layers, 4096)


DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 32}
FAMILY = Family("qwen2", read, slides, DEFAULTS, gguf=Gguf("qwen2"))
