"""FAMILIES: a model_type of config.json, or an architecture of GGUF -> what its models are."""

from llamachat.families import llama, mistral, qwen2, qwen3
from llamachat.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family for family in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
}
