"""Qwen3's mixtures of experts (arXiv 2505.09388): Qwen3, with a router and experts in most layers or all."""

from llamachat.core.spec import Experts, ModelSpec
from llamachat.families import qwen3
from llamachat.families.family import STACKED, Changes, Family, Gguf, Key, Layout, gguf_experts, named
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    experts = Experts(
        named(fields, 128, "num_experts", "num_local_experts"),
        fields.whole("num_experts_per_tok", 8, 1),
        fields.size("moe_intermediate_size", "intermediate_size", 768),
        normalized=fields.flag("norm_topk_prob", False),
    )
    step, dense = fields.whole("decoder_sparse_step", 1, 1), set(fields.wholes("mlp_only_layers"))
    plain = tuple(layer for layer in range(layers) if layer in dense or (layer + 1) % step)
    return qwen3.read(fields, layers) | {"experts": experts, "dense_layers": plain}


def write(spec: ModelSpec) -> Changes:
    return qwen3.write(spec) | {"mlp_only_layers": list(spec.dense_layers)} | _write_experts(spec.experts)


def _write_experts(experts: Experts | None) -> Changes:
    if experts is None:
        return {}
    counts = {"num_experts": experts.count, "num_experts_per_tok": experts.per_token}
    return counts | {"moe_intermediate_size": experts.intermediate_size, "norm_topk_prob": experts.normalized}


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return gguf_experts(own, key)


FAMILY = Family(
    "qwen3_moe",
    read,
    write,
    {"max_position_embeddings": 32768, "num_key_value_heads": 4},
    "Qwen3Moe",
    no_effect=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    layout=Layout(STACKED),
    gguf=Gguf("qwen3moe", said={"qk_norm": "head"}, read=read_gguf),
)
