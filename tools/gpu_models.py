"""What gpu_check measures: random weights of a real shape in this project's torch engine, the same shape in transformers with
its linears packed by bitsandbytes, and single layers. Both models hand their logits to the host, as sampling there needs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from llamachat.bench.runners import Ours
from llamachat.bench.shapes import Noise
from llamachat.bench.work import Runner
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import (
    CODEBOOKS,
    Array,
    FloatTensor,
    QuantTensor,
    Tensor,
    TensorInfo,
    dequantize,
    pack_nibbles,
)
from llamachat.engines.torch.engine import TorchEngine
from llamachat.engines.torch.linear import make_linear

LEVELS = np.arange(16, dtype=np.float32) - 8
SIZE = 0.02  # of the largest weight
BF16_ONE = 0x3F80
CODED = {  # scheme -> bits, group (None: the row), table
    "int4": (4, 32, LEVELS),
    "nf4": (4, 64, np.array(CODEBOOKS["nf4"], np.float32)),
    "int8": (8, None, None),
}
PEERS = {"int4": "nf4", "nf4": "nf4", "int8": "int8", "bf16": "bf16"}  # what bitsandbytes has in its place


def weights(spec: ModelSpec, scheme: str) -> Iterator[tuple[str, Tensor]]:
    """Random tensors of a model: matrices of its layers as the scheme codes them, the rest in bfloat16."""
    noise = Noise.drawn()
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 1:
            yield name, FloatTensor(np.full(shape, BF16_ONE, np.uint16))
        elif scheme in CODED and ".layers." in name:
            yield name, _coded(shape[0], shape[1], scheme, noise)
        else:
            yield name, FloatTensor(_bfloat16(shape, noise))


def _coded(rows: int, columns: int, scheme: str, noise: Noise) -> QuantTensor:
    bits, group, table = CODED[scheme]
    codes = np.empty((rows, columns * bits // 8), np.uint8)
    noise.fill(codes.reshape(-1))
    most = 127.0 if table is None else float(np.abs(table).max())
    scale = np.full((rows, columns // (group or columns)), SIZE / most, np.float16)
    return QuantTensor(codes.view(np.int8) if bits == 8 else codes, scale, group or columns, bits, table)  # type: ignore[arg-type]


def _bfloat16(shape: tuple[int, ...], noise: Noise) -> Array:
    """Evenly from -SIZE to SIZE."""
    repeated = noise.floats(1 << 20) * np.float32(SIZE / 0.0625)
    bits = (repeated.view(np.uint32) >> 16).astype(np.uint16)
    return np.resize(bits, shape)


class RandomTorch(Ours):
    """The torch engine with random weights."""

    engine: TorchEngine

    def __init__(self, spec: ModelSpec, scheme: str, device: str, slots: int) -> None:
        self.index: dict[str, TensorInfo] = {}  # of what was built
        tensors = self._noted(weights(spec, scheme))
        made = TorchEngine.build(spec, tensors, slots=slots, device=device, dtype="bfloat16", kv_bits=16)
        super().__init__(made)
        idle = 0 if spec.tied_head else made.kernels["embedding"]
        self.read = made.weight_bytes - idle  # bytes for each token

    def _noted(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            empty = tensor.rows(slice(0)) if isinstance(tensor, QuantTensor) else None
            self.index[name] = TensorInfo(tensor.shape, tensor.nbytes, empty)
            yield name, tensor


def llama_config(spec: ModelSpec) -> dict[str, Any]:
    """Its shape as Hugging Face's config.json has it."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "rope_theta", "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    return {name: getattr(spec, name) for name in names}


