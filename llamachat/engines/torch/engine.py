"""The reference engine: torch, on the CPU or a CUDA device, for every model that llamachat reads."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.rope import cos_sin, frequencies
from llamachat.core.spec import Dtype, KvBits, LlamaConfig
from llamachat.core.tensors import QuantTensor, TensorInfo, dequantize
from llamachat.core.tensors import Tensor as Weight
from llamachat.engines.saved import Layout, Saved, pinned_among
from llamachat.engines.torch.linear import Dense, Linear, dense, kernel_for, make_linear
from llamachat.engines.torch.model import Block, Context, Llama, Memory, Precision, Sight, rotate, spread

Span = slice | Tensor  # slots of the cache: a run of them, or a list
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class Bytes(NamedTuple):
    """Memory that a model takes."""

    weights: int
    kv: int


class TorchEngine:
    """See engine.Engine. `weight_bytes` and `kv_bytes` are the memory it holds."""

    batch_invariant = False  # products of one row and of several round differently

    def __init__(self, model: Llama, keys_values: "KeysValues", kernels: Mapping[str, int]) -> None:
        self.model, self.keys_values = model, keys_values
        self.kernels = kernels  # name -> bytes of weights that it multiplies
        self.config, self.slots = model.config, keys_values.slots
        self.weight_bytes, self.kv_bytes = sum(kernels.values()), keys_values.nbytes

    @classmethod
    def build(
        cls,
        config: LlamaConfig,
        tensors: Iterable[tuple[str, Weight]],
        *,
        slots: int,
        device: str = "cpu",
        dtype: Dtype | None = None,
        kv_bits: KvBits | None = None,
        threads: int | None = None,
    ) -> "TorchEngine":
        """Takes the tensors of config.tensor_shapes(), in any order, and lets go of each as soon as it is converted.

        `dtype` is that of the arithmetic, by default what the configuration asks for, else `default_dtype`; float32
        computes with the exact values of the weights. Keys and values are kept in the same dtype unless `kv_bits` says
        otherwise: in 16 bits beside float32 they are float16. `threads` is set for all of torch.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        where, precision = torch.device(device), _precision(config, device, dtype)
        assembly = Assembly(config, where, precision)
        for name, tensor in tensors:
            assembly.add(name, tensor)
        return cls(assembly.model(), KeysValues(config, slots, where, precision, kv_bits), assembly.kernels)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        if step.pinned is not None:
            self.keys_values.pin(*step.pinned)
        rows = self._run([ids], [step], [len(ids) - 1] if logits == "last" else None)
        return rows[-1] if logits == "last" else rows

    @torch.inference_mode()
    def forward_many(self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep]) -> NDArray[np.float32]:
        assert all(step.pinned is None for step in steps)
        ends = np.cumsum([len(text) for text in ids])
        return self._run(ids, steps, (ends - 1).tolist())

    def _run(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], wanted: Sequence[int] | None
    ) -> NDArray[np.float32]:
        assert all(
            len(text) == len(step.slots) == len(step.positions) > 0 for text, step in zip(ids, steps, strict=True)
        )
        cos, sin = self.keys_values.rotations(np.concatenate([step.positions for step in steps]))
        out = self.model(list(chain.from_iterable(ids)), cos, sin, self.keys_values.begin(steps), wanted)
        rows: NDArray[np.float32] = out.float().cpu().numpy()
        return rows

    @torch.inference_mode()
    def save_kv(self, slots: Integers) -> Saved:
        return self.keys_values.save_kv(slots)

    @torch.inference_mode()
    def load_kv(self, slots: Integers, positions: Integers, saved: Saved) -> None:
        self.keys_values.load_kv(slots, positions, saved)

    def describe(self) -> str:
        kernels = ", ".join(f"{kernel} {size / 1e6:.0f} MB" for kernel, size in self.kernels.items())
        device = self.keys_values.device.type
        where = f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else device
        types = str(self.model.precision.compute).removeprefix("torch.")
        about = f"torch {torch.__version__} ({where}); computes in {types}; weights {kernels}"
        return f"{about}; keys and values {self.keys_values.kind}"


