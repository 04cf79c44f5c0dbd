"""Mistral 7B (arXiv 2310.06825), Nemo and Small: a sliding window in every layer, or none."""

from llamachat.families.family import Changes, Family, always_slides, plain
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", False)
    fields.neutral("mlp_bias", False)
    return always_slides(fields, layers, 4096)


FAMILY = Family(
    "mistral",
    read,
    plain("sliding_window"),
    {"max_position_embeddings": 131072, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
)
