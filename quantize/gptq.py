"""4 bits with calibration: GPTQ (arXiv 2210.17323) over the activations of a text, stored like `int4`.

Layers are quantized in order. The text goes through each twice: as the layer is, from what the float layers before it
made, and while it is quantized, from what these have become. A matrix is rounded so that its products with the second
input are those of the float matrix with the first (as in QEP, arXiv 2504.09629), and where they are added to a token's
state, make up for what that lacks already; how is in rounding.py. Work is split among threads by rows, columns and windows
of the text, each of which one thread does alone, so that their number does not change a bit of the result. Held are the
text's states, one layer in float32, what the text makes in it, and for one matrix a few squares [columns, columns].
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from llamachat.core.model import Block, Linear, Model, Precision, build_block
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Array, QuantTensor, dequantize, pack_nibbles
from llamachat.core.tensors import Tensor as Weight
from llamachat.engines.torch.attention import fused_attention
from llamachat.formats import Checkpoint
from llamachat.formats.prequantized.ours import entries, packed_entries
from quantize.coding import Coded, by_layer, code
from quantize.passage import Passage, embeddings, nothing
from quantize.recipe import EMBEDDING, Recipe
from quantize.rounding import Hessian, solve
from quantize.schemes import TABLES, Scheme, not_finite
from quantize.threads import Threads
from quantize.writer import FolderWriter

ROWS = 512  # of a matrix, rounded by one thread at a time
SLAB = 256  # columns whose products one thread sums at a time
ADDED = ("self_attn.o_proj", "mlp.down_proj")  # whose output, of every token, is added to its state
MADE_UP = 0.5  # for this share of what layers before have lost; for all of it would fit the text, and no other


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
                    work.begin(embeddings(tensor, calibration))
                arrays, matrix = ({}, None) if name in writer.done else code(name, tensor, recipe, threads)
                yield name, tensor, arrays, matrix


class Watched(Model):
    """Tells what the products of the part of a layer that it runs will be added to."""

    entered: Tensor

    def _add(self, x: Tensor, block: Block, part: str, run: Linear) -> Tensor:
        self.entered = x
        return super()._add(x, block, part, run)


class Task(NamedTuple):
    """What matrices that share an input are rounded for."""

    hessian: Hessian
    drift: Tensor | None = None  # products of (input in the float model - input), and input [columns, columns]
    owed: Tensor | None = None  # of what their products should bring beside, and input [rows, columns]

    def goal(self, matrix: Tensor) -> Tensor:
        """The matrix whose products with the input are nearest to what they should be."""
        if self.drift is None:
            return matrix
        wanted = matrix @ self.drift
        return matrix + MADE_UP * self.hessian.regressed(wanted if self.owed is None else wanted + self.owed)


class Calibration:
    """The calibration text between two layers, and linears that quantize themselves when it first reaches them.

    The model is core/model.py's, which so runs each part of a layer over what the parts before it have become.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, writer: FolderWriter, pool: Threads) -> None:
        self.spec, self.recipe, self.writer, self.pool = spec, recipe, writer, pool
        self.model = Watched(spec, nothing, [], torch.empty(0), nothing, Precision(), fused_attention)
        self.exact: Tensor | None = None  # [windows * T, hidden], of the float model
        self.state: Tensor | None = None  # and of what is quantized so far

    def begin(self, states: list[Tensor]) -> None:
        """With each window's embeddings [T, hidden]."""
        self.exact = self.state = self.model.embedded(torch.cat(states))
        self.passage = Passage(self.spec, len(states[0]), len(states))

    def layer(self, prefix: str, tensors: dict[str, Weight]) -> dict[str, tuple[dict[str, Array], Weight | None]]:
        """Quantize a layer's matrices, and take the text through it as it was and as it has become."""
        assert self.exact is not None and self.state is not None, "the embedding comes before the layers"
        self.seen = dict[tuple[str, ...], tuple[Tensor, Tensor]]()
        self.tensors, self.coded = tensors, dict[str, tuple[dict[str, Array], Weight | None]]()
        self.weights = {name: torch.tensor(dequantize(tensor)) for name, tensor in tensors.items()}
        number = int(prefix.split(".")[2])
        self.exact = self._through(number, self.exact, self._watched)
        self.state = self._through(number, self.state, self._linear)
        for name, tensor in tensors.items():
            if name not in self.coded:  # vectors, and experts that no token of the text came to
                self.coded[name] = ({}, None) if name in self.writer.done else code(name, tensor, self.recipe, None)
        return self.coded

    def _through(self, number: int, state: Tensor, linear_of: Callable[..., Linear]) -> Tensor:
        block = build_block(self.spec, number, self.weights, linear_of)
        return self.model.layer(number, block, state, self.passage.rotation(number), self.passage.memory)

    def _watched(self, *modules: str) -> Linear:
        """Of float matrices that share their input, which is noted, with what their products may be added to."""

        def multiplied(x: Tensor) -> Tensor:
            self.seen[modules] = x, self.model.entered
            return self._products(modules, x)

        return multiplied

    def _linear(self, *modules: str) -> Linear:
        """Of matrices that are quantized for the input that they share, which is then that of the whole text."""

        def multiplied(x: Tensor) -> Tensor:
            self._quantize(modules, x)
            return self._products(modules, x)

        return multiplied

    def _products(self, modules: Sequence[str], x: Tensor) -> Tensor:
        weight = torch.cat([self.weights[f"{module}.weight"] for module in modules])
        biases = [self.weights[name] for module in modules if (name := f"{module}.bias") in self.weights]
        bias = torch.cat(biases) if biases else None
        return torch.cat(self.pool.map(lambda part: linear(part, weight, bias), torch.split(x, self.passage.length)))

    def _quantize(self, modules: tuple[str, ...], x: Tensor) -> None:
        """Code matrices, and go on with what they are now."""
        task: Task | None = None
        for module in modules:
            name = f"{module}.weight"
            scheme = self.recipe.scheme_for(name, self.tensors[name].shape)
            if name in self.writer.done:
                arrays, result = {}, entries(self.writer.stored(name), "the unfinished output")[name].read()
            elif scheme and scheme.calibrated:
                task = task or self.task(modules, x)
                result = self._solve(name, task, scheme)
                arrays = packed_entries(name, result)
            else:
                arrays, coded = code(name, self.tensors[name], self.recipe, None)
                result = coded or self.tensors[name]
            self.coded[name] = arrays, result if isinstance(result, QuantTensor) else None
            self.weights[name] = torch.tensor(dequantize(result))

    def task(self, modules: tuple[str, ...], x: Tensor) -> Task:
        """Errors in what is added to a token's state count by the state's size, as the next norm will divide by it.

        Experts are rounded for their own input alone: in the float model other tokens may come to them.
        """
        added = self.spec.norms == "before" and modules[0].endswith(ADDED)
        state, small = self.model.entered, torch.finfo(torch.float32).tiny
        heavy = x / state.square().mean(1, keepdim=True).clamp(min=small) if added else x
        hessian = Hessian(self._summed(x, heavy))
        exact, before = self.seen.get(modules, (x[:0], x[:0]))
        if not len(x) == len(exact) == len(state):
            return Task(hessian)
        owed = (before - state) / self.spec.residual_multiplier
        return Task(hessian, self._summed(exact - x, heavy), self._summed(owed, heavy) if added else None)

    def _summed(self, left: Tensor, right: Tensor) -> Tensor:
        """left^T right, over all tokens."""
        return torch.cat(self.pool.map(lambda part: part.T @ right, torch.split(left, SLAB, 1)))

    def _solve(self, name: str, task: Task, scheme: Scheme) -> QuantTensor:
        matrix = self.weights[name]
        if not matrix.isfinite().all():
            raise not_finite(name)
        parts = self.pool.map(lambda part: solve(part, task.hessian, scheme), torch.split(task.goal(matrix), ROWS))
        codes, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert scheme.codebook
        return QuantTensor(
            pack_nibbles(codes), scale, scheme.group or len(codes[0]), 4, np.array(TABLES[scheme.codebook], np.float32)
        )
