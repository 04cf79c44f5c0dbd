"""T5 in torch: an encoder that runs once over a source, and a decoder that sees what came of it through cross attention.

Both stacks are core/model.py's layers. What is theirs: the bias of distances, cross attention, a feed-forward part that need not
be gated, LayerNorm and learned positions (Megatron-core's). Of a source are kept, until its text ends, the keys and values that
the decoder's layers look at; they are computed once. In shapes as in core/model.py; S are the tokens of a source.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, relu, silu

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.engine import Outputs
from llamachat.core.generate import Interrupted, never
from llamachat.core.model import Block, Context, Linear, Mask, Memory, Model, Precision, Rotation, Scores, rotation
from llamachat.core.rope import frequencies
from llamachat.core.tensors import TensorInfo
from llamachat.engines import memory
from llamachat.engines.torch import engine
from llamachat.engines.torch.assembly import Assembly
from llamachat.engines.torch.attention import fused_attention
from llamachat.engines.torch.engine import Bytes, TorchEngine, chosen_precision, free_memory
from llamachat.engines.torch.keys_values import KeysValues
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.families.t5 import ABSOLUTE, RELATIVE, STACKS, EncoderDecoderSpec, Inner, Stack

ROWS = 128  # queries of a source that are run together: bounds the memory of scores,
PAIRS = 1 << 22  # and so many of them with keys: bounds the wait for an interrupt, too
ACTIVATIONS: Mapping[Inner, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_pytorch_tanh": partial(gelu, approximate="tanh"),
    "silu": silu,
}
NORMS = {"attention_in": "input_layernorm", "cross_in": "cross_attn_layernorm", "mlp_in": "post_attention_layernorm"}
LookedAt = Callable[[int], Iterable[Context]]  # of a decoder's layer, what each run of queries sees of its source
Source = list[tuple[Tensor, Tensor]]  # of each of the decoder's layers, keys and values [H, S, D]


@dataclass(frozen=True)
class Cross:
    """Attention over what an encoder made: queries are of the decoder, keys and values (one matrix) of the source."""

    query: Linear
    key_value: Linear
    output: Linear


@dataclass(frozen=True)
class StackBlock(Block):
    """A layer; a decoder's looks at a source between its own attention and the feed-forward part."""

    cross: Cross | None = None


@dataclass(frozen=True)
class FeedForward:
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)); gate and up are one matrix."""

    up: Linear
    down: Linear
    activation: Callable[[Tensor], Tensor]
    gated: bool

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if not self.gated:
            return self.down(self.activation(inner))
        gate, up = inner.chunk(2, -1)
        return self.down(self.activation(gate) * up)


class StackModel(Model):
    """One of the two stacks. A norm's weight is [hidden], or [2, hidden] with a bias."""

    spec: EncoderDecoderSpec
    blocks: Sequence[StackBlock]

    def run(
        self, x: Tensor, rotations: Sequence[Rotation], memory: Memory, looked_at: LookedAt | None = None
    ) -> Tensor:
        """[T, hidden] through all layers."""
        for number, block in enumerate(self.blocks):
            x = self._add(x, block, "attention", partial(self._own, number, block, rotations[number], memory))
            if block.cross and looked_at:
                x = self._add(x, block, "cross", partial(self._cross, block.cross, looked_at(number)))
            x = self._add(x, block, "mlp", block.mlp)
        return x

    def normed(self, x: Tensor) -> Tensor:
        """[T, hidden] as it leaves the stack."""
        return self._norm(x, self.final_norm)

    def _own(self, number: int, block: Block, rotation: Rotation, memory: Memory, x: Tensor) -> Tensor:
        return self._attend(number, block, x, rotation, memory, None)

    def _cross(self, cross: Cross, contexts: Iterable[Context], x: Tensor) -> Tensor:
        q = cross.query(x).view(len(x), self.spec.num_attention_heads, self.spec.head_dim)
        scores = Scores(self.scale, self.precision.softmax)
        return cross.output(torch.cat([self.attention(q[c.queries], *c[1:], scores) for c in contexts]))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.dim() == 1:
            return super()._norm(x, weight)
        normed = layer_norm(x.to(self.precision.norm), weight.shape[1:], weight[0], weight[1], self.spec.rms_norm_eps)
        return normed.to(self.precision.compute)


