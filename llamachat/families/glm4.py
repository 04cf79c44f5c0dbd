"""GLM-4 of 2025 (arXiv 2406.12793): four norms a layer, half of each head rotates in interleaved pairs, joined gate and up."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import FUSED_MLP, Changes, Family, Gguf, Layout, no_window
from llamachat.system.metadata import Fields

FUSED = {"ffn_up": ("mlp.gate_proj", "mlp.up_proj")}


def read(fields: Fields, layers: int) -> Changes:
    return {"norms": "both", "qkv_bias": fields.flag("attention_bias", True)} | no_window(fields, layers)


def write(spec: ModelSpec) -> Changes:
    return {"attention_bias": spec.qkv_bias}


FAMILY = Family(
    "glm4",
    read,
    write,
    {
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-07,
        "partial_rotary_factor": 0.5,
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
    },
    layout=Layout(
        FUSED_MLP
        | {
            "post_self_attn_layernorm": ("post_attention_layernorm",),
            "post_attention_layernorm": ("pre_feedforward_layernorm",),
            "post_mlp_layernorm": ("post_feedforward_layernorm",),
        },
        interleaved=True,
    ),
    gguf=Gguf("glm4", Layout(FUSED, interleaved=True), {"norms": "both"}, partial=True),
)
