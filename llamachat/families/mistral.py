"""Mistral 7B (arXiv 2310.06825): a sliding window in every layer."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import Changes, Family, always_slides
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", False)
    fields.neutral("mlp_bias", False)
    return always_slides(fields, layers, 4096)


def write(spec: ModelSpec) -> Changes:
    return {"sliding_window": spec.sliding_window}


FAMILY = Family("mistral", read, write, 131072, 8, bos_token_id=1, eos_token_id=2)
