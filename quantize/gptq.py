"""4 bits with calibration: GPTQ (arXiv 2210.17323) over the activations of a text, stored like `int4`.

Layers are quantized in order, each from what the layers before it, quantized already, make of the text. Of each matrix
the columns are rounded one by one, the most active first, and each column's error is compensated in those yet to come.
The scales are searched beforehand with the columns' activity as weights. Work is split among threads by rows and
windows of the text, each of which one thread does alone, so that their number does not change a bit of the result.
"""

import ast
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from llamachat.core.rope import cos_sin, frequencies
from llamachat.core.spec import LlamaConfig
from llamachat.core.tensors import Array, QuantTensor, dequantize, pack_nibbles
from llamachat.core.tensors import Tensor as Weight
from llamachat.core.tokenizer import Tokenizer
from llamachat.engines.torch.model import Sight, attention, rotate, spread
from llamachat.errors import UsageError
from llamachat.formats import Checkpoint
from llamachat.formats.prequantized.ours import entries, packed_entries
from llamachat.generation.perplexity import windows
from quantize.coding import Coded, by_layer, code
from quantize.recipe import EMBEDDING, Recipe
from quantize.schemes import CODED, TABLES, Scheme, grid, half, not_finite, search
from quantize.writer import FolderWriter

DAMPING = 0.01  # of the mean diagonal, added to the Hessian's
ROWS, COLUMNS = 512, 128  # of a matrix, rounded by one thread at a time; before errors go to the columns further on
CHARACTERS = 400_000
WINDOW, WINDOWS = 512, 32  # tokens, and how many of them
T = TypeVar("T")
R = TypeVar("R")


def calibrated(
    source: Checkpoint,
    recipe: Recipe,
    writer: FolderWriter,
    calibration: Sequence[Sequence[int]] | None,
    threads: int | None,
) -> Iterator[Coded]:
    """convert's stream of coded tensors."""
    assert calibration, "the caller brings a text"
    with torch.inference_mode(), Threads(threads) as pool:
        work = Calibration(source.config, recipe, writer, pool)
        for prefix, tensors in by_layer(source):
            if prefix:
                coded = work.layer(prefix, dict(tensors))
                yield from ((name, tensor, *coded[name]) for name, tensor in tensors.items())
                continue
            for name, tensor in tensors.items():
                if name == EMBEDDING:
                    work.begin(dequantize_rows(tensor, calibration))
                arrays, matrix = ({}, None) if name in writer.done else code(name, tensor, recipe, threads)
                yield name, tensor, arrays, matrix


