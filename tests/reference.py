"""A Llama as plainly as it can be written: whole sequences, no cache, any float dtype, nothing of ours.

Reads a state dict with Hugging Face's names and a transformers configuration; frequencies come from transformers too.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROWS = 256  # queries computed together, to bound memory


def logits(
    state: Mapping[str, Tensor],
    config: Any,
    ids: list[int],
    dtype: torch.dtype = torch.float64,
    visible: Tensor | None = None,
    key_positions: Tensor | None = None,
    rotation: tuple[Tensor, float] | None = None,
) -> Tensor:
    """[T, vocabulary].

    `visible` [T, T] (bool) says which keys each query sees, by default all up to its own; `key_positions` [T, P] at
    which position it sees the first P keys, by default their index, which is the position of all others and of queries.
    `rotation`: the result of `frequencies`, where those, which are rounded to float32 for scaled ones, will not do.
    """
    count = len(ids)
    visible = torch.ones(count, count, dtype=torch.bool).tril() if visible is None else visible
    parts = epochs(torch.zeros(count, 1, dtype=torch.long) if key_positions is None else key_positions)
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    frequency, factor = rotation or frequencies(config, count)
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        w = {name.split(f"layers.{layer}.")[1]: t for name, t in weights.items() if f".layers.{layer}." in name}
        normed = norm(x, w["input_layernorm.weight"], config)
        x = x + attention(normed, w, config, visible, parts, frequency.to(dtype), factor, window(config, layer))
        normed = norm(x, w["post_attention_layernorm.weight"], config)
        gated = torch.nn.functional.silu(linear(normed, w, "mlp.gate_proj")) * linear(normed, w, "mlp.up_proj")
        x = x + linear(gated, w, "mlp.down_proj")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return norm(x, weights["model.norm.weight"], config) @ weights[head].T


def frequencies(config: Any, length: int) -> tuple[Tensor, float]:
    """Radians per position, and the factor of cosines and sines, for a text of this length."""
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    exponents = torch.arange(0, config.head_dim, 2).double() / config.head_dim
    return config.rope_parameters["rope_theta"] ** -exponents, 1.0


def window(config: Any, layer: int) -> int | None:
    """How many positions a query of this layer sees, its own among them; None: all."""
    full = (getattr(config, "layer_types", None) or ["sliding_attention"] * (layer + 1))[layer] == "full_attention"
    return None if full else getattr(config, "sliding_window", None)


def epochs(key_positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Queries in a row that see all keys at the same positions (their indices, at most ROWS), and those positions [T]."""
    distinct, sizes = key_positions.unique_consecutive(dim=0, return_counts=True)
    index = torch.arange(len(key_positions))
    positions = [torch.cat([first, index[len(first) :]]) for first in distinct]
    rows = index.split(sizes.tolist())
    return [(part, at) for queries, at in zip(rows, positions, strict=True) for part in queries.split(ROWS)]


def norm(x: Tensor, weight: Tensor, config: Any) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight


def linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))


def rotate(x: Tensor, positions: Tensor, frequency: Tensor, factor: float) -> Tensor:
    """x [T, heads, D] as complex numbers i and i + D/2, turned."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.full((), factor, dtype=x.dtype), positions[:, None, None] * frequency
    )
    return torch.cat([turned.real, turned.imag], -1)


def attention(
    x: Tensor,
    w: Mapping[str, Tensor],
    config: Any,
    visible: Tensor,
    parts: list[tuple[Tensor, Tensor]],
    frequency: Tensor,
    factor: float,
    window: int | None,
) -> Tensor:
    count, size = len(x), config.head_dim
    q, k, v = (linear(x, w, f"self_attn.{name}_proj").view(count, -1, size) for name in "qkv")
    q = rotate(q, torch.arange(count), frequency, factor)
    k, v = k.repeat_interleave(q.shape[1] // k.shape[1], 1), v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    out = torch.empty_like(q)
    for rows, positions in parts:
        seen = visible[rows]
        if window is not None:
            seen = seen & (rows[:, None] - positions < window)
        keys = seen.any(0).nonzero()[:, 0]  # the others are left out for speed alone
        scores = torch.einsum("qhd,khd->hqk", q[rows], rotate(k[keys], positions[keys], frequency, factor)) / size**0.5
        probabilities = scores.masked_fill(~seen[:, keys], float("-inf")).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", probabilities, v[keys])
    return linear(out.reshape(count, -1), w, "self_attn.o_proj")
