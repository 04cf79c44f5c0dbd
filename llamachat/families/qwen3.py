"""Qwen3 (arXiv 2505.09388): RMSNorm of each head's query and key, and no biases; the last layers may have a sliding window."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import Changes, Family, may_slide, slides
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    attention = fields.flag("attention_bias", False)
    fields.neutral("mlp_bias", False)
    biases = {"qkv_bias": attention, "attention_out_bias": attention}
    return {"qk_norm": "head"} | biases | may_slide(fields, layers, 4096)


def write(spec: ModelSpec) -> Changes:
    return {"attention_bias": spec.qkv_bias and spec.attention_out_bias} | slides(spec)


FAMILY = Family(
    "qwen3",
    read,
    write,
    32768,
    32,
    head_dim=128,
    gguf_parts={"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    gguf={"qk_norm": "head"},
)
