"""LLaMA, Llama 2 and 3, TinyLlama, SmolLM2 (arXiv 2302.13971, 2307.09288, 2407.21783)."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import Changes, Family, no_window
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    attention = fields.flag("attention_bias", False)
    biases = {"qkv_bias": attention, "attention_out_bias": attention, "mlp_bias": fields.flag("mlp_bias", False)}
    return biases | no_window(fields, layers)


def write(spec: ModelSpec) -> Changes:
    return {"attention_bias": spec.qkv_bias and spec.attention_out_bias, "mlp_bias": spec.mlp_bias}


FAMILY = Family("llama", read, write, 2048, bos_token_id=1, eos_token_id=2, gguf_interleaved=True)
