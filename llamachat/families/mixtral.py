"""Mixtral (arXiv 2401.04088): Mistral, with a router and experts in every layer."""

from llamachat.core.spec import Experts, ModelSpec
from llamachat.families.family import STACKED, Changes, Family, Layout, always_slides, named
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    fields.neutral("attention_bias", False)
    count, each = named(fields, 8, "num_local_experts", "num_experts"), fields.whole("num_experts_per_tok", 2, 1)
    experts = Experts(count, each, fields.size("intermediate_size", "intermediate_size", 14336))
    return {"experts": experts} | always_slides(fields, layers, None)


def write(spec: ModelSpec) -> Changes:
    found: Changes = {"sliding_window": spec.sliding_window}
    if spec.experts:
        found |= {"num_local_experts": spec.experts.count, "num_experts_per_tok": spec.experts.per_token}
    return found


FAMILY = Family(
    "mixtral",
    read,
    write,
    {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    no_effect=frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}),
    layout=Layout(
        STACKED
        | {
            "block_sparse_moe.gate": ("mlp.gate",),
            "block_sparse_moe.experts.{}.w1": ("mlp.experts.{}.gate_proj",),
            "block_sparse_moe.experts.{}.w2": ("mlp.experts.{}.down_proj",),
            "block_sparse_moe.experts.{}.w3": ("mlp.experts.{}.up_proj",),
        }
    ),
)
