"""Attention by torch's fused kernels, where they can."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llamachat.core.model import Mask, Scores, plain_attention


def fused_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """See model.Attention. The kernels keep the softmax in float32 and know neither caps nor sinks: else step by step."""
    tokens, heads, size = q.shape
    groups = len(keys)
    if scores.softmax != torch.float32 or scores.softcap is not None or scores.sinks is not None:
        return plain_attention(q, keys, values, mask, scores)
    if (
        tokens == 1 and mask.visible is mask.bias is None
    ):  # queries of a group see the same keys, and pose as a sequence
        one = q.view(1, groups, -1, size)
        return scaled_dot_product_attention(one, keys[None], values[None], scale=scores.scale).view(1, -1)
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        mask.visible if mask.bias is None else mask.bias.to(q.dtype),
        is_causal=mask.causal,
        scale=scores.scale,
        enable_gqa=heads != groups,
    )[0]
    return out.transpose(0, 1).reshape(tokens, heads * size)
