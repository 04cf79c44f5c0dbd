"""Qwen2 and 2.5 (arXiv 2407.10671): biases on query, key and value; the last layers may have a sliding window."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import Changes, Family, may_slide, slides
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", True)
    fields.neutral("mlp_bias", False)
    return {"qkv_bias": True} | may_slide(fields, layers, 4096)


def write(spec: ModelSpec) -> Changes:
    return slides(spec)


FAMILY = Family("qwen2", read, write, 32768, 32)
