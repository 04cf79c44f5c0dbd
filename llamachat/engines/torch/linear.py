"""Linear layers y = x W^T over packed or float weights, and which kernel runs each.

| weights                                        | CPU, bfloat16                   | CUDA                     |
|------------------------------------------------|---------------------------------|--------------------------|
| 4 bits, evenly spaced (Q4_0, Q4_1, Q4_K)       | torch int4                      | torch int4, in bfloat16  |
| 8 bits, one scale a row                        | torch int8                      | bitsandbytes LLM.int8()  |
| NF4, FP4                                       | bitsandbytes, given AVX512-BF16 | bitsandbytes             |
| whole numbers in groups (Q8_0, Q5_1, IQ4_NL)   | torch int4, as two nibbles      | dense                    |
| others (float; groups of 16, as in Q6_K)       | dense                           | dense                    |

Dense weights are unpacked once, to the compute dtype; `planned_bytes` counts them as such before anything is loaded.
In float32 everything is dense and has exactly the values of `tensors.dequantize`: the reference.

Choices were measured on two cores with AMX, one token, 10^9 weights a second: torch int4 and int8 33, bitsandbytes 29,
dense bfloat16 13. Unpacking slabs at every call reaches 2.5, so nothing here does that. On SmolLM2 (Q4_1), mean KL
divergence from float32 is 0.0010 for dense bfloat16 and 0.0012 for torch int4, whose rounded scales alone cost 0.0001.
"""

import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import groupby
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llamachat.core.tensors import (
    CODEBOOKS,
    Array,
    FloatTensor,
    QuantTensor,
    dequantize,
    pack_nibbles,
    unpack_nibbles,
)
from llamachat.core.tensors import Tensor as Weight

AnyWeight = TypeVar("AnyWeight", bound=Weight)
SLAB = 1 << 22  # weights unpacked at a time while a layer is built
INT4_GROUPS = (32, 64, 128, 256)
BNB_GROUPS = (32, 64, 128, 256, 512, 1024)
COUNT = np.arange(16, dtype=np.float32)


class Linear(ABC):
    """A matrix [rows, columns] ready to be multiplied; `kernel` names how, `nbytes` is its memory."""

    kernel: str
    nbytes: int

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """[T, columns] -> [T, rows], in the dtype of x."""


class Dense(Linear):
    def __init__(self, weight: Tensor) -> None:
        self.weight, self.nbytes = weight, weight.nbytes
        self.kernel = f"dense {str(weight.dtype).removeprefix('torch.')}"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight)


class Biased(Linear):
    def __init__(self, linear: Linear, bias: Tensor) -> None:
        self.linear, self.bias = linear, bias
        self.kernel, self.nbytes = linear.kernel, linear.nbytes + bias.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.bias


class Stacked(Linear):
    """Matrices that share their input but not their packing, as if their rows were one matrix's."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts, self.nbytes = parts, sum(part.nbytes for part in parts)
        self.kernel = " + ".join(dict.fromkeys(part.kernel for part in parts))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


class Packed(Linear):
    """A kernel that multiplies codes as they are."""

    @abstractmethod
    def __init__(self, tensor: QuantTensor, device: torch.device) -> None: ...

    @staticmethod
    @abstractmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it runs `rows` rows coded as `like` is, for activations of this dtype."""

    @staticmethod
    @abstractmethod
    def bits(like: QuantTensor) -> float:
        """Memory per weight."""


class Int4(Packed):
    """torch's CPU kernel: weight = (code - 8) * scale + zero, with scale and zero rounded to bfloat16."""

    kernel = "torch int4"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        rows, columns = tensor.shape
        self.group, self.scales_zeros = tensor.group, _scales_zeros(tensor)
        self.codes = torch.empty(rows, columns // 2, dtype=torch.uint8)
        for start, slab in slabs(tensor):
            codes = torch.from_numpy(unpack_nibbles(slab.codes).astype(np.int32))
            self.codes[start : start + len(codes)] = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.nbytes = self.codes.nbytes + self.scales_zeros.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self.codes, self.group, self.scales_zeros)

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        fits = like.bits == 4 and like.affine is not None and like.group in INT4_GROUPS and rows % 16 == 0
        return fits and device.type == "cpu" and dtype == torch.bfloat16

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 4 + 32 / like.group


class Int4Twice(Packed):
    """Whole-number codes as 16 * high + low: one torch int4 product over the high nibbles and, beside them, the low."""

    kernel = "torch int4 x 2"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        codes = np.empty((len(tensor.codes), tensor.shape[1]), np.uint8)
        for start, slab in slabs(tensor):
            whole = slab.codes if slab.table is None else slab.table[unpack_nibbles(slab.codes)].astype(np.int8)
            codes[start : start + len(whole)] = np.hstack((pack_nibbles((whole >> 4) + 8), pack_nibbles(whole & 15)))
        scale = tensor.scale.astype(np.float32)
        low = np.zeros_like(scale) if tensor.minimum is None else tensor.minimum
        scale, low = np.hstack((16 * scale, scale)), np.hstack((-128 * scale, low))
        self.product = Int4(QuantTensor(codes, scale, tensor.group, 4, COUNT, low), device)
        self.nbytes = self.product.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(torch.cat((x, x), -1))

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        whole = like.table is None or np.array_equal(like.table, like.table.astype(np.int8))
        return whole and Int4.takes(replace(like, bits=4, table=COUNT), rows, device, dtype)

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 2 * Int4.bits(like)


