"""MindFormers' moe_config (mindformers/modules/transformer/moe.py, versions 1.0 to 1.5) -> Experts.

As its LlamaForCausalLM computes with it: softmax over all experts, the `num_experts_chosen` best of them, whose shares are made
to add up to 1 if there are several; each expert is as wide as the feed-forward part that it stands for.
"""

from llamachat.core.spec import Experts
from llamachat.system.metadata import Fields, naming

NO_EFFECT = {
    "capacity_factor": "tokens beyond an expert's share of a batch are dropped in training; here all reach theirs",
    "enable_sdrop": "which of those are dropped",
    **dict.fromkeys(("aux_loss_factor", "aux_loss_types", "aux_loss_factors", "z_loss_factor"), "the loss"),
    **dict.fromkeys(
        ("expert_group_size", "group_wise_a2a", "comp_comm_parallel", "comp_comm_parallel_degree"), "devices"
    ),
    **dict.fromkeys(("enable_cold_hot_expert", "update_step", "hot_expert_num", "cold_token_percent"), "devices"),
    **dict.fromkeys(
        ("save_token_distribution", "cur_layer", "moe_module_name"), "a record of which experts are picked"
    ),
    **dict.fromkeys(("use_fused_ops_topkrouter", "use_gmm", "use_fused_ops_permute"), "which kernel computes the same"),
    "max_router_load": "the size of a table",
    "router_dense_type": "the router always computes in float32 at least",
    **dict.fromkeys(("n_group", "topk_group"), "of topk_method group_limited_greedy"),
    "use_shared_expert_gating": "of shared experts",
    **dict.fromkeys(("first_k_dense_replace", "moe_intermediate_size"), "MindFormers' Llama does not read it"),
}


def experts(fields: Fields | None, intermediate_size: int) -> Experts | None:
    """None: there is but one expert, which is the usual feed-forward part."""
    if fields is None or fields.whole("expert_num", 1, 1) == 1:
        return None
    chosen, normalized = fields.whole("num_experts_chosen", 1, 1), fields.flag("norm_topk_prob", True)
    fields.choice("routing_policy", {"TopkRouterV2": None}, "TopkRouterV1")
    fields.neutral("topk_method", "greedy")
    fields.neutral("shared_expert_num", 0)
    fields.neutral("routed_scaling_factor", 1.0, 1)
    fields.finish(NO_EFFECT)
    with naming(fields.where):
        return Experts(fields.whole("expert_num"), chosen, intermediate_size, normalized=normalized and chosen > 1)