def default_dtype(device: str) -> Dtype:
    """bfloat16 where the processor multiplies it: packed weights then take a quarter of float32's memory or less.

    On SmolLM2 (Q4_1) and two cores that decodes 2.2 times as fast as float32, and reads prompts 0.7 times as fast.
    """
    if device == "cpu":
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def planned_bytes(
    config: LlamaConfig,
    index: Mapping[str, TensorInfo],
    *,
    slots: int,
    device: str = "cpu",
    dtype: Dtype | None = None,
    kv_bits: KvBits | None = None,
) -> Bytes:
    """What `build` with the same arguments will hold, from headers alone; tensors of unknown packing count as dense.

    On top come a few hundred MB: torch itself, one layer while it is converted, and the activations of a step.
    """
    where, precision = torch.device(device), _precision(config, device, dtype)

    def planned(name: str, info: TensorInfo) -> float:
        size, like = math.prod(info.shape), info.packing
        if len(info.shape) == 1:
            return size * (precision.norm if "norm" in name else precision.compute).itemsize
        kernel = kernel_for(like, info.shape[0], where, precision.compute) if like else None
        product = size * kernel.bits(like) / 8 if like and kernel else size * precision.compute.itemsize
        tied = config.tie_word_embeddings
        if not name.startswith(EMBEDDING) or not like or (tied and not kernel):
            return product
        scales = like.scale.itemsize + (0 if like.minimum is None else like.minimum.itemsize)
        return size * (like.bits / 8 + scales / like.group) + (product if tied else 0)

    weights = sum(planned(name, info) for name, info in index.items())
    return Bytes(round(weights), slots * KeysValues.bytes_per_slot(config, precision, kv_bits))


def _precision(config: LlamaConfig, device: str, dtype: Dtype | None) -> Precision:
    asked = config.dtypes
    compute: Dtype = dtype or asked.compute or default_dtype(device)
    names = (compute, asked.norm, asked.softmax, asked.rotary, asked.residual or compute)
    return Precision(*(getattr(torch, name) for name in names))


class Assembly:
    """Turns a stream of tensors into a model, each layer once its last part has come."""

    def __init__(self, config: LlamaConfig, device: torch.device, precision: Precision) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.linears: dict[str, Linear] = {}
        self.norms: dict[str, Tensor] = {}
        self.waiting: dict[str, dict[str, Weight | None]] = {}
        self.kernels: dict[str, int] = {}
        self.embed: Callable[[Sequence[int]], Tensor]
        for name in config.tensor_shapes():
            self.waiting.setdefault(_layer(name), {})[name] = None

    def add(self, name: str, tensor: Weight) -> None:
        parts = self.waiting[_layer(name)]
        parts[name] = tensor
        have = {part: tensor for part, tensor in parts.items() if tensor is not None}
        if len(have) == len(parts):
            del self.waiting[_layer(name)]
            self._convert(_layer(name), have)

    def _convert(self, layer: str, parts: Mapping[str, Weight]) -> None:
        weights = [tensor for name, tensor in parts.items() if name.endswith(".weight")]
        biases = [tensor for name, tensor in parts.items() if name.endswith(".bias")]
        if layer == EMBEDDING:
            self._embedding(weights[0])
        elif len(weights[0].shape) == 1:
            self.norms[layer] = dense(weights, self.device, self.precision.norm)
            self._count("norms", self.norms[layer].nbytes)
        else:
            self._linear(layer, make_linear(weights, biases, self.device, self.precision.compute))

    def _linear(self, layer: str, linear: Linear) -> None:
        self.linears[layer] = linear
        self._count(linear.kernel, linear.nbytes)

    def _embedding(self, tensor: Weight) -> None:
        """A dense matrix serves lookups and a tied head alike; of a packed one, rows are unpacked when looked up."""
        head = None
        if self.config.tie_word_embeddings:
            head = make_linear([tensor], [], self.device, self.precision.compute)
            self._linear(HEAD, head)
        if isinstance(head, Dense):
            self.embed = _lookup(head.weight)
        elif isinstance(tensor, QuantTensor):
            self.embed = _packed_lookup(tensor, self.device)
            self._count("embedding", tensor.nbytes)
        else:
            weight = dense([tensor], self.device, self.precision.compute)
            self.embed = _lookup(weight)
            self._count("embedding", weight.nbytes)

    def _count(self, kernel: str, nbytes: int) -> None:
        self.kernels[kernel] = self.kernels.get(kernel, 0) + nbytes

    def model(self) -> Llama:
        assert not self.waiting, f"tensors missing for {', '.join(self.waiting)}"
        blocks = [self._block(f"model.layers.{layer}.") for layer in range(self.config.num_hidden_layers)]
        return Llama(self.config, self.embed, blocks, self.norms["model.norm"], self.linears[HEAD], self.precision)

    def _block(self, prefix: str) -> Block:
        return Block(
            input_norm=self.norms[prefix + "input_layernorm"],
            qkv=self.linears[prefix + "self_attn.qkv"],
            output=self.linears[prefix + "self_attn.o_proj"],
            post_norm=self.norms[prefix + "post_attention_layernorm"],
            gate_up=self.linears[prefix + "mlp.gate_up"],
            down=self.linears[prefix + "mlp.down_proj"],
        )


