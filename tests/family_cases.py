"""Tiny random models of the families that are more than a Llama, as transformers builds them and as our spec says them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from llamachat.core.spec import Experts, ModelSpec, Rope
from llamachat.core.tensors import FloatTensor

LAYERS, IDS = 4, [int(each) for each in np.random.default_rng(0).integers(0, 97, 24)]
FULL, SLIDING = "full_attention", "sliding_attention"
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "initializer_range": 0.3, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
BASE = ModelSpec(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-6,
)  # fmt: skip
TYPES = [SLIDING, SLIDING, FULL, SLIDING]
WINDOWS = {"sliding_window": 7, "layer_types": TYPES}
OWN_WINDOWS = {"sliding_window": 7, "layer_types": tuple(TYPES)}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TANH = "gelu_pytorch_tanh"
# family -> its classes in transformers, their settings, ours
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}, {"qk_norm": "head"}),
    "olmo2": ("Olmo2", {}, {"qk_norm": "projection", "norms": "after", "head_dim": 12}),
    "gemma2": (
        "Gemma2",
        WINDOWS
        | {
            "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",
        },
        OWN_WINDOWS
        | {
            "norms": "both", "norm_offset": 1.0, "attention_scale": 24**-0.5, "attention_softcap": 5.0, "logit_softcap": 3.0,
            "hidden_act": TANH, "embedding_multiplier": 48**0.5,
        },
    ),
    "gemma3": (
        "Gemma3",
        WINDOWS
        | {
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                FULL: {"rope_type": "default", "rope_theta": 50000.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        OWN_WINDOWS
        | {
            "norms": "both", "norm_offset": 1.0, "qk_norm": "head", "attention_scale": 24**-0.5, "hidden_act": TANH,
            "embedding_multiplier": 48**0.5, "rope_theta": 50000.0, "sliding_rope": Rope(100.0, None, 16),
        },
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3, "logits_scaling": 4.0},
        {
            "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_scale": 0.3, "logit_multiplier": 0.25,
            "head_dim": 12,
        },
    ),
    "smollm3": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1, 0], "rope_parameters": PLAIN_ROPE},
        {"unrotated_layers": (1, 3), "head_dim": 12},
    ),
    "phi3": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rotary_dim": 6, "head_dim": 12},
    ),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": PLAIN_ROPE},
        {"experts": Experts(5, 2, 80)},
    ),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": False,
            "mlp_only_layers": [1],
        },
        {"experts": Experts(6, 3, 32, normalized=False), "qk_norm": "head", "dense_layers": (1,)},
    ),
    "gpt-oss": (
        "GptOss",
        WINDOWS
        | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager",
            "rope_parameters": PLAIN_ROPE,
        },
        OWN_WINDOWS
        | {
            "experts": Experts(4, 2, 80, softmax_first=False, bias=True), "attention_sinks": True, "qkv_bias": True,
            "attention_out_bias": True, "hidden_act": "clamped_swiglu",
        },
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def theirs(case: str) -> Any:
    kind, settings, _ = CASES[case]
    shape = SHAPE if "head_dim" not in CASES[case][2] else {k: v for k, v in SHAPE.items() if k != "head_dim"}
    names = (f"{kind}TextConfig", f"{kind}Config")
    config = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(config(**(shape | settings))).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith(("sinks", "bias")):  # what is one or nothing says nothing of its place
            torch.nn.init.normal_(weight, mean=float("bias" not in name), std=0.3)
    return model


def canonical(state: dict[str, torch.Tensor], oss: bool) -> dict[str, torch.Tensor]:
    """Their names -> ours: fused matrices are split, experts are matrices of their own."""
    found = dict[str, torch.Tensor]()
    for name, x in state.items():
        name = name.replace("block_sparse_moe", "mlp").replace("mlp.router.", "mlp.gate.")
        prefix = name.rpartition("self_attn.")[0] or name.rpartition("mlp.")[0]
        if name.endswith("qkv_proj.weight"):
            for part, rows in zip("qkv", x.split([48, 24, 24]), strict=True):
                found[f"{prefix}self_attn.{part}_proj.weight"] = rows
        elif name.endswith("mlp.gate_up_proj.weight"):
            found[f"{prefix}mlp.gate_proj.weight"], found[f"{prefix}mlp.up_proj.weight"] = x.chunk(2)
        elif ".experts." in name and not name.split(".experts.")[1][0].isdigit():
            found |= experts(prefix + "mlp.experts.", name.rpartition(".")[2], x, oss)
        else:
            found[name] = x
    return found


def experts(prefix: str, part: str, x: torch.Tensor, oss: bool) -> dict[str, torch.Tensor]:
    """One tensor of all experts: [E, out, in], or gpt-oss's [E, in, out] with gate and up in turn, and its biases."""
    found, kind = dict[str, torch.Tensor](), "bias" if part.endswith("bias") else "weight"
    for number, each in enumerate(x.mT if oss and kind == "weight" else x):
        if part.startswith("gate_up"):
            halves = (each[0::2], each[1::2]) if oss else each.chunk(2)
            found |= {
                f"{prefix}{number}.{name}_proj.{kind}": half for name, half in zip(("gate", "up"), halves, strict=True)
            }
        else:
            found[f"{prefix}{number}.down_proj.{kind}"] = each
    return found


def case_of(case: str) -> tuple[ModelSpec, dict[str, FloatTensor], NDArray[np.float32]]:
    """Spec, weights and the logits that are right."""
    model, spec = theirs(case), replace(BASE, **CASES[case][2])
    state = canonical(model.state_dict(), case == "gpt-oss")
    shapes = spec.tensor_shapes()
    weights = {name: FloatTensor(state[name].detach().contiguous().numpy()) for name in shapes}
    assert {name: tensor.shape for name, tensor in weights.items()} == shapes
    assert state.keys() == shapes.keys(), "a tensor that nothing reads"
    with torch.no_grad():
        return spec, weights, model(torch.tensor([IDS])).logits[0].numpy()
