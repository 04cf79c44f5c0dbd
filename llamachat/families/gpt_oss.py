"""gpt-oss (arXiv 2508.10925): a learned sink in each head, windows in every other layer, experts with biases and MXFP4 weights.

The router picks by its scores and takes the softmax of those picked. Gate and up of an expert are one matrix whose rows take
turns, [in, out] where they are floats.
"""

from llamachat.core.spec import Experts, ModelSpec
from llamachat.core.thoughts import Thoughts
from llamachat.families.family import (
    STACKED,
    Changes,
    Family,
    Gguf,
    Key,
    Layout,
    every,
    gguf_experts,
    gguf_windows,
    named,
    typed_layers,
    types_layers,
)
from llamachat.system.metadata import Fields

BIASES: Changes = {"qkv_bias": True, "attention_out_bias": True}
SAID: Changes = {"attention_sinks": True, "hidden_act": "clamped_swiglu"}
_CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>")
_FINAL = "<|channel|>final<|message|>"
# OpenAI's harmony: messages in channels, of which only "final" is the answer.
HARMONY = Thoughts(
    {start + channel: "<|end|>" for start in ("", "<|start|>assistant") for channel in _CHANNELS},
    ("<|start|>assistant" + _FINAL, _FINAL),
    resent=False,
)


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", True)
    fields.neutral("swiglu_alpha", 1.702)
    experts = Experts(
        named(fields, 128, "num_local_experts", "num_experts"),
        named(fields, 4, "num_experts_per_tok", "experts_per_token"),
        fields.size("intermediate_size", "intermediate_size"),
        softmax_first=False,
        bias=True,
    )
    limit = {"swiglu_limit": fields.number("swiglu_limit", 7.0)}
    return SAID | BIASES | limit | {"experts": experts} | typed_layers(fields, layers, every(layers, 2))


def write(spec: ModelSpec) -> Changes:
    found = types_layers(spec) | {"swiglu_limit": spec.swiglu_limit}
    if spec.experts:
        found |= {"num_local_experts": spec.experts.count, "num_experts_per_tok": spec.experts.per_token}
    return found


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    ways = {"softmax_first": False, "bias": True}
    return gguf_experts(own, key, **ways) | gguf_windows(own, key, layers, 2)


FAMILY = Family(
    "gpt_oss",
    read,
    write,
    {
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    "GptOss",
    no_effect=frozenset({"output_router_logits", "router_aux_loss_coef", "initial_context_length"}),
    layout=Layout(STACKED | {"mlp.router": ("mlp.gate",)}, alternating=True, transposed=True),
    gguf=Gguf(
        "gpt-oss",
        Layout({"post_attention_norm": ("post_attention_layernorm",), "attn_sinks": ("self_attn.sinks",)}),
        SAID,
        read_gguf,
    ),
)
