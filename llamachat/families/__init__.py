"""FAMILIES: a model_type of config.json -> what its models are; ARCHITECTURES: the same by GGUF's name of them."""

from llamachat.families import (
    gemma2,
    gemma3,
    glm4,
    gpt_oss,
    granite,
    llama,
    ministral3,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from llamachat.families.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llama, mistral, qwen2, qwen3, gemma2, gemma3, ministral3, phi3, smollm3, olmo2, olmo3, granite, glm4, mixtral,
        qwen3_moe, gpt_oss,
    )
}  # fmt: skip
ARCHITECTURES = {family.gguf.arch: family for family in FAMILIES.values() if family.gguf}
# Models that see pictures too -> the family of their text_config where that does not name one. The text is all that is read.
WITH_PICTURES = {"gemma3": "gemma3_text", "mistral3": "mistral"}
