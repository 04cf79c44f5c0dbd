"""The reference engine: torch, on the CPU or a CUDA device, for every model that llamachat reads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.engine import Outputs
from llamachat.core.model import Precision
from llamachat.core.spec import Dtype, KvBits, ModelSpec
from llamachat.core.tensors import Tensor, TensorInfo
from llamachat.engines import memory
from llamachat.engines.saved import Saved, in_words
from llamachat.engines.torch.assembly import EMBEDDING, Assembly
from llamachat.engines.torch.keys_values import KeysValues
from llamachat.engines.torch.linear import kernel_for
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.adapter import Scaled


class Bytes(NamedTuple):
    """Memory that a model takes."""

    weights: int
    kv: int


class TorchEngine:
    """See engine.Engine. `weight_bytes` and `kv_bytes` are the memory it holds."""

    batch_invariant = False  # products of one row and of several round differently
    assembly = Assembly

    def __init__(self, assembly: Assembly, keys_values: KeysValues) -> None:
        self.model, self.keys_values = assembly.model(), keys_values
        self.kernels = assembly.kernels  # name -> bytes of weights that it multiplies
        self._assembly = assembly
        self.config, self.slots = self.model.spec, keys_values.slots
        self.weight_bytes, self.kv_bytes = sum(self.kernels.values()), keys_values.nbytes

    @classmethod
    def build(
        cls,
        config: ModelSpec,
        tensors: Iterable[tuple[str, Tensor]],
        *,
        slots: int,
        device: str = "cpu",
        dtype: Dtype | None = None,
        kv_bits: KvBits | None = None,
        threads: int | None = None,
    ) -> Self:
        """Takes the tensors of config.tensor_shapes(), in any order, and lets go of each as soon as it is converted.

        `dtype` is that of the arithmetic, by default what the configuration asks for, else `default_dtype`; float32
        computes with the exact values of the weights. Keys and values are kept in the same dtype unless `kv_bits` says
        otherwise: in 16 bits beside float32 they are float16. `threads` is set for all of torch.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        where, precision = torch.device(device), chosen_precision(config, device, dtype)
        assembly = cls.assembly(config, where, precision)
        for name, tensor in tensors:
            assembly.add(name, tensor)
        return cls(assembly, KeysValues(config, slots, where, precision, kv_bits))

    @torch.inference_mode()
    def adapt(self, adapters: Sequence[Scaled]) -> None:
        """Have these adapters in force from the next step on, and no others."""
        self._assembly.adapt(adapters)

    @torch.inference_mode()
    def forward(
        self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"], outputs: Outputs = "logits"
    ) -> NDArray[np.float32]:
        if step.pinned is not None:
            self.keys_values.pin(*step.pinned)
        rows = self._run([ids], [step], [len(ids) - 1] if logits == "last" else None, outputs)
        return rows[..., -1, :] if logits == "last" else rows

    @staticmethod
    def check_outputs(outputs: Outputs) -> None:
        """Raises UsageError for those that it has not."""

    @torch.inference_mode()
    def forward_many(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], outputs: Literal["logits", "hidden"] = "logits"
    ) -> NDArray[np.float32]:
        assert all(step.pinned is None for step in steps)
        ends = np.cumsum([len(text) for text in ids])
        return self._run(ids, steps, (ends - 1).tolist(), outputs)

    def _run(
        self,
        ids: Sequence[Sequence[int]],
        steps: Sequence[CacheStep],
        wanted: Sequence[int] | None,
        outputs: Outputs = "logits",
    ) -> NDArray[np.float32]:
        assert all(
            len(text) == len(step.slots) == len(step.positions) > 0 for text, step in zip(ids, steps, strict=True)
        )
        positions = np.concatenate([step.positions for step in steps])
        rotations, scale = self.keys_values.rotations(positions), self.keys_values.query_scale(positions)
        memory = self.keys_values.begin(steps, whole=outputs == "attentions")
        out = self.model(list(chain.from_iterable(ids)), rotations, memory, wanted, scale, outputs)
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
        return f"{about}; {in_words(self.keys_values.kind)}"


def default_dtype(device: str) -> Dtype:
    """bfloat16 where the processor multiplies it: packed weights then take a quarter of float32's memory or less.

    On SmolLM2 (Q4_1) and two cores that decodes 2.2 times as fast as float32, and reads prompts 0.7 times as fast.
    """
    if device == "cpu":
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def free_memory(device: str | torch.device) -> int:
    """Bytes that can be had there."""
    where = torch.device(device)
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else memory.available_memory()


def planned_bytes(
    config: ModelSpec,
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
    where, precision = torch.device(device), chosen_precision(config, device, dtype)

    def planned(name: str, info: TensorInfo) -> float:
        size, like = math.prod(info.shape), info.packing
        if len(info.shape) == 1:
            return size * (precision.compute if name.endswith(".bias") else precision.norm).itemsize
        kernel = kernel_for(like, info.shape[0], where, precision.compute) if like else None
        product = size * kernel.bits(like) / 8 if like and kernel else size * precision.compute.itemsize
        tied = config.tied_head
        if not name.startswith(EMBEDDING) or not like or (tied and not kernel):
            return product
        scales = like.scale.itemsize + (0 if like.minimum is None else like.minimum.itemsize)
        return size * (like.bits / 8 + scales / like.group) + (product if tied else 0)

    weights = sum(planned(name, info) for name, info in index.items())
    return Bytes(round(weights), KeysValues.planned(config, slots, precision, kv_bits))


def chosen_precision(config: ModelSpec, device: str, dtype: Dtype | None) -> Precision:
    """What the configuration or `dtype` asks for; but norms behind a layer's parts let the residual stream grow beyond float16
    (Gemma's does), which is then float32. So do T5's feed-forward parts, which are run in float16 only where that is asked for.
    """
    asked, grows = config.dtypes, isinstance(config, EncoderDecoderSpec)
    compute: Dtype = dtype or asked.compute or default_dtype(device)
    if grows and compute == "float16" and not (dtype or asked.compute):
        compute = "float32"
    residual = "float32" if compute == "float16" and (grows or config.norms != "before") else compute
    names = (compute, asked.norm, asked.softmax, asked.rotary, asked.residual or residual)
    return Precision(*(getattr(torch, name) for name in names))
