"""Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): joined matrices, longrope; of Phi-4-mini's heads only a part rotates."""

from llamachat.families.family import FUSED_MLP, FUSED_QKV, Changes, Family, Gguf, Key, Layout, always_slides, plain
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.neutral(key, False)
    return always_slides(fields, layers, None)


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return {"sliding_window": own.whole(key("attention.sliding_window"), 0) or None}


FAMILY = Family(
    "phi3",
    read,
    plain("sliding_window"),
    {
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
    no_effect=frozenset({"full_attn_mod", "interpolate_factor"}),
    layout=Layout(FUSED_QKV | FUSED_MLP),
    gguf=Gguf("phi3", Layout({"ffn_up": ("mlp.gate_proj", "mlp.up_proj")}), read=read_gguf, partial=True),
)
