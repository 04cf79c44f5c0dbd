"""A model as the C side is told of it (c/model.h): sizes from a spec, layers over packed weights.

What a factor or an offset does to a weight is done to it here, once: offsets of norms, and multipliers of the embedding, of what
a layer adds and of the logits. A matrix is multiplied through its `unit`, which costs nothing.
"""

import ctypes
from dataclasses import dataclass, field

import numpy as np

from llamachat.core.rope import frequencies
from llamachat.core.spec import HEADS, NORMS, Activation, ModelSpec
from llamachat.core.spec import Rope as RopeSpec
from llamachat.core.tensors import Array
from llamachat.engines.native.abi import Layer, Matrix, Model, Rope, address
from llamachat.engines.native.packed_file import PackedWeights

ATTENTION, GATED = tuple(f"self_attn.{name}_proj" for name in "qkvo"), ("gate_proj", "up_proj", "down_proj")
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "router", *GATED)  # kinds of matrices that probe.c keeps apart
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_pytorch_tanh", "clamped_swiglu")  # as in model.h
FINE_QKV, FINE_OUTPUT, FINE_MLP, FINE_DOWN, FINE_HEAD = (1 << bit for bit in range(5))
FINE_ALL = 31
# Rounding activations to 8 bits costs SmolLM2 (Q4_1) a mean KL divergence of 0.0030, of which the head's share is 0.0010,
# that of query, key and value 0.0009. These two are a small part of all multiplications; with 15 bits there it is 0.0012.
FINE = FINE_QKV | FINE_HEAD
SMALL = 512  # hidden size below which all activations have 15 bits: such models are fast in any case
NO_WINDOW = np.iinfo(np.int32).max


def sized(spec: ModelSpec, slots: int, kv_kind: int, threads: int, batch: int) -> Model:
    """A model without its weights."""
    experts, kinds = spec.experts, ropes(spec)
    dense = any(spec.mixture(layer) is None for layer in range(spec.num_hidden_layers))
    model = Model(
        spec.vocab_size, spec.hidden_size, spec.intermediate_size if dense else 0, spec.num_hidden_layers,
        spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim, slots, kv_kind, threads, batch, spec.outputs,
        ACTIVATIONS.index(spec.hidden_act), len(kinds), FINE_ALL if spec.hidden_size < SMALL else FINE,
        spec.qk_norm == "projection",
    )  # fmt: skip
    if experts is not None:
        model.experts, model.picked, model.expert_inner = experts.count, experts.per_token, experts.intermediate_size
        model.whole_softmax = experts.softmax_first and not experts.normalized
    model.eps, model.query_scale = spec.rms_norm_eps, spec.attention_scale or spec.head_dim**-0.5
    model.softcap, model.logit_softcap = spec.attention_softcap or 0.0, spec.logit_softcap or 0.0
    model.swiglu_limit = spec.swiglu_limit
    growth = spec.query_scale
    if growth is not None and slots > growth.original:  # in a shorter context it has no effect
        model.query_span, model.query_growth = growth.original, growth.beta
    return model


def ropes(spec: ModelSpec) -> list[RopeSpec]:
    """The ways to rotate that its layers have, each once."""
    found = (spec.rope(layer) for layer in range(spec.num_hidden_layers))
    return list(dict.fromkeys(rope for rope in found if rope is not None))