class Decoder(StackModel):
    """The decoder, with all that both have: the encoder and the tables of positions."""

    encoder: StackModel
    distances: Mapping[Stack, Tensor]  # [H, 2 * relative_distance + 1]: what each distance adds to a score
    places: Tensor | None  # [max_position_embeddings, hidden]

    def start(self, ids: Sequence[int], positions: Integers) -> Tensor:
        """[T, hidden] as the first layer of either stack gets it."""
        x = self.embedded(self.embed(ids))
        return x if self.places is None else x + self.places[torch.from_numpy(positions)].to(x.dtype)

    def seen(self, stack: Stack, queries: range, count: int) -> Mask:
        """What queries at these positions see of keys at 0 to count: all in the encoder, else those up to their own."""
        device, later = self.final_norm.device, None
        if stack == "decoder" and len(queries) > 1:
            places = torch.arange(queries.start, queries.stop, device=device)
            later = torch.arange(count, device=device) > places[:, None]
        if self.spec.positions != "relative":
            return Mask() if later is None else Mask(~later)
        bias = self._biases(self.distances[stack], queries, count)
        return Mask(bias=bias if later is None else bias.masked_fill_(later, -torch.inf))

    def _biases(self, distances: Tensor, queries: range, count: int) -> Tensor:
        """[H, queries, count]: the row of each query is that of the one behind it, moved by one place."""
        reach = self.spec.relative_distance
        ahead = torch.arange(1 - queries.stop, count - queries.start, device=distances.device)
        return distances[:, ahead.clamp_(-reach, reach) + reach].unfold(1, count, 1).flip(1)

    def read(self, ids: Sequence[int], rotations: Sequence[Rotation], interrupted: Callable[[], bool]) -> Source:
        """What the decoder keeps of a source."""
        positions = np.arange(len(ids))
        x = self.encoder.run(self.start(ids, positions), rotations, self._whole(len(ids), interrupted))
        x = self.encoder.normed(x)
        return [self._kept(block.cross, x) for block in self.blocks if block.cross]

    def _whole(self, count: int, interrupted: Callable[[], bool]) -> Memory:
        """The memory of a source: all its tokens see each other. Some queries at a time, as scores are a square."""
        rows = max(1, min(ROWS, PAIRS // count))
        runs = [range(start, min(start + rows, count)) for start in range(0, count, rows)]

        def memory(layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
            keys, values = keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()
            for run in runs:
                if interrupted():
                    raise Interrupted
                yield Context(slice(run.start, run.stop), keys, values, self.seen("encoder", run, count))

        return memory

    def _kept(self, cross: Cross, x: Tensor) -> tuple[Tensor, Tensor]:
        heads, size = self.spec.num_attention_heads, self.spec.head_dim
        keys, values = cross.key_value(x).view(len(x), 2, heads, size).permute(1, 2, 0, 3).contiguous()
        return keys, values


def buckets(ahead: Tensor, count: int, reach: int, both_ways: bool) -> Tensor:
    """Which of `count` buckets a distance falls into: half of them have one distance each, the rest grow by its logarithm.

    ahead: position of the key less that of the query. In float32 and in the order of transformers and Mesh TensorFlow, as an
    edge of a bucket is a matter of rounding.
    """
    if both_ways:
        count //= 2
        first, distance = (ahead > 0).long() * count, ahead.abs()
    else:
        first, distance = torch.zeros_like(ahead), (-ahead).clamp_min(0)
    exact = count // 2
    grown = torch.log(distance.float() / exact) / math.log(reach / exact) * (count - exact)
    far = (exact + grown.clamp_min(0).long()).clamp_max(count - 1)
    return first + torch.where(distance < exact, distance, far)


class StacksAssembly(Assembly):
    """Takes the tensors of an EncoderDecoderSpec."""

    spec: EncoderDecoderSpec

    def model(self) -> Decoder:
        assert not self.waiting, f"tensors missing for {', '.join(self.waiting)}"
        encoder, decoder = (self._stack(kind, stack) for kind, stack in zip((StackModel, Decoder), STACKS, strict=True))
        assert isinstance(decoder, Decoder)
        decoder.encoder = encoder
        decoder.places = self.vectors.get(f"model.{ABSOLUTE}.weight")
        decoder.distances = {stack: self._distances(stack) for stack in STACKS if self.spec.positions == "relative"}
        return decoder

    def _stack(self, kind: type[StackModel], stack: Stack) -> StackModel:
        blocks = [self._block(stack, layer) for layer in range(self.spec.layers(stack))]
        norm = self._norm(f"{stack}.norm")
        return kind(self.spec, self.embed, blocks, norm, self._head(), self.precision, fused_attention)

    def _head(self) -> Linear:
        """A tied head may have a bias of its own."""
        head, bias = self.linears[self.head], self.vectors.get(f"{self.head}.bias")
        return head if bias is None else lambda x: head(x) + bias.to(x.dtype)

    def _block(self, stack: Stack, layer: int) -> StackBlock:
        prefix = f"{stack}.layers.{layer}."
        roles = {role: name for role, name in NORMS.items() if stack == "decoder" or role != "cross_in"}

        def attention(name: str, parts: str) -> Linear:
            return self.made(*(f"{prefix}{name}_attn.{part}_proj" for part in parts))

        cross = Cross(*(attention("cross", parts) for parts in ("q", "kv", "o"))) if stack == "decoder" else None
        return StackBlock(
            {role: self._norm(prefix + name) for role, name in roles.items()},
            attention("self", "qkv"),
            attention("self", "o"),
            FeedForward(
                self.made(f"{prefix}mlp.up_proj"),
                self.made(f"{prefix}mlp.down_proj"),
                ACTIVATIONS[self.spec.activation],
                self.spec.gated,
            ),
            cross=cross,
        )

    def _norm(self, name: str) -> Tensor:
        weight, bias = self.vectors[f"{name}.weight"], self.vectors.get(f"{name}.bias")
        return weight if bias is None else torch.stack((weight, bias))

    def _distances(self, stack: Stack) -> Tensor:
        spec, reach = self.spec, self.spec.relative_distance
        table = self.vectors[f"{stack}.{RELATIVE}.weight"]
        ahead = torch.arange(-reach, reach + 1, device=table.device)
        bucket = buckets(ahead, spec.relative_buckets, reach, both_ways=stack == "encoder")
        return table[bucket].T.contiguous()


class EncoderDecoderEngine(TorchEngine):
    """See engines.encoding.Encoding. Nothing of a decoder's text ever leaves its window: positions count from its first slot."""

    config: EncoderDecoderSpec
    model: Decoder
    assembly = StacksAssembly
    processes = 1  # that take from the same memory

    def __init__(self, assembly: Assembly, keys_values: KeysValues) -> None:
        super().__init__(assembly, keys_values)
        self.sources: dict[int, Source] = {}

    def encode(self, first: int, ids: Sequence[int], interrupted: Callable[[], bool] = never) -> None:
        """See Encoding."""
        self.release(first)
        if len(ids) > (room := self.source_room()):
            raise DoesNotFitError(
                f"the source has {len(ids)} tokens, there is room for {room}", "nothing was computed", "shorten it"
            )
        self.read(first, ids, interrupted)

    @torch.inference_mode()
    def read(self, first: int, ids: Sequence[int], interrupted: Callable[[], bool] = never) -> None:
        """`encode` of what there is room for."""
        self.sources[first] = self.model.read(ids, self._rotations(len(ids)), interrupted)

    def release(self, first: int) -> None:
        """See Encoding."""
        self.sources.pop(first, None)

    @staticmethod
    def check_outputs(outputs: Outputs) -> None:
        """See TorchEngine."""
        if outputs != "logits":
            cause = f"a model that answers a source gives no {outputs.replace('_', ' ')}"
            raise UsageError(cause, "nothing was computed")

    def source_room(self) -> int:
        """See Encoding."""
        free = free_memory(self.keys_values.device)
        room = free // (self.processes * source_bytes(self.config, self.model.precision))
        most = self.config.longest_source
        return room if most is None else min(room, most)

    def _rotations(self, count: int) -> list[Rotation]:
        """Of each of the encoder's layers."""
        rope, precision = self.config.rope(0), self.model.precision
        if rope is None:
            return [None] * self.config.encoder_layers
        made = frequencies(self.config, self.slots, rope)
        one = rotation(np.arange(count), *made, precision.rotary, self.keys_values.device)
        return [one] * self.config.encoder_layers

    def _run(
        self,
        ids: Sequence[Sequence[int]],
        steps: Sequence[CacheStep],
        wanted: Sequence[int] | None,
        outputs: Outputs = "logits",
    ) -> NDArray[np.float32]:
        self.check_outputs(outputs)
        positions, kept = np.concatenate([step.positions for step in steps]), self.keys_values.begin(steps)
        masks = [self._mask(step) for step in steps]
        sources = [self.sources[step.visible[0].start] for step in steps]
        ends = np.cumsum([0, *map(len, ids)]).tolist()
        runs = [slice(*ends[at : at + 2]) for at in range(len(ids))]

        def own(layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
            for context, mask in zip(kept(layer, keys, values), masks, strict=True):
                yield context._replace(mask=mask)

        def looked_at(layer: int) -> Iterator[Context]:
            for run, source in zip(runs, sources, strict=True):
                yield Context(run, *source[layer], Mask())

        x = self.model.start(list(chain.from_iterable(ids)), positions)
        x = self.model.run(x, self.keys_values.rotations(positions), own, looked_at)
        rows: NDArray[np.float32] = self.model.logits(x if wanted is None else x[wanted]).float().cpu().numpy()
        return rows

    def _mask(self, step: CacheStep) -> Mask:
        (seen,) = step.visible
        queries = range(len(seen) - len(step.positions), len(seen))
        assert step.pinned is None and np.array_equal(step.positions, queries), "it never rolls"
        return self.model.seen("decoder", queries, len(seen))


def source_bytes(config: EncoderDecoderSpec, precision: Precision) -> int:
    """A token's: of the keys and values that are kept of it, and of what a layer of the encoder makes meanwhile."""
    inner = config.num_attention_heads * config.head_dim
    layer = 6 * config.hidden_size + 7 * inner + 3 * config.intermediate_size
    kept = 2 * config.num_hidden_layers * inner
    return precision.compute.itemsize * (kept + layer) + 12 * config.num_attention_heads * ROWS


def planned_bytes(config: EncoderDecoderSpec, index: Mapping[str, TensorInfo], **settings: Any) -> Bytes:
    """As of engine.planned_bytes, with the keys and values of sources of as many tokens as there are slots."""
    planned = engine.planned_bytes(config, index, **settings)
    precision = chosen_precision(config, settings.get("device", "cpu"), settings.get("dtype"))
    cross = memory.kv_bytes(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.head_dim,
        settings["slots"],
        precision.compute.itemsize * 8,
    )
    return Bytes(planned.weights, planned.kv + cross)