def _layer(name: str) -> str:
    """The layer that a tensor becomes part of."""
    return re.sub("(gate|up)_proj$", "gate_up", re.sub("[qkv]_proj$", "qkv", name.rpartition(".")[0]))


def _lookup(weight: Tensor) -> Callable[[Sequence[int]], Tensor]:
    return lambda ids: weight[torch.tensor(ids, device=weight.device)]


def _packed_lookup(tensor: QuantTensor, device: torch.device) -> Callable[[Sequence[int]], Tensor]:
    return lambda ids: torch.from_numpy(dequantize(tensor.rows(ids))).to(device)


class KeysValues:
    """Keys and values of `slots` tokens in float, or int8 with a scale per slot and head, and each slot's position."""

    def __init__(
        self, config: LlamaConfig, slots: int, device: torch.device, precision: Precision, bits: KvBits | None = None
    ) -> None:
        self.config, self.slots, self.device, self.precision = config, slots, device, precision
        self.frequency, self.factor = frequencies(config, slots)
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, slots, config.head_dim)
        kept = _kept(precision, bits)
        self.data = torch.empty(shape, dtype=kept, device=device)  # [layer, key or value, G, slot, D]
        self.scale = torch.empty((*shape[:-1], 1), device=device) if kept == torch.int8 else None
        self.kind = str(kept).removeprefix("torch.")
        master = str(torch.promote_types(torch.float32 if kept == torch.int8 else kept, torch.float32)).removeprefix(
            "torch."
        )
        self.layout = Layout(config, "uint16" if kept == torch.bfloat16 else self.kind, kept == torch.int8, master)
        self.nbytes = slots * self.bytes_per_slot(config, precision, bits)
        self.windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        self.positions = np.full(slots, np.iinfo(np.int64).max)  # a slot not yet written is later than every query
        self.master: tuple[range, Tensor] | None = None

    @staticmethod
    def bytes_per_slot(config: LlamaConfig, precision: Precision, bits: KvBits | None) -> int:
        kept = _kept(precision, bits)
        head = config.head_dim * kept.itemsize + (4 if kept == torch.int8 else 0)
        return config.num_hidden_layers * 2 * config.num_key_value_heads * head

    def begin(self, steps: Sequence[CacheStep]) -> Memory:
        """Note the positions of these texts' tokens, and give the memory that the model works on."""
        slots = np.concatenate([step.slots for step in steps])
        self.positions[slots] = np.concatenate([step.positions for step in steps])
        self._overwritten(slots)
        where, ends = _span(slots), np.cumsum([len(step.slots) for step in steps]).tolist()
        runs = [slice(end - len(step.slots), end) for end, step in zip(ends, steps, strict=True)]
        views = {window: [self._view(step, window) for step in steps] for window in set(self.windows)}

        def memory(layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
            self._write((layer, slice(None), slice(None), where), torch.stack((keys, values)).transpose(1, 2))
            for run, (spans, sight) in zip(runs, views[self.windows[layer]], strict=True):
                keys, values = self._read(layer, spans)
                yield Context(run, keys, values, sight)

        return memory

    def save_kv(self, slots: Integers) -> Saved:
        """See engine.saved."""
        where = (slice(None), slice(None), slice(None), _span(slots))
        saved = {"kv": _to_numpy(self.data[where])}
        if self.scale is not None:
            saved["scale"] = _to_numpy(self.scale[where][..., 0])
        if self.master is not None and (pinned := pinned_among(slots, self.master[0])) is not None:
            saved |= {"pinned": pinned, "master": _to_numpy(self.master[1])}
        return saved

    def load_kv(self, slots: Integers, positions: Integers, saved: Saved) -> None:
        """Raises FormatError."""
        block = self.layout.check(saved, slots)
        where = (slice(None), slice(None), slice(None), _span(slots))
        kv = torch.from_numpy(saved["kv"].view(np.int16) if self.data.dtype == torch.bfloat16 else saved["kv"])
        self.data[where] = kv.to(self.device).view(self.data.dtype)
        if self.scale is not None:
            self.scale[where] = torch.from_numpy(saved["scale"]).to(self.device)[..., None]
        self.positions[slots] = positions
        self._overwritten(slots)
        if block is not None:
            self.master = block, torch.from_numpy(saved["master"]).to(self.device)

    def _overwritten(self, slots: Integers) -> None:
        """A pinned block that is written to begins anew."""
        if self.master is not None and any(slot in self.master[0] for slot in slots.tolist()):
            self.master = None

    def rotations(self, positions: Integers) -> tuple[Tensor, Tensor]:
        """For `rotate` on [T, heads, D]."""
        cos, sin = (torch.from_numpy(x)[:, None] for x in cos_sin(positions, self.frequency, self.factor))
        return spread(*(x.to(self.device, self.precision.rotary) for x in (cos, sin)))

    def _view(self, step: CacheStep, window: int | None) -> tuple[list[slice], Sight]:
        """Which slots this step reads, and which of those each query sees."""
        spans = [slice(span.start, span.stop) for span in step.visible]
        own, held = step.positions, np.concatenate([self.positions[span] for span in spans])
        if window is not None and own.max() - held.min() < window:
            window = None
        if window is None and np.array_equal(held, own) and np.all(np.diff(own) > 0):
            return spans, Sight(causal=len(own) > 1)
        seen = held <= own[:, None]
        if window is not None:
            seen &= held > own[:, None] - window
        if len(spans) == 1:  # leave out what no query sees at both ends: with a sliding window, most of the cache
            used = np.flatnonzero(seen.any(0))
            spans = [slice(spans[0].start + used[0], spans[0].start + used[-1] + 1)]
            seen = seen[:, used[0] : used[-1] + 1]
        return spans, Sight() if seen.all() else Sight(torch.from_numpy(seen).to(self.device))

    def _write(self, where: tuple[int | Span, ...], x: Tensor) -> None:
        if self.scale is None:
            self.data[where] = x.to(self.data.dtype)
        else:
            self.data[where], self.scale[where] = quantize(x)

    def _read(self, layer: int, spans: Sequence[slice]) -> Tensor:
        """[2, G, S, D] in the compute dtype."""
        x = _gather(self.data[layer], spans)
        if self.scale is not None:
            x = x * _gather(self.scale[layer], spans)
        return x.to(self.precision.compute)

    def pin(self, block: range, start: int) -> None:
        """Turn the keys of a block of slots to positions from `start` on.

        Always from the un-rotated keys that are made when the block is first turned, so that rounding never adds up.
        """
        where = (slice(None), 0, slice(None), slice(block.start, block.stop))
        if self.master is None or self.master[0] != block:
            keys = self.data[where] if self.scale is None else self.data[where] * self.scale[where]
            self.master = block, self._turn(keys, -self.positions[block.start : block.stop])
        positions = np.arange(start, start + len(block))
        self._write(where, self._turn(self.master[1], positions))
        self.positions[block.start : block.stop] = positions

    def _turn(self, keys: Tensor, by: Integers) -> Tensor:
        """[..., n, D], each turned by its number of positions, in float32 at least."""
        dtype = torch.promote_types(keys.dtype, torch.float32)
        cos, sin = (torch.from_numpy(x).to(self.device, dtype) for x in cos_sin(by, self.frequency))
        return rotate(keys.to(dtype), *spread(cos, sin))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., D] -> int8 codes [..., D] and float32 scales [..., 1], so that x is about codes * scales."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).round().to(torch.int8), scale


def _gather(x: Tensor, spans: Sequence[slice]) -> Tensor:
    return x[:, :, spans[0]] if len(spans) == 1 else torch.cat([x[:, :, span] for span in spans], 2)


def _to_numpy(x: Tensor) -> NDArray[Any]:
    """A copy; bfloat16, which numpy has not, as its bits."""
    bits = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    out: NDArray[Any] = bits.cpu().numpy().copy()
    return out.view(np.uint16) if x.dtype == torch.bfloat16 else out


def _span(slots: Integers) -> Span:
    """A slice where that will do: it is read and written in place."""
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if np.array_equal(slots, np.arange(first, last + 1)) else torch.from_numpy(slots)


def _kept(precision: Precision, bits: KvBits | None) -> torch.dtype:
    sixteen = precision.compute if precision.compute.itemsize == 2 else torch.float16
    return {None: precision.compute, 32: torch.float32, 16: sixteen, 8: torch.int8}[bits]