def dequantize_rows(tensor: Weight, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each window's embeddings [T, hidden]."""
    return [torch.from_numpy(dequantize(tensor.rows(list(ids)))) for ids in windows]


class Threads:
    """Runs functions of torch side by side, each on one thread."""

    def __init__(self, count: int | None) -> None:
        self._pool = ThreadPoolExecutor(count or cpu_count(), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        def inferred(item: T) -> R:
            with torch.inference_mode():
                return function(item)

        return list(self._pool.map(inferred, items))


class Calibration:
    """The hidden states of the calibration text between two layers."""

    def __init__(self, config: LlamaConfig, recipe: Recipe, writer: FolderWriter, pool: Threads) -> None:
        self.config, self.recipe, self.writer, self.pool = config, recipe, writer, pool
        self.states: list[Tensor] = []

    def begin(self, states: list[Tensor]) -> None:
        self.states = states
        length = len(states[0])
        frequency, factor = frequencies(self.config, length)
        cos, sin = (torch.from_numpy(x)[:, None].float() for x in cos_sin(np.arange(length), frequency, factor))
        self.turn = spread(cos, sin)

    def layer(self, prefix: str, tensors: dict[str, Weight]) -> dict[str, tuple[dict[str, Array], Weight | None]]:
        """Quantize a layer's matrices, and take the hidden states through it."""
        assert self.states, "the embedding comes before the layers"
        self.prefix, self.tensors = prefix, tensors
        self.coded: dict[str, tuple[dict[str, Array], Weight | None]] = {}
        self.weights = {name: torch.tensor(dequantize(tensor)) for name, tensor in tensors.items()}
        for part, attend in (("self_attn.", True), ("mlp.", False)):
            inner, last = (self._attend, "o_proj") if attend else (self._gate, "down_proj")
            first = ("q_proj", "k_proj", "v_proj") if attend else ("gate_proj", "up_proj")
            norm = "input_layernorm.weight" if attend else "post_attention_layernorm.weight"
            normed = self.pool.map(lambda x, norm=norm: self._norm(x, norm), self.states)  # type: ignore[misc]
            self._quantize([part + name for name in first], normed)
            mixed = self.pool.map(inner, normed)
            self._quantize([part + last], mixed)
            out = self.pool.map(lambda x, name=part + last: self._linear(x, name), mixed)  # type: ignore[misc]
            self.states = [x + y for x, y in zip(self.states, out, strict=True)]
        for name, tensor in tensors.items():
            if name not in self.coded:
                self.coded[name] = ({}, None) if name in self.writer.done else code(name, tensor, self.recipe, None)
        return self.coded

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[self.prefix + name]
        return rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{self.prefix}{name}.weight"], self.weights.get(f"{self.prefix}{name}.bias"))

    def _attend(self, x: Tensor) -> Tensor:
        """What goes into o_proj."""
        size = self.config.head_dim
        q, k, v = (self._linear(x, f"self_attn.{name}_proj").view(len(x), -1, size) for name in "qkv")
        q, k = (rotate(each, *self.turn) for each in (q, k))
        return attention(q, k.transpose(0, 1), v.transpose(0, 1), Sight(causal=True), torch.float32)

    def _gate(self, x: Tensor) -> Tensor:
        """What goes into down_proj."""
        return silu(self._linear(x, "mlp.gate_proj")) * self._linear(x, "mlp.up_proj")

    def _quantize(self, modules: list[str], inputs: list[Tensor]) -> None:
        """Code matrices that share their input, and go on with what they are now."""
        factor: Hessian | None = None
        for module in modules:
            name = f"{self.prefix}{module}.weight"
            scheme = self.recipe.scheme_for(name, self.tensors[name].shape)
            if name in self.writer.done:
                arrays, result = {}, entries(self.writer.stored(name), "the unfinished output")[name].read()
            elif scheme and scheme.calibrated:
                factor = factor or Hessian(self.pool.map(lambda x: x.T @ x, inputs))
                result = self._solve(name, factor, scheme)
                arrays = packed_entries(name, result)
            else:
                arrays, coded = code(name, self.tensors[name], self.recipe, None)
                result = coded or self.tensors[name]
            self.coded[name] = arrays, result if isinstance(result, QuantTensor) else None
            self.weights[name] = torch.tensor(dequantize(result))

    def _solve(self, name: str, hessian: "Hessian", scheme: Scheme) -> QuantTensor:
        matrix = self.weights[name]
        if not matrix.isfinite().all():
            raise not_finite(name)
        parts = self.pool.map(lambda part: solve(part, hessian, scheme), torch.split(matrix, ROWS))
        codes, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert scheme.codebook
        return QuantTensor(
            pack_nibbles(codes), scale, scheme.group or len(codes[0]), 4, np.array(TABLES[scheme.codebook], np.float32)
        )


class Hessian:
    """Of the squared error in a matrix's output: how active each column is, their order, and what one owes another."""

    def __init__(self, grams: list[Tensor]) -> None:
        gram = grams[0].clone()
        for each in grams[1:]:  # in order: sums of floats depend on it
            gram += each
        self.activity = gram.diagonal().clone()
        idle = self.activity == 0
        gram[idle, idle] = 1
        gram.diagonal().add_(DAMPING * gram.diagonal().mean())
        self.order = self.activity.argsort(descending=True, stable=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[self.order][:, self.order]))
        self.factor = torch.linalg.cholesky(inverse, upper=True)


def solve(matrix: Tensor, hessian: Hessian, scheme: Scheme) -> tuple[Array, Array]:
    """Some rows [n, columns] -> codes [n, columns] and float16 scales [n, columns / group]."""
    rows, columns = matrix.shape
    group, ruler = scheme.group or columns, grid(scheme.codebook)
    weights = np.tile(hessian.activity.numpy().reshape(-1, group), (rows, 1))
    peaks = search(matrix.numpy().reshape(-1, group), scheme.codebook, CODED, weights)
    scale = half(peaks / np.float32(ruler.unit)).reshape(rows, -1)
    unit = torch.from_numpy(scale.astype(np.float32) * np.float32(ruler.unit))[:, hessian.order // group]
    values, table = torch.from_numpy(ruler.values), torch.from_numpy(ruler.codes)
    left, factor = matrix[:, hessian.order], hessian.factor
    codes, inverse = torch.empty(rows, columns, dtype=torch.int8), 1 / torch.where(unit == 0, 1, unit)
    for start in range(0, columns, COLUMNS):
        stop = min(start + COLUMNS, columns)
        errors = torch.empty(rows, stop - start)
        for j in range(start, stop):
            at = ruler_at(left[:, j] * inverse[:, j], len(values))
            codes[:, j] = table[at]
            error = (left[:, j] - values[at] * unit[:, j]) / factor[j, j]
            left[:, j:stop] -= error[:, None] * factor[j, j:stop]
            errors[:, j - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    back = torch.empty_like(codes)
    back[:, hessian.order] = codes
    return back.numpy(), scale


def ruler_at(unit: Tensor, length: int) -> Tensor:
    """Grid.at for torch."""
    from quantize.schemes import STEPS

    return (unit * STEPS + length // 2).clamp_(0, length - 1).int()


def calibration_windows(tokenizer: Tokenizer, text: str | None = None) -> list[list[int]]:
    """Ids of a text, by default of what Python's library says of itself, in windows."""
    return windows(tokenizer.encode(text or docstrings()), WINDOW, WINDOWS, tokenizer.bos_id)


def docstrings() -> str:
    """A text for calibration that is always at hand: what Python's standard library says of itself."""
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_bytes())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
        if sum(map(len, texts)) > CHARACTERS:
            break
    if not texts:
        raise UsageError("Python's library has no docstrings here", "there is no text to calibrate on", "--calibration")
    return "\n\n".join(texts)
