"""How far a model's predictions move when a matrix is quantized, told for each matrix without quantizing the others.

The KL divergence of the predictions is, for small changes of weights, half the mean square of <change, gradient>, where the
gradient is that of the log-probability of tokens which the model itself draws (the Fisher information). Windows of a text
are so many draws. What the tokens of a window share adds up before it is squared, as attention means it over them; rows are
rounded regardless of each other, so their squares are added up. The text goes through the float layers and its gradients
come back, layer by layer: held are its states at every layer, and the weights of one in float32.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from llamachat.core.model import Linear, Model, Precision, build_block
from llamachat.core.tensors import Array, FloatTensor, dequantize
from llamachat.engines.torch.attention import fused_attention
from llamachat.formats import Checkpoint
from quantize.activity import activities
from quantize.coding import only
from quantize.convert import Progress
from quantize.passage import Passage, embeddings, floats, nothing
from quantize.recipe import EMBEDDING, HEAD
from quantize.schemes import Scheme, quantize_tensor
from quantize.threads import Threads

LENGTH = 32  # tokens of a window that are looked at
ROWS = 512  # of a matrix, which stand for all of it
NORM = "model.norm.weight"


class Probe(NamedTuple):
    """What matrices that share an input were given of a window [T, columns], and the gradient of what they gave [T, rows]."""

    x: Tensor
    gradient: Tensor


def costs(
    source: Checkpoint,
    choices: Mapping[str, Sequence[Scheme]],
    windows: Sequence[Sequence[int]],
    threads: int | None,
    progress: Progress,
) -> dict[str, list[float]]:
    """By the name of each matrix in `choices`: what each of these schemes would cost, in nats a token.

    Windows are of equal length. The same for any number of threads.
    """
    ids = [list(window[:LENGTH]) for window in windows]
    with Threads(threads, torch.enable_grad) as pool:
        return Sensitivity(source, choices, len(ids[0]), pool, threads, progress).measured(ids)


class Sensitivity:
    """The float model and the text, which goes through it and back."""

    def __init__(
        self,
        source: Checkpoint,
        choices: Mapping[str, Sequence[Scheme]],
        length: int,
        pool: Threads,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self.source, self.spec, self.choices = source, source.config, choices
        self.pool, self.threads, self.progress = pool, threads, progress
        self.passage = Passage(self.spec, length)
        self.model = Model(self.spec, nothing, [], torch.empty(0), nothing, Precision(), fused_attention)
        self.activities = activities(source)

    def measured(self, windows: list[list[int]]) -> dict[str, list[float]]:
        layers = range(self.spec.num_hidden_layers)
        weights = sum(prod(info.shape) for info in self.source.index().values()) // len(layers)  # each time, about
        (_, embedding), *_ = only(self.source, {EMBEDDING})
        states = [[self.model.embedded(x) for x in embeddings(embedding, windows)]]
        for layer in layers:
            self.progress(f"a text through layer {layer}", layer * weights, 2 * len(layers) * weights)
            run = Run(self, layer)
            states.append(self.pool.map(run.forward, states[-1]))
        gradients = self._drawn(states.pop())
        found = dict[str, list[float]]()
        for layer in reversed(layers):
            done = (2 * len(layers) - layer - 1) * weights
            self.progress(f"what layer {layer} would lose", done, 2 * len(layers) * weights)
            run = Run(self, layer)
            passed = self.pool.map(run.backward, list(zip(states.pop(), gradients, strict=True)))
            gradients = [gradient for gradient, _ in passed]
            found |= self._costs(run.weights, [probes for _, probes in passed], sum(map(len, windows)))
        return found

    def _drawn(self, states: list[Tensor]) -> list[Tensor]:
        """The gradients, by each window's last states, of the log-probabilities of tokens that the model draws."""
        weights = {
            name: torch.tensor(dequantize(tensor)) for name, tensor in only(self.source, {NORM, EMBEDDING, HEAD})
        }
        head = weights[EMBEDDING if self.spec.tied_head else HEAD]
        norm = weights[NORM] + self.spec.norm_offset
        model = Model(self.spec, nothing, [], norm, partial(linear, weight=head), Precision(), fused_attention)

        def drawn(numbered: tuple[int, Tensor]) -> Tensor:
            number, state = numbered
            state.requires_grad_()
            logits = model.logits(state)
            tokens = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(number))
            return torch.autograd.grad(cross_entropy(logits, tokens[:, 0], reduction="sum"), state)[0]

        return self.pool.map(drawn, list(enumerate(states)))

    def _costs(
        self, weights: Mapping[str, Tensor], windows: list[dict[tuple[str, ...], Probe]], tokens: int
    ) -> dict[str, list[float]]:
        found = dict[str, list[float]]()
        for modules in dict.fromkeys(modules for probes in windows for modules in probes):
            probes, start = [probes[modules] for probes in windows if modules in probes], 0
            for module in modules:
                name = f"{module}.weight"
                rows = slice(start, start := start + len(weights[name]))
                own = [Probe(probe.x, probe.gradient[:, rows]) for probe in probes]
                if name in self.choices:
                    found[name] = [each / (2 * tokens) for each in self._squares(name, weights[name], own)]
        return found

    def _squares(self, name: str, matrix: Tensor, probes: list[Probe]) -> list[float]:
        """For each scheme the sum, over windows and rows, of the squares of <change, gradient>."""
        count = len(matrix)
        rows = torch.from_numpy(np.random.default_rng(0).permutation(count)[:ROWS])
        some = matrix[rows]

        def square(change: Tensor, probe: Probe) -> float:
            return float((linear(probe.x, change) * probe.gradient[:, rows]).sum(0).square().sum())

        squares = list[float]()
        for scheme in self.choices[name]:
            change = self._rounded(name, some.numpy(), scheme) - some
            squares.append(sum(self.pool.map(partial(square, change), probes)) * count / len(some))
        return squares

    def _rounded(self, name: str, matrix: Array, scheme: Scheme) -> Tensor:
        coded = quantize_tensor(name, FloatTensor(matrix), scheme, self.threads, self.activities.get(name))
        return torch.from_numpy(dequantize(coded))


