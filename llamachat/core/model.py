"""The model in plain torch: the definition that both engines, GPTQ and every fast path are compared with.

Embedding; in each layer attention over what the cache keeps (arXiv 1706.03762), then a gated feed-forward part (arXiv
2002.05202) or a mixture of such, each around a residual; final norm; head. What differs between families is in the spec.
Knows neither file formats nor quantization: linears, the memory of keys and values, attention and dtypes are arguments, and
PlainEngine brings the plainest of each. In shapes, T is this step's tokens, S those they may see, H and G the query and
key/value heads, D the size of a head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu, linear, rms_norm, silu

from llamachat.core.cache import CacheStep
from llamachat.core.engine import Outputs
from llamachat.core.rope import cos_sin, frequencies, query_scales
from llamachat.core.spec import HEADS, NORMS, Activation, Experts, ModelSpec
from llamachat.core.tensors import Tensor as Weight
from llamachat.core.tensors import dequantize

Linear = Callable[[Tensor], Tensor]  # [T, in] -> [T, out]
Rotation = tuple[Tensor, Tensor] | None  # what `spread` gives; None: this layer does not rotate
SWIGLU_SLOPE = 1.702  # of clamped_swiglu's sigmoid


class Mask(NamedTuple):
    """What T queries see of S keys: where `visible` [T, S] is true; else all, or if `causal` those up to their own. Or each
    head's score has a `bias` [H, T, S], -inf where a key is not seen (T5's distances)."""

    visible: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None


class Context(NamedTuple):
    """The keys and values [G, S, D] that a run of queries may see, and what each of them sees of these."""

    queries: slice
    keys: Tensor
    values: Tensor
    mask: Mask


class Scores(NamedTuple):
    """How scores are made of products, and the dtype of their softmax."""

    scale: float
    softmax: torch.dtype = torch.float32
    softcap: float | None = None
    sinks: Tensor | None = None  # [H]


# Keeps a layer's new keys and values [T, G, D]; gives the context of every query, runs of them in order.
Memory = Callable[[int, Tensor, Tensor], Iterable[Context]]
# Queries [T, H, D] over keys and values [G, S, D] -> [T, H * D].
Attention = Callable[[Tensor, Tensor, Tensor, Mask, Scores], Tensor]


@dataclass(frozen=True)
class Precision:
    """Torch dtypes of each kind of arithmetic."""

    compute: torch.dtype = torch.float32
    norm: torch.dtype = torch.float32
    softmax: torch.dtype = torch.float32
    rotary: torch.dtype = torch.float32
    residual: torch.dtype = torch.float32


@dataclass(frozen=True)
class Block:
    """One layer's weights; query, key and value are one matrix: fewer, larger products."""

    norms: Mapping[str, Tensor]  # by role, see NORMS in spec.py
    qkv: Linear
    output: Linear
    mlp: Linear  # GatedMlp or Mixture
    q_norm: Tensor | None = None  # [D], or [H * D] of whole projections
    k_norm: Tensor | None = None
    sinks: Tensor | None = None  # [H]


