"""A model of which each process has a shard: Meta's ColumnParallelLinear, RowParallelLinear and VocabParallelEmbedding
(Megatron-LM, arXiv 1909.08053) around the layers of core/model.py.

A process's linears are smaller matrices, and its model has fewer heads. What is left is where processes need each other: two
sums a layer, behind attention and behind the feed-forward part (of a mixture one, too); one for the embedding, whose rows are
shared out; the logits, which rank 0 puts together; and the mean square of a norm over whole projections (OLMo 2).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamachat.core.model import Block, Linear, Model
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Tensor as Weight
from llamachat.engines.shards import Shard
from llamachat.engines.torch.encoder_decoder import Decoder, EncoderDecoderEngine, StackBlock, StackModel
from llamachat.engines.torch.engine import TorchEngine
from llamachat.engines.torch.links import Links, gathered, summed
from llamachat.families.t5 import EncoderDecoderSpec


@dataclass(frozen=True)
class RowParallel:
    """A product whose weight's columns are shared out: everyone has a part of each sum."""

    linear: Linear
    links: Links

    def __call__(self, x: Tensor) -> Tensor:
        return summed(self.linear(x), self.links)


@dataclass(frozen=True)
class VocabParallelHead:
    """A head whose rows are shared out: rank 0 gets all logits."""

    linear: Linear
    rows: Sequence[int]  # of each rank
    links: Links

    def __call__(self, x: Tensor) -> Tensor:
        return gathered(self.linear(x), self.rows, self.links)


@dataclass(frozen=True)
class VocabParallelEmbedding:
    """Rows that are shared out; whoever has not a token's row adds zeros."""

    lookup: Callable[[Sequence[int]], Tensor]  # by the number among one's own
    rows: slice
    links: Links

    def __call__(self, ids: Sequence[int]) -> Tensor:
        mine = [self.rows.start <= token < self.rows.stop for token in ids]
        found = self.lookup([token - self.rows.start if own else 0 for token, own in zip(ids, mine, strict=True)])
        return summed(found.masked_fill(~torch.tensor(mine, device=found.device)[:, None], 0), self.links)


class ShardModel(Model):
    """A decoder's shard."""

    links: Links

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.spec.qk_norm != "projection":
            return super()._head_norm(x, weight)
        flat = x.flatten(1).to(self.precision.norm)
        squares = torch.cat((flat.square().sum(-1), flat.new_tensor([flat.shape[1]])))
        squares = summed(squares, self.links)  # heads that several processes have count in both
        mean = (squares[:-1] / squares[-1])[:, None]
        normed = flat * torch.rsqrt(mean + self.spec.rms_norm_eps) * weight
        return normed.to(self.precision.compute).view(x.shape)


def sharded(model: Model, spec: ModelSpec, links: Links) -> Model:
    """The model of a shard's tensors, bound to those of the others; `spec` is the whole one's."""
    if isinstance(model, Decoder):
        for stack in (model.encoder, model):
            _bind(stack, spec, links)
        return model
    shard = ShardModel(
        model.spec, model.embed, model.blocks, model.final_norm, model.head, model.precision, model.attention
    )
    shard.links = links
    _bind(shard, spec, links)
    return shard


def _bind(model: Model | StackModel, spec: ModelSpec, links: Links) -> None:
    shares = [Shard(spec, rank, links.size).vocabulary for rank in range(links.size)]
    model.blocks = [_bound(block, links) for block in model.blocks]
    model.embed = VocabParallelEmbedding(model.embed, shares[links.rank], links)
    if model.head is not None and spec.head == "next_token":
        model.head = VocabParallelHead(model.head, [share.stop - share.start for share in shares], links)


def _bound(block: Block, links: Links) -> Block:
    block = replace(block, output=RowParallel(block.output, links), mlp=RowParallel(block.mlp, links))
    if isinstance(block, StackBlock) and block.cross:
        return replace(block, cross=replace(block.cross, output=RowParallel(block.cross.output, links)))
    return block


def build_shard(
    spec: ModelSpec, tensors: Iterable[tuple[str, Weight]], links: Links, **settings: object
) -> TorchEngine:
    """An engine of this rank's parts of a model's tensors, to be run together with those of the others; `settings` as of
    TorchEngine.build."""
    kind = EncoderDecoderEngine if isinstance(spec, EncoderDecoderSpec) else TorchEngine
    engine = kind.build(Shard(spec, links.rank, links.size).local_spec(), tensors, **settings)  # type: ignore[arg-type]
    engine.model = sharded(engine.model, spec, links)
    if isinstance(engine, EncoderDecoderEngine) and engine.keys_values.device.type == "cpu":
        engine.processes = links.size
    return engine