class Run:
    """Windows through one layer, and their gradients back."""

    def __init__(self, of: Sensitivity, layer: int) -> None:
        prefix = f"model.layers.{layer}."
        self.weights = floats(of.source, {name for name in of.source.index() if name.startswith(prefix)})
        self._of, self._layer, self._joined = of, layer, dict[tuple[str, ...], tuple[Tensor, Tensor | None]]()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._through(x, {})

    def backward(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[tuple[str, ...], Probe]]:
        """A window's states, and the gradient by what the layer makes of them, to that by the states, and probes."""
        state, gradient = given[0].requires_grad_(), given[1]
        seen = dict[tuple[str, ...], tuple[Tensor, Tensor]]()
        out = self._through(state, seen)
        own, *gradients = torch.autograd.grad(out, [state, *(y for _, y in seen.values())], gradient)
        probes = (Probe(x.detach(), by) for (x, _), by in zip(seen.values(), gradients, strict=True))
        return own, dict(zip(seen, probes, strict=True))

    def _through(self, x: Tensor, seen: dict[tuple[str, ...], tuple[Tensor, Tensor]]) -> Tensor:
        block = build_block(self._of.spec, self._layer, self.weights, partial(self._linear, seen))
        passage = self._of.passage
        return self._of.model.layer(self._layer, block, x, passage.rotation(self._layer), passage.memory)

    def _linear(self, seen: dict[tuple[str, ...], tuple[Tensor, Tensor]], *modules: str) -> Linear:
        """Of matrices that share their input, which is noted with what they give."""

        def multiplied(x: Tensor) -> Tensor:
            y = linear(x, *self._join(modules))
            seen[modules] = x, y
            return y

        return multiplied

    def _join(self, modules: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        if modules not in self._joined:
            biases = [self.weights[name] for module in modules if (name := f"{module}.bias") in self.weights]
            weight = torch.cat([self.weights[f"{module}.weight"] for module in modules])
            self._joined[modules] = weight, torch.cat(biases) if biases else None
        return self._joined[modules]