class Model:
    """Token ids and their rotations in, logits out."""

    def __init__(
        self,
        spec: ModelSpec,
        embed: Callable[[Sequence[int]], Tensor],
        blocks: Sequence[Block],
        norm: Tensor,
        head: Linear | None,
        precision: Precision,
        attention: Attention,
    ) -> None:
        self.spec, self.embed, self.blocks, self.final_norm, self.head = spec, embed, blocks, norm, head
        self.precision, self.attention = precision, attention
        self.scale = spec.attention_scale or spec.head_dim**-0.5

    def __call__(
        self,
        ids: Sequence[int],
        rotations: Sequence[Rotation],
        memory: Memory,
        wanted: Sequence[int] | None = None,
        query_scale: Tensor | None = None,
        outputs: Outputs = "logits",
    ) -> Tensor:
        """Logits [T, vocabulary], or other outputs (see engine.Engine) in their place; of the wanted tokens only, if these are
        given. rotations: one for each layer; query_scale [T, 1, 1]."""
        if outputs == "attentions":
            return self._attentions(ids, rotations, memory, query_scale, wanted)
        rows, states = slice(None) if wanted is None else list(wanted), list[Tensor]()
        x = self.embedded(self.embed(ids))
        for layer, block in enumerate(self.blocks):
            states += [x[rows]] if outputs == "hidden_states" else []
            x = self.layer(layer, block, x, rotations[layer], memory, query_scale)
        if outputs == "logits":
            return self.logits(x[rows])
        normed = self._norm(x[rows], self.final_norm)
        return torch.stack((*states, normed.to(x.dtype))) if outputs == "hidden_states" else normed

    def _attentions(
        self,
        ids: Sequence[int],
        rotations: Sequence[Rotation],
        memory: Memory,
        scale: Tensor | None,
        wanted: Sequence[int] | None,
    ) -> Tensor:
        """Each layer's `attention_shares`; of a single text."""
        model, kept = copy(self), list[Tensor]()

        def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Mask, scores: Scores) -> Tensor:
            shares = attention_shares(q, keys, mask, scores)
            kept.append(shares if wanted is None else shares[:, list(wanted)])
            return gathered(shares, values)

        model.attention = attend
        model(ids, rotations, memory, [], scale, "hidden")
        return torch.stack(kept)

    def embedded(self, x: Tensor) -> Tensor:
        """[T, hidden] as the first layer gets it."""
        return times(x.to(self.precision.residual), self.spec.embedding_multiplier)

    def layer(
        self,
        number: int,
        block: Block,
        x: Tensor,
        rotation: Rotation,
        memory: Memory,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """[T, hidden] through one layer."""
        x = self._add(x, block, "attention", lambda x: self._attend(number, block, x, rotation, memory, query_scale))
        return self._add(x, block, "mlp", block.mlp)

    def logits(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, vocabulary]."""
        if self.head is None:
            raise ValueError("this model has no head")
        out = times(self.head(self._norm(x, self.final_norm)), self.spec.logit_multiplier)
        cap = self.spec.logit_softcap
        return out if cap is None else cap * torch.tanh(out / cap)

    def _add(self, x: Tensor, block: Block, part: str, run: Linear) -> Tensor:
        """x and what a part of the layer makes of it, normed before, after or both."""
        before, after = block.norms.get(f"{part}_in"), block.norms.get(f"{part}_out")
        out = run(x.to(self.precision.compute) if before is None else self._norm(x, before))
        return x + times(out if after is None else self._norm(out, after), self.spec.residual_multiplier)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = rms_norm(x.to(self.precision.norm), weight.shape, weight, self.spec.rms_norm_eps)
        return normed.to(self.precision.compute)

    def _attend(
        self, layer: int, block: Block, x: Tensor, rotation: Rotation, memory: Memory, query_scale: Tensor | None
    ) -> Tensor:
        heads, groups, size = self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.head_dim
        qkv = block.qkv(x).view(-1, heads + 2 * groups, size)
        qk = qkv[:, : heads + groups]
        if block.q_norm is not None and block.k_norm is not None:
            normed = self._head_norm(qk[:, :heads], block.q_norm), self._head_norm(qk[:, heads:], block.k_norm)
            qk = torch.cat(normed, 1)
        if rotation is not None:
            qk = rotate(qk.to(self.precision.rotary), *rotation).to(self.precision.compute)
        q = qk[:, :heads] if query_scale is None else qk[:, :heads] * query_scale
        scores = Scores(self.scale, self.precision.softmax, self.spec.attention_softcap, block.sinks)
        contexts = memory(layer, qk[:, heads:], qkv[:, heads + groups :])
        parts = [self.attention(q[c.queries], *c[1:], scores) for c in contexts]
        return block.output(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """[T, heads, D], each head or all of a token's together."""
        return self._norm(x.flatten(1) if len(weight) != x.shape[-1] else x, weight).view(x.shape)


@dataclass(frozen=True)
class GatedMlp:
    """down(act(gate(x)) * up(x)); gate and up are one matrix."""

    gate_up: Linear
    down: Linear
    activation: Activation
    limit: float

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(gated(gate, up, self.activation, self.limit))


def gated(gate: Tensor, up: Tensor, activation: Activation, limit: float) -> Tensor:
    """clamped_swiglu is gpt-oss's (https://github.com/openai/gpt-oss)."""
    match activation:
        case "silu":
            return silu(gate) * up
        case "gelu":
            return gelu(gate) * up
        case "gelu_pytorch_tanh":
            return gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(SWIGLU_SLOPE * gate) * (up + 1)


@dataclass(frozen=True)
class Mixture:
    """The sum of the experts that a router picks for each token, by their shares; each expert runs its tokens at once."""

    spec: Experts
    router: Linear
    experts: Sequence[Linear]

    def __call__(self, x: Tensor) -> Tensor:
        shares, picked = self.route(x)
        out = torch.zeros_like(x)
        for number in sorted(set(picked.flatten().tolist())):
            tokens, place = (picked == number).nonzero(as_tuple=True)
            out.index_add_(0, tokens, self.experts[number](x[tokens]) * shares[tokens, place, None])
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and numbers [T, per_token] of the experts picked, in x's dtype; the softmax is in float32 at least."""
        scores = self.router(x).to(torch.promote_types(x.dtype, torch.float32))
        shares, picked = (scores.softmax(-1) if self.spec.softmax_first else scores).topk(self.spec.per_token, -1)
        if not self.spec.softmax_first:
            shares = shares.softmax(-1)
        elif self.spec.normalized:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(x.dtype), picked


def times(x: Tensor, factor: float) -> Tensor:
    """x * factor; no step at all for 1, as most models have it."""
    return x if factor == 1 else x * factor


def spread(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each pair [T, dim / 2] -> [T, dim] of each element, sines with the sign `rotate` wants."""
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotation(
    positions: NDArray[np.int64],
    frequency: NDArray[np.float64],
    factor: float,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """For `rotate` on x [T, heads, D] at these positions."""
    parts = (torch.from_numpy(x)[:, None] for x in cos_sin(positions, frequency, factor))
    return spread(*(x.to(device, dtype) for x in parts))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the half-split pairs (i, i + dim/2) of x [..., D], the rest of D stays; three operators, as decoding needs."""
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :dim], cos, sin), x[..., dim:]), -1)
    return torch.addcmul(x * cos, x.roll(dim // 2, -1), sin)


def plain_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """See Attention: softmax(scale * q k^T) v, step by step."""
    return gathered(attention_shares(q, keys, mask, scores), values)


def gathered(shares: Tensor, values: Tensor) -> Tensor:
    """Values [G, S, D] by shares [H, T, S] -> [T, H * D]."""
    values = values.repeat_interleave(len(shares) // len(values), 0)
    return (shares.to(values.dtype) @ values).transpose(0, 1).flatten(1)


def attention_shares(q: Tensor, keys: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Of each key for each query, [H, T, S]; they add up to one, or with sinks to less."""
    tokens, heads, _ = q.shape
    keys = keys.repeat_interleave(heads // len(keys), 0)
    products = (q.transpose(0, 1) @ keys.mT) * scores.scale
    products = products if mask.bias is None else products + mask.bias
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril() if mask.causal else mask.visible
    if visible is not None:
        products = products.masked_fill(~visible, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks[:, None, None].to(products.dtype).expand(heads, tokens, 1)
        return torch.cat((products, sinks), -1).softmax(-1, dtype=scores.softmax)[..., :-1]
    return products.softmax(-1, dtype=scores.softmax)


def build_block(spec: ModelSpec, layer: int, weights: Mapping[str, Tensor], linear_of: Callable[..., Linear]) -> Block:
    """A layer: `weights` has its vectors by name; `linear_of` the product with matrices of these names, one below the other."""
    prefix, offset = f"model.layers.{layer}.", spec.norm_offset

    def norm(name: str) -> Tensor:
        return weights[f"{prefix}{name}.weight"] + offset

    def gated_mlp(prefix: str) -> Linear:
        gate_up, down = linear_of(prefix + "gate_proj", prefix + "up_proj"), linear_of(prefix + "down_proj")
        return GatedMlp(gate_up, down, spec.hidden_act, spec.swiglu_limit)

    mlp, experts = f"{prefix}mlp.", spec.mixture(layer)
    each = [gated_mlp(f"{mlp}experts.{number}.") for number in range(experts.count if experts else 0)]
    return Block(
        norms={role: norm(name) for role, name in NORMS[spec.norms].items()},
        qkv=linear_of(*(f"{prefix}self_attn.{name}_proj" for name in "qkv")),
        output=linear_of(prefix + "self_attn.o_proj"),
        mlp=Mixture(experts, linear_of(mlp + "gate"), each) if experts else gated_mlp(mlp),
        q_norm=norm("self_attn.q_norm") if spec.qk_norm else None,
        k_norm=norm("self_attn.k_norm") if spec.qk_norm else None,
        sinks=weights[prefix + "self_attn.sinks"] if spec.attention_sinks else None,
    )


class PlainEngine:
    """`forward` of engine.Engine with every weight in one float dtype; slow, and nothing in it is clever."""

    batch_invariant = False

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Tensor], slots: int, dtype: torch.dtype) -> None:
        self.config, self.slots, self.weights = spec, slots, weights
        size = (spec.num_hidden_layers, 2, spec.num_key_value_heads, slots, spec.head_dim)
        self.kept = torch.zeros(size, dtype=dtype)  # rotated keys, and values
        self.positions = np.full(slots, np.iinfo(np.int64).max)  # a slot not yet written is later than every query
        self.master: tuple[range, Tensor] | None = None  # a pinned block's keys before they were rotated
        every = Precision(*[dtype] * 5)
        blocks = [build_block(spec, layer, weights, self._linear) for layer in range(spec.num_hidden_layers)]
        embedding = weights["model.embed_tokens.weight"]
        head = "model.embed_tokens" if spec.tied_head else HEADS[spec.head][0]
        self.model = Model(
            spec, lambda ids: embedding[list(ids)], blocks, weights["model.norm.weight"] + spec.norm_offset,
            self._linear(head) if head else None, every, plain_attention,
        )  # fmt: skip

    @classmethod
    def build(
        cls, spec: ModelSpec, tensors: Iterable[tuple[str, Weight]], slots: int, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Takes the tensors of spec.tensor_shapes(), in any order."""
        weights = {name: torch.tensor(dequantize(tensor)).to(dtype) for name, tensor in tensors}
        return cls(spec, weights, slots, dtype)

    @torch.inference_mode()
    def forward(
        self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"], outputs: Outputs = "logits"
    ) -> NDArray[np.float32]:
        if step.pinned is not None:
            self._pin(*step.pinned)
        self.positions[step.slots] = step.positions
        wanted = [len(ids) - 1] if logits == "last" else None
        scales = query_scales(self.config, self.slots, step.positions)
        scale = None if scales is None else torch.from_numpy(scales).to(self.kept.dtype)[:, None, None]
        out = self.model(ids, self._rotations(step.positions), self._memory(step), wanted, scale, outputs).float()
        rows: NDArray[np.float32] = (out[..., 0, :] if logits == "last" else out).numpy()
        return rows

    def _linear(self, *names: str) -> Linear:
        """Matrices one below the other."""
        weight = torch.cat([self.weights[f"{name}.weight"] for name in names])
        biases = [self.weights[f"{name}.bias"] for name in names if f"{name}.bias" in self.weights]
        return lambda x: linear(x, weight, torch.cat(biases) if biases else None)

    def _rotations(self, positions: NDArray[np.int64], factor: bool = True) -> list[Rotation]:
        """For each layer, of x [T, heads, D]; without `factor` of lengths as they are."""
        found = list[Rotation]()
        for layer in range(self.config.num_hidden_layers):
            rope = self.config.rope(layer)
            if rope is None:
                found.append(None)
                continue
            frequency, longer = frequencies(self.config, self.slots, rope)
            found.append(rotation(positions, frequency, longer if factor else 1.0, self.kept.dtype))
        return found

    def _memory(self, step: CacheStep) -> Memory:
        slots = np.concatenate([np.arange(run.start, run.stop) for run in step.visible])
        ahead = step.positions[:, None] - self.positions[slots]

        def memory(layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
            self.kept[layer][:, :, step.slots] = torch.stack((keys, values)).transpose(1, 2)
            window = self.config.window(layer)
            seen = (ahead >= 0) & (ahead < (window or np.iinfo(np.int64).max))
            held = self.kept[layer][:, :, slots]
            yield Context(slice(None), held[0], held[1], Mask(torch.from_numpy(seen)))

        return memory

    def _pin(self, block: range, start: int) -> None:
        """Rotate a block's keys to positions from `start` on, always from their un-rotated copy."""
        span = slice(block.start, block.stop)
        if self.master is None or self.master[0] != block:
            self.master = block, self._rotated(self.kept[:, 0, :, span], -self.positions[span])
        positions = np.arange(start, start + len(block))
        self.kept[:, 0, :, span] = self._rotated(self.master[1], positions)
        self.positions[span] = positions

    def _rotated(self, keys: Tensor, by: NDArray[np.int64]) -> Tensor:
        """[layers, G, n, D]."""
        rotated = keys.clone()
        for layer, rotation in enumerate(self._rotations(by, factor=False)):
            if rotation is not None:
                rotated[layer] = rotate(keys[layer].transpose(0, 1), *rotation).transpose(0, 1)
        return rotated