@dataclass
class Description:
    """Fills in the weights of a `sized` model; must outlive its use, as must the weights."""

    spec: ModelSpec
    weights: PackedWeights
    model: Model
    parts: list[int] = field(default_factory=list)  # of each matrix, which of PARTS it is
    modules: dict[str, tuple[Matrix, float]] = field(
        default_factory=dict
    )  # those that can be adapted, and their factors
    kept: list[object] = field(default_factory=list)  # what the model points to

    def __post_init__(self) -> None:
        spec, model = self.spec, self.model
        scale = spec.residual_multiplier
        self._added = 1.0 if spec.norms != "before" else scale  # of matrices; a norm after them has it itself
        self._ways = ropes(spec)
        tables = [frequencies(spec, model.slots, way) for way in self._ways]
        self.kept += [frequency for frequency, _ in tables]
        rope = (Rope * len(tables))(*(Rope(address(f), factor, 2 * len(f)) for f, factor in tables))
        layers = (Layer * spec.num_hidden_layers)()
        self.matrices = self._matrices(layers)
        for number, layer in enumerate(layers):
            self._fill(number, layer)
        embed = self.matrix("model.embed_tokens", spec.embedding_multiplier)
        model.rope, model.layer, model.norm = rope, layers, self._norm("model.norm")
        model.embed = ctypes.pointer(embed)
        self.modules["model.embed_tokens"] = embed, spec.embedding_multiplier
        if spec.outputs:
            own = HEADS[spec.head][0]
            head = self.matrix("model.embed_tokens" if spec.tied_head else own, spec.logit_multiplier)
            self.modules[own], model.head = (head, spec.logit_multiplier), ctypes.pointer(head)
        self.kept += [rope, layers, embed, model.head]

    def _matrices(self, layers: ctypes.Array[Layer]) -> ctypes.Array[Matrix]:
        """Those of all layers side by side; each layer is told where its own are."""
        names, starts = list[str](), list[tuple[int, int, int | None]]()
        for number in range(len(layers)):
            prefix, experts = f"model.layers.{number}.", self.spec.mixture(number)
            at = len(names)
            names += [prefix + name for name in ATTENTION]
            names += [prefix + "mlp.gate"] if experts else []
            starts.append((at, len(names), len(names) - 1 if experts else None))
            owners = [f"mlp.experts.{each}." for each in range(experts.count)] if experts else ["mlp."]
            names += [f"{prefix}{owner}{name}" for owner in owners for name in GATED]
        matrices = (Matrix * len(names))(*map(self._of_layer, names))
        self.modules |= {name: (matrix, self._factor(name)) for name, matrix in zip(names, matrices, strict=True)}
        for layer, (attention, mlp, router) in zip(layers, starts, strict=True):
            layer.attention, layer.mlp = ctypes.pointer(matrices[attention]), ctypes.pointer(matrices[mlp])
            if router is not None:
                layer.router = ctypes.pointer(matrices[router])
        return matrices

    def _of_layer(self, name: str) -> Matrix:
        last = name.rpartition(".")[2]
        self.parts.append(PARTS.index("router" if last == "gate" else last))
        return self.matrix(name, self._factor(name))

    def _factor(self, name: str) -> float:
        return self._added if name.endswith(("o_proj", "down_proj")) else 1.0

    def matrix(self, name: str, factor: float = 1.0) -> Matrix:
        """A packed matrix and its bias, both times a factor."""
        header, data = self.weights.tensors[name + ".weight"]
        bias = self.weights.tensors[name + ".bias"][1] if name + ".bias" in self.weights.tensors else None
        if bias is not None and factor != 1.0:
            bias = bias.view(np.float32) * np.float32(factor)
        matrix = header.matrix(data, bias)
        matrix.unit *= factor
        self.kept.append(bias)
        return matrix

    def _fill(self, number: int, layer: Layer) -> None:
        """What a layer has besides its matrices."""
        spec, prefix = self.spec, f"model.layers.{number}."
        for role, name in NORMS[spec.norms].items():
            setattr(layer, role, self._norm(prefix + name, spec.residual_multiplier if role.endswith("out") else 1.0))
        if spec.qk_norm:
            layer.q_norm, layer.k_norm = (self._norm(f"{prefix}self_attn.{name}_norm") for name in "qk")
        if spec.attention_sinks:
            layer.sinks = address(self.weights.tensors[prefix + "self_attn.sinks"][1])
        rope = spec.rope(number)
        layer.window, layer.rope = spec.window(number) or NO_WINDOW, -1 if rope is None else self._ways.index(rope)

    def _norm(self, name: str, factor: float = 1.0) -> int:
        """Of a norm's weight, its offset added, times a factor."""
        header, data = self.weights.tensors[name + ".weight"]
        weight: Array = data.view(np.float32)
        if self.spec.norm_offset or factor != 1.0:
            weight = weight.copy()
            weight[: header.columns] += np.float32(self.spec.norm_offset)
            weight *= np.float32(factor)
        self.kept.append(weight)
        return address(weight)
