"""Tensors -> a model: the one place that chooses how each linear is multiplied (KERNELS, a bias, adapters, later shards)."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llamachat.core.model import Model, Precision, build_block
from llamachat.core.spec import HEADS, ModelSpec
from llamachat.core.tensors import QuantTensor, dequantize
from llamachat.core.tensors import Tensor as Weight
from llamachat.engines.torch.attention import fused_attention
from llamachat.engines.torch.linear import Dense, Linear, dense, make_linear
from llamachat.engines.torch.lora import Adapted, AdaptedEmbedding, Added, added
from llamachat.errors import UsageError
from llamachat.families.t5 import ABSOLUTE, RELATIVE
from llamachat.formats.adapter import Scaled
from llamachat.formats.lazy import listed

EMBEDDING = "model.embed_tokens"


class Assembly:
    """Takes tensors in any order; each layer is converted once its last part has come, and the parts are let go."""

    def __init__(self, spec: ModelSpec, device: torch.device, precision: Precision) -> None:
        self.spec, self.device, self.precision = spec, device, precision
        self.head = HEADS[spec.head][0]
        self.linears: dict[str, Adapted] = {}
        self.rows: dict[str, tuple[str, slice]] = {}  # module -> the layer that it is part of, and which rows of that
        self.vectors: dict[str, Tensor] = {}  # norms and sinks by name, and tables of positions
        self.waiting: dict[str, dict[str, Weight | None]] = {}
        self.kernels: dict[str, int] = {}
        self.embed: AdaptedEmbedding
        for name in spec.tensor_shapes():
            self.waiting.setdefault(_layer(name), {})[name] = None

    def add(self, name: str, tensor: Weight) -> None:
        parts = self.waiting[_layer(name)]
        parts[name] = tensor
        have = {part: tensor for part, tensor in parts.items() if tensor is not None}
        if len(have) == len(parts):
            del self.waiting[_layer(name)]
            self._convert(_layer(name), have)

    def _convert(self, layer: str, parts: Mapping[str, Weight]) -> None:
        weights = [tensor for name, tensor in parts.items() if not name.endswith(".bias")]
        biases = [tensor for name, tensor in parts.items() if name.endswith(".bias")]
        if layer == EMBEDDING:
            self._embedding(weights[0])
        elif layer.endswith((RELATIVE, ABSOLUTE)) or all(len(tensor.shape) == 1 for tensor in parts.values()):
            for name, tensor in parts.items():
                self.vectors[name] = dense([tensor], self.device, self.precision.norm)
                self._count("norms", self.vectors[name].nbytes)
        else:
            start = 0
            for name in (name for name in parts if name.endswith(".weight")):
                self.rows[name.removesuffix(".weight")] = layer, slice(start, start := start + parts[name].shape[0])
            self._linear(layer, make_linear(weights, biases, self.device, self.precision.compute))

    def _linear(self, layer: str, linear: Linear) -> None:
        self.linears[layer] = Adapted(linear)
        self._count(linear.kernel, linear.nbytes)

    def _embedding(self, tensor: Weight) -> None:
        """A dense matrix serves lookups and a tied head alike; of a packed one, rows are unpacked when looked up."""
        head = None
        if self.spec.tied_head:
            head = make_linear([tensor], [], self.device, self.precision.compute)
            self.rows[self.head] = self.head, slice(None)
            self._linear(self.head, head)
        if isinstance(head, Dense):
            self.embed = AdaptedEmbedding(_lookup(head.weight))
        elif isinstance(tensor, QuantTensor):
            self.embed = AdaptedEmbedding(_packed_lookup(tensor, self.device))
            self._count("embedding", tensor.nbytes)
        else:
            weight = dense([tensor], self.device, self.precision.compute)
            self.embed = AdaptedEmbedding(_lookup(weight))
            self._count("embedding", weight.nbytes)

    def _count(self, kernel: str, nbytes: int) -> None:
        self.kernels[kernel] = self.kernels.get(kernel, 0) + nbytes

    def model(self) -> Model:
        assert not self.waiting, f"tensors missing for {', '.join(self.waiting)}"
        blocks = [
            build_block(self.spec, layer, self.vectors, self.made) for layer in range(self.spec.num_hidden_layers)
        ]
        norm, head = self.vectors["model.norm.weight"] + self.spec.norm_offset, self.linears.get(self.head)
        return Model(self.spec, self.embed, blocks, norm, head, self.precision, fused_attention)

    def adapt(self, adapters: Sequence[Scaled]) -> None:
        """Have the model that was made add these to its products, and nothing else. Raises UsageError for what is no product."""
        found: dict[str, list[Added]] = {}
        for adapter, scale in adapters:
            for module, low in adapter.matrices.items():
                layer, rows = self.rows.get(module, (module, slice(None)))
                made = added(low.times(scale), rows, self.device, self.precision.compute)
                found.setdefault(layer, []).append(made)
        if tables := sorted(found.keys() - {EMBEDDING, *self.linears}):
            cause = f"an adapter changes {listed(tables)}, which is looked up in"
            raise UsageError(cause, "that is not done beside the weights", "merge it with llamachat quantize --lora")
        self.embed.added = found.pop(EMBEDDING, ())
        for layer, linear in self.linears.items():
            linear.added = found.get(layer, ())

    def made(self, *modules: str) -> Linear:
        """The product with these matrices, which have become one."""
        return self.linears[_layer(f"{modules[0]}.weight")]


def _layer(name: str) -> str:
    """The layer that a tensor becomes part of: matrices with the same input are one. Cross attention's queries have another."""
    owner = name if name.endswith(".sinks") else name.rpartition(".")[0]
    if ".cross_attn." in owner:
        return re.sub("[kv]_proj$", "kv", owner)
    return re.sub("(gate|up)_proj$", "gate_up", re.sub("[qkv]_proj$", "qkv", owner))


def _lookup(weight: Tensor) -> Callable[[Sequence[int]], Tensor]:
    return lambda ids: weight[torch.tensor(ids, device=weight.device)]


def _packed_lookup(tensor: QuantTensor, device: torch.device) -> Callable[[Sequence[int]], Tensor]:
    return lambda ids: torch.from_numpy(dequantize(tensor.rows(ids))).to(device)