class Int8(Packed):
    """torch's CPU kernel: codes times x, then each row's scale, in bfloat16."""

    kernel = "torch int8"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        self.codes, self.scale = torch.tensor(tensor.codes), torch.tensor(tensor.scale[:, 0]).bfloat16()
        self.nbytes = self.codes.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, self.codes, self.scale)

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        # Of columns it takes multiples of 16, and computes nonsense from others without a word.
        return _scale_a_row(like) and like.group % 16 == 0 and device.type == "cpu" and dtype == torch.bfloat16

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 8 + 16 / like.group


class TinyGemm(Packed):
    """torch's CUDA kernel for what Int4 does on the CPU; it needs compute capability 8.0."""

    kernel = "torch int4"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        self.group, self.scales_zeros = tensor.group, _scales_zeros(tensor).to(device)
        self.codes = torch._convert_weight_to_int4pack(torch.from_numpy(_adjacent(tensor)).to(device), 8)
        self.nbytes = self.codes.nbytes + self.scales_zeros.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm(x, self.codes, self.group, self.scales_zeros)

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        fits = like.bits == 4 and like.affine is not None and like.group in INT4_GROUPS
        if not fits or rows % 8 or like.shape[1] % 128 or device.type != "cuda" or dtype != torch.bfloat16:
            return False
        return torch.cuda.get_device_capability(device) >= (8, 0)

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return Int4.bits(like)


class LlmInt8(Packed):
    """bitsandbytes on CUDA: LLM.int8() (arXiv 2208.07339), activations beyond 6 apart in float16."""

    kernel = "bitsandbytes int8"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        self.bnb = bitsandbytes()
        self.state = self.bnb.MatmulLtState()
        self.state.has_fp16_weights, self.state.threshold = False, 6.0
        self.state.CB = torch.tensor(tensor.codes, device=device)
        self.state.SCB = torch.tensor(tensor.scale[:, 0].astype(np.float32) * 127, device=device)
        self.nbytes = self.state.CB.nbytes + self.state.SCB.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.bnb.matmul(x.half(), self.state.CB, state=self.state, threshold=6.0)
        return y.to(x.dtype)

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        return _scale_a_row(like) and like.group % 16 == 0 and device.type == "cuda" and dtype != torch.float32

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 8 + 32 / like.group


class Bnb4(Packed):
    """bitsandbytes' 4-bit product on CUDA."""

    kernel = "bitsandbytes 4-bit"

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        self.bnb, self.state = bitsandbytes(), self._state(tensor, device)
        self.codes = torch.from_numpy(_adjacent(tensor)).to(device)
        self.nbytes = self.codes.nbytes + self.state.absmax.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.bnb.matmul_4bit(x, self.codes, self.state)
        return y

    @staticmethod
    def _state(tensor: QuantTensor, device: torch.device) -> Any:
        absmax = torch.tensor(tensor.scale.astype(np.float32).reshape(-1), device=device)
        code = torch.tensor(tensor.table, device=device)
        make = bitsandbytes().functional.QuantState
        return make(absmax, tensor.shape, code, tensor.group, _codebook(tensor), torch.bfloat16)

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        fits = _codebook(like) is not None and like.group in BNB_GROUPS
        return fits and device.type == "cuda" and dtype != torch.float32

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 4 + 32 / like.group


