"""The whole Llama: embedding, pre-norm blocks of attention and SwiGLU, final norm, head (LLaMA, arXiv 2302.13971).

Knows neither file formats nor quantization nor how keys and values are kept: linears, memory and dtypes are arguments.
In shapes, T is this step's tokens, S those they may see, H and G the query and key/value heads, D the size of a head.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from llamachat.core.spec import LlamaConfig

Linear = Callable[[Tensor], Tensor]  # [T, in] -> [T, out]


class Sight(NamedTuple):
    """What T queries see of S keys: where `mask` [T, S] is true; else all, or if `causal` those up to their own."""

    mask: Tensor | None = None
    causal: bool = False


class Context(NamedTuple):
    """The keys and values [G, S, D] that a run of queries may see, and what each of them sees of these."""

    queries: slice
    keys: Tensor
    values: Tensor
    sight: Sight


# Keeps a layer's new keys and values [T, G, D]; gives the context of every query, runs of them in order.
Memory = Callable[[int, Tensor, Tensor], Iterable[Context]]


@dataclass(frozen=True)
class Precision:
    """Torch dtypes of each kind of arithmetic."""

    compute: torch.dtype
    norm: torch.dtype
    softmax: torch.dtype
    rotary: torch.dtype
    residual: torch.dtype


@dataclass(frozen=True)
class Block:
    """One layer's weights; query, key and value are one matrix, and so are gate and up: fewer, larger products."""

    input_norm: Tensor
    qkv: Linear
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """Token ids and their rotations in, logits out."""

    def __init__(
        self,
        config: LlamaConfig,
        embed: Callable[[Sequence[int]], Tensor],
        blocks: Sequence[Block],
        norm: Tensor,
        head: Linear,
        precision: Precision,
    ) -> None:
        self.config, self.embed, self.blocks, self.final_norm, self.head = config, embed, blocks, norm, head
        self.precision = precision

    def __call__(
        self, ids: Sequence[int], cos: Tensor, sin: Tensor, memory: Memory, wanted: Sequence[int] | None = None
    ) -> Tensor:
        """Logits [T, vocabulary], or of the wanted tokens only. cos and sin are those of `spread`."""
        x = self.embed(ids).to(self.precision.residual)
        for layer, block in enumerate(self.blocks):
            x += self._attend(layer, block, self._norm(x, block.input_norm), cos, sin, memory)
            gate, up = block.gate_up(self._norm(x, block.post_norm)).chunk(2, -1)
            x += block.down(silu(gate) * up)
        return self.head(self._norm(x if wanted is None else x[wanted], self.final_norm))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = rms_norm(x.to(self.precision.norm), weight.shape, weight, self.config.rms_norm_eps)
        return normed.to(self.precision.compute)

    def _attend(self, layer: int, block: Block, x: Tensor, cos: Tensor, sin: Tensor, memory: Memory) -> Tensor:
        heads, groups, size = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        qkv = block.qkv(x).view(-1, heads + 2 * groups, size)
        qk = rotate(qkv[:, : heads + groups].to(self.precision.rotary), cos, sin).to(self.precision.compute)
        contexts = memory(layer, qk[:, heads:], qkv[:, heads + groups :])
        parts = [attention(qk[c.queries, :heads], *c[1:], self.precision.softmax) for c in contexts]
        return block.output(parts[0] if len(parts) == 1 else torch.cat(parts))


def spread(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each pair [T, D / 2] -> [T, D] of each element, sines with the sign that `rotate` wants."""
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the half-split pairs (i, i + D/2) of x [..., D]; three small operators, which decoding is bound by."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attention(q: Tensor, keys: Tensor, values: Tensor, sight: Sight, softmax: torch.dtype) -> Tensor:
    """Scaled dot-product attention of q [T, H, D] over keys and values [G, S, D] -> [T, H * D]; softmax in that dtype.

    Torch's fused kernels keep the softmax in float32, so another dtype has to take the plain way.
    """
    tokens, heads, size = q.shape
    groups = len(keys)
    if softmax != torch.float32:
        out = _plain_attention(q, keys, values, sight, softmax)
    elif tokens == 1 and sight.mask is None:  # the queries of a group see the same keys, so they can pose as a sequence
        return scaled_dot_product_attention(q.view(1, groups, -1, size), keys[None], values[None]).view(1, -1)
    else:
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            sight.mask,
            is_causal=sight.causal,
            enable_gqa=heads != groups,
        )[0]
    return out.transpose(0, 1).reshape(tokens, heads * size)


def _plain_attention(q: Tensor, keys: Tensor, values: Tensor, sight: Sight, softmax: torch.dtype) -> Tensor:
    """[H, T, D]; also the definition that the fused kernels are tested against."""
    tokens, heads, size = q.shape
    keys, values = (x.repeat_interleave(heads // len(x), 0) for x in (keys, values))
    scores = (q.transpose(0, 1) @ keys.mT) * size**-0.5
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril() if sight.causal else sight.mask
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out: Tensor = scores.softmax(-1, dtype=softmax).to(values.dtype) @ values
    return out
