"""4 bits with calibration: GPTQ (arXiv 2210.17323) over the activations of a text, stored like `int4`.

Layers are quantized in order, each from what the layers before it, quantized already, make of the text; how a matrix is
rounded for its input is in rounding.py. Work is split among threads by rows and windows of the text, each of which one
thread does alone, so that their number does not change a bit of the result. Held are the text's states, one layer in
float32, what the text makes in it, and of the input of one matrix a few squares [columns, columns].
"""

import ast
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from llamachat.core.model import Context, Linear, Mask, Model, Precision, Rotation, build_block, rotation
from llamachat.core.rope import frequencies
from llamachat.core.spec import ModelSpec, Rope
from llamachat.core.tensors import Array, QuantTensor, dequantize, pack_nibbles
from llamachat.core.tensors import Tensor as Weight
from llamachat.core.tokenizer import Tokenizer
from llamachat.engines.torch.attention import fused_attention
from llamachat.errors import UsageError
from llamachat.formats import Checkpoint
from llamachat.formats.prequantized.ours import entries, packed_entries
from llamachat.generation.perplexity import windows
from quantize.coding import Coded, by_layer, code
from quantize.recipe import EMBEDDING, Recipe
from quantize.rounding import Hessian, solve
from quantize.schemes import TABLES, Scheme, not_finite
from quantize.writer import FolderWriter

ROWS = 512  # of a matrix, rounded by one thread at a time
CHARACTERS = 400_000
ADDED = ("self_attn.o_proj", "mlp.down_proj")  # whose output, of every token, is added to its state
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
    """The calibration text between two layers, and linears that quantize themselves when it first reaches them.

    The model is core/model.py's, which so runs each part of a layer over what the parts before it have become.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, writer: FolderWriter, pool: Threads) -> None:
        self.spec, self.recipe, self.writer, self.pool = spec, recipe, writer, pool
        self.model = Model(spec, _nothing, [], torch.empty(0), _nothing, Precision(), fused_attention)
        self.state: Tensor | None = None  # [windows * T, hidden]

    def begin(self, states: list[Tensor]) -> None:
        """With each window's embeddings [T, hidden]."""
        self.state, self.length = self.model.embedded(torch.cat(states)), len(states[0])
        positions = np.tile(np.arange(self.length), len(states))
        self.rotations = {
            rope: self._rotation(positions, rope) for rope in map(self.spec.rope, range(self.spec.num_hidden_layers))
        }

    def _rotation(self, positions: Array, rope: Rope | None) -> Rotation:
        if rope is None:
            return None
        return rotation(positions, *frequencies(self.spec, self.length, rope), torch.float32)

    def layer(self, prefix: str, tensors: dict[str, Weight]) -> dict[str, tuple[dict[str, Array], Weight | None]]:
        """Quantize a layer's matrices, and take the text through it."""
        assert self.state is not None, "the embedding comes before the layers"
        self.tensors, self.coded = tensors, dict[str, tuple[dict[str, Array], Weight | None]]()
        self.weights = {name: torch.tensor(dequantize(tensor)) for name, tensor in tensors.items()}
        number = int(prefix.split(".")[2])
        block = build_block(self.spec, number, self.weights, self._linear)
        self.state = self.model.layer(number, block, self.state, self.rotations[self.spec.rope(number)], self._memory)
        for name, tensor in tensors.items():
            if name not in self.coded:  # vectors, and experts that no token of the text came to
                self.coded[name] = ({}, None) if name in self.writer.done else code(name, tensor, self.recipe, None)
        return self.coded

    def _memory(self, layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
        """Each window sees itself, as far as the layer's sliding window reaches."""
        at, window = torch.arange(self.length), self.spec.window(layer)
        short = window is not None and window < self.length
        near = (at[:, None] >= at) & (at[:, None] - at < (window or self.length))
        for start in range(0, len(keys), self.length):
            run = slice(start, start + self.length)
            mask = Mask(near) if short else Mask(causal=True)
            yield Context(run, keys[run].transpose(0, 1), values[run].transpose(0, 1), mask)

    def _linear(self, *modules: str) -> Linear:
        """Of matrices that share their input, which is then that of the whole text."""

        def multiplied(x: Tensor) -> Tensor:
            inputs = torch.split(x, self.length)
            self._quantize(modules, inputs)
            weight = torch.cat([self.weights[f"{module}.weight"] for module in modules])
            biases = [self.weights[name] for module in modules if (name := f"{module}.bias") in self.weights]
            bias = torch.cat(biases) if biases else None
            return torch.cat(self.pool.map(lambda part: linear(part, weight, bias), inputs))

        return multiplied

    def _quantize(self, modules: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """Code matrices, and go on with what they are now."""
        factor: Hessian | None = None
        for module in modules:
            name = f"{module}.weight"
            scheme = self.recipe.scheme_for(name, self.tensors[name].shape)
            if name in self.writer.done:
                arrays, result = {}, entries(self.writer.stored(name), "the unfinished output")[name].read()
            elif scheme and scheme.calibrated:
                factor = factor or self.hessian(modules, inputs)
                result = self._solve(name, factor, scheme)
                arrays = packed_entries(name, result)
            else:
                arrays, coded = code(name, self.tensors[name], self.recipe, None)
                result = coded or self.tensors[name]
            self.coded[name] = arrays, result if isinstance(result, QuantTensor) else None
            self.weights[name] = torch.tensor(dequantize(result))

    def hessian(self, modules: Sequence[str], inputs: Sequence[Tensor]) -> Hessian:
        """Errors in what is added to a token's state count by the state's size, as the next norm will divide by it."""
        if self.spec.norms != "before" or not modules[0].endswith(ADDED):
            return Hessian(self.pool.map(_gram, inputs))
        assert self.state is not None
        small = torch.finfo(torch.float32).tiny
        size = self.state.square().mean(1, keepdim=True).clamp(min=small).sqrt()
        parts = zip(inputs, torch.split(size, self.length), strict=True)
        return Hessian(self.pool.map(_gram, [x / each for x, each in parts]))

    def _solve(self, name: str, hessian: Hessian, scheme: Scheme) -> QuantTensor:
        matrix = self.weights[name]
        if not matrix.isfinite().all():
            raise not_finite(name)
        parts = self.pool.map(lambda part: solve(part, hessian, scheme), torch.split(matrix, ROWS))
        codes, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert scheme.codebook
        return QuantTensor(
            pack_nibbles(codes), scale, scheme.group or len(codes[0]), 4, np.array(TABLES[scheme.codebook], np.float32)
        )


def _gram(x: Tensor) -> Tensor:
    return x.T @ x


def _nothing(x: Any) -> Tensor:
    raise AssertionError("embedding and head are not asked")


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