class Bnb4Cpu(Bnb4):
    """Its CPU twin: scales rounded to bfloat16, codes laid out by blocks of 32 rows."""

    def __init__(self, tensor: QuantTensor, device: torch.device) -> None:
        super().__init__(tensor, device)
        for start, slab in slabs(tensor):
            rows = self.codes[start : start + len(slab.codes)]
            rows[:] = self.bnb.functional._convert_weight_packed_for_cpu(rows, self._state(slab, device))[0]
        self.state.absmax = self.state.absmax.view(len(self.codes), -1).T.bfloat16().contiguous()
        self.state.packing_format_for_cpu = True
        self.nbytes = self.codes.nbytes + self.state.absmax.nbytes

    @staticmethod
    def takes(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> bool:
        fits = _codebook(like) is not None and like.group in BNB_GROUPS and rows % 32 == 0
        return fits and device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()

    @staticmethod
    def bits(like: QuantTensor) -> float:
        return 4 + 16 / like.group


KERNELS: tuple[type[Packed], ...] = (Int4, TinyGemm, Int8, LlmInt8, Bnb4, Bnb4Cpu, Int4Twice)


def kernel_for(like: QuantTensor, rows: int, device: torch.device, dtype: torch.dtype) -> type[Packed] | None:
    """The kernel for `rows` rows coded as `like` is; None: dense."""
    return next((kernel for kernel in KERNELS if kernel.takes(like, rows, device, dtype)), None)


def make_linear(parts: Sequence[Weight], biases: Sequence[Weight], device: torch.device, dtype: torch.dtype) -> Linear:
    """One layer out of matrices [rows, columns] with the same input, stacked; `biases` is empty or has one for each."""
    runs = [list(run) for _, run in groupby(parts, lambda part: _signature(part, device, dtype))]
    linears = [_make(run, device, dtype) for run in runs]
    linear = linears[0] if len(linears) == 1 else Stacked(linears)
    return Biased(linear, torch.cat([dense([bias], device, dtype) for bias in biases])) if biases else linear


def _make(parts: Sequence[Weight], device: torch.device, dtype: torch.dtype) -> Linear:
    kernel = _kernel(parts[0], device, dtype)
    return kernel(_stack(parts), device) if kernel else Dense(dense(parts, device, dtype))


def _kernel(part: Weight, device: torch.device, dtype: torch.dtype) -> type[Packed] | None:
    return None if isinstance(part, FloatTensor) else kernel_for(part, part.shape[0], device, dtype)


def _signature(part: Weight, device: torch.device, dtype: torch.dtype) -> object:
    """Equal for parts that can be one matrix of one kernel."""
    kernel = _kernel(part, device, dtype)
    if kernel is None or isinstance(part, FloatTensor):
        return None
    table = b"" if part.table is None else part.table.tobytes()
    return kernel, part.bits, part.group, part.minimum is None, table


def _stack(parts: Sequence[Weight]) -> QuantTensor:
    tensors = [part for part in parts if isinstance(part, QuantTensor)]
    if len(tensors) == 1:
        return tensors[0]
    minima = [part.minimum for part in tensors if part.minimum is not None]
    return replace(
        tensors[0],
        codes=np.concatenate([part.codes for part in tensors]),
        scale=np.concatenate([part.scale for part in tensors]),
        minimum=np.concatenate(minima) if minima else None,
    )


def dense(parts: Sequence[Weight], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values of all parts, one below the other."""
    rows = sum(part.shape[0] for part in parts)
    out = torch.empty((rows, *parts[0].shape[1:]), device=device, dtype=dtype)
    filled = 0
    for part in parts:
        for start, slab in slabs(part):
            values = torch.tensor(dequantize(slab))
            out[filled + start : filled + start + len(values)] = values
        filled += part.shape[0]
    return out


def slabs(tensor: AnyWeight) -> Iterator[tuple[int, AnyWeight]]:
    """The tensor in pieces of about SLAB weights, and a multiple of 64 rows, the most that any kernel interleaves."""
    step = max(1, SLAB // 64 // math.prod(tensor.shape[1:])) * 64
    for start in range(0, tensor.shape[0], step):
        yield start, tensor.rows(slice(start, start + step))  # type: ignore[misc]  # mypy joins the two


def _scales_zeros(tensor: QuantTensor) -> Tensor:
    """[columns / group, rows, 2]: torch's int4 kernels compute (code - 8) * scale + zero."""
    assert tensor.affine is not None
    step, offset = tensor.affine
    scale = tensor.scale.astype(np.float32)
    zero = (offset + 8 * step) * scale + (0 if tensor.minimum is None else tensor.minimum.astype(np.float32))
    return torch.from_numpy(np.stack((step * scale, zero), -1).swapaxes(0, 1)).bfloat16().contiguous()


def _adjacent(tensor: QuantTensor) -> Array:
    """Codes with neighbouring columns in one byte, the first in its high nibble: uint8 [rows, columns / 2]."""
    codes = np.empty_like(tensor.codes)
    for start, slab in slabs(tensor):
        columns = unpack_nibbles(slab.codes)
        codes[start : start + len(columns)] = columns[:, ::2] << 4 | columns[:, 1::2]
    return codes


def _scale_a_row(like: QuantTensor) -> bool:
    return like.bits == 8 and like.minimum is None and like.group == like.shape[1]


def _codebook(like: QuantTensor) -> str | None:
    """Which of bitsandbytes' codebooks the tensor is coded with."""
    if like.table is None or like.minimum is not None:
        return None
    return next((name for name, values in CODEBOOKS.items() if np.allclose(like.table, values, atol=1e-6)), None)


@cache
def bitsandbytes() -> ModuleType:
    """The package, imported when first needed, and kept from fetching code from a model hub, which its import tries.

    It does so through the package `kernels`, and goes without, with a warning, where that cannot be imported.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    before = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        return import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if before is not None:
            sys.modules["kernels"] = before