class Transformers:
    """A Llama of transformers with random weights."""

    def __init__(self, spec: ModelSpec, scheme: str, device: str) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(**llama_config(spec))
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        if scheme != "bf16":
            _pack(model.model.layers, scheme, device)
        self._model, self._device, self.vocabulary = model, device, spec.vocab_size
        self._past: Any = None

    def rewind(self, length: int) -> None:
        if length and self._past is not None:
            self._past.crop(length - self._past.get_seq_length())  # a negative number: so many go
        else:
            self._past = None

    @torch.inference_mode()
    def feed(self, ids: list[int]) -> object:
        found = torch.tensor([ids], device=self._device)
        out = self._model(found, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = out.past_key_values
        return out.logits[0, -1].float().cpu()


def _pack(module: torch.nn.Module, scheme: str, device: str) -> None:
    """Put bitsandbytes' linears in the place of all in a module."""
    import bitsandbytes as bnb

    for name, child in list(module.named_children()):
        if not isinstance(child, torch.nn.Linear):
            _pack(child, scheme, device)
            continue
        size, weight = (child.in_features, child.out_features), child.weight.data
        if scheme == "nf4":
            made = bnb.nn.Linear4bit(*size, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
            made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)
        else:
            made = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            made.weight = bnb.nn.Int8Params(weight.half().cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        setattr(module, name, made)


def peer(spec: ModelSpec, scheme: str, device: str) -> Runner:
    return Transformers(spec, PEERS[scheme], device)


# Layers: how they are coded (bits, group, table, minimum), and the kernel that engines/torch/linear.py names for a GPU that
# has bfloat16, by dtype.
_DENSE = partial(dict.fromkeys, ("bfloat16", "float16"))
LAYERS: dict[str, tuple[int, int | None, Any, bool, dict[str, str]]] = {
    "4 bits, groups of 32": (4, 32, LEVELS, False, {"bfloat16": "torch int4", "float16": "dense float16"}),
    "4 bits, groups of 128, minima": (4, 128, LEVELS, True, {"bfloat16": "torch int4", "float16": "dense float16"}),
    "8 bits, a scale a row": (8, None, None, False, _DENSE("bitsandbytes int8")),
    "NF4, groups of 64": (4, 64, CODED["nf4"][2], False, _DENSE("bitsandbytes 4-bit")),
    "FP4, groups of 64": (4, 64, np.array(CODEBOOKS["fp4"], np.float32), False, _DENSE("bitsandbytes 4-bit")),
    "8 bits, groups of 32": (8, 32, None, False, {"bfloat16": "dense bfloat16", "float16": "dense float16"}),
}
EPSILON = {"bfloat16": 2**-7, "float16": 2**-9}
ROWS, COLUMNS = 512, 1024


def layer_error(kind: str, dtype: str, device: str, tokens: int) -> tuple[str, float]:
    """The kernel that multiplies such a layer, and its largest error as a share of what its arithmetic allows: rounding of
    each product and each weight's parts; of LLM.int8() also that activations have 8 bits."""
    bits, group, table, minimum, _ = LAYERS[kind]
    rng, group = np.random.default_rng(tokens), group or COLUMNS
    codes = rng.integers(-128, 128, (ROWS, COLUMNS), dtype=np.int8)
    shape = ROWS, COLUMNS // group
    scale = rng.uniform(0.5, 2, shape).astype(np.float16)
    least = rng.uniform(-9, -6, shape).astype(np.float16) if minimum else None
    packed = codes if bits == 8 else pack_nibbles(codes & 15)
    tensor = QuantTensor(packed, scale, group, bits, table, least)  # type: ignore[arg-type]
    linear = make_linear([tensor], [], torch.device(device), getattr(torch, dtype))
    x = torch.from_numpy(rng.standard_normal((tokens, COLUMNS))).to(getattr(torch, dtype))
    y, exact = linear(x.to(device)).double().cpu().numpy(), x.double().numpy()
    error = np.abs(y - exact @ dequantize(tensor).astype(np.float64).T)
    reach = _reach(tensor)
    allowed = EPSILON[dtype] * (np.abs(exact) @ reach.T)
    if linear.kernel == "bitsandbytes int8":
        allowed = allowed + np.abs(exact).max(1, keepdims=True) / 254 * reach.sum(1)
    return linear.kernel, float((error / allowed).max())


def _reach(tensor: QuantTensor) -> Array:
    """The largest magnitude of each weight's parts."""
    most = 128 if tensor.table is None else float(np.abs(tensor.table).max())
    bound = most * tensor.scale.astype(np.float64)
    return (bound if tensor.minimum is None else bound + np.abs(tensor.minimum)).repeat(tensor.group, axis=1)
