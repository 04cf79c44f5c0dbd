"""A text on its way through a model, layer by layer, which is all that is ever held of the model."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamachat.core.model import Context, Mask, Rotation, rotation
from llamachat.core.rope import frequencies
from llamachat.core.spec import ModelSpec, Rope
from llamachat.core.tensors import Array, dequantize
from llamachat.core.tensors import Tensor as Weight
from llamachat.formats import Checkpoint
from quantize.coding import only


class Passage:
    """So many windows of a text, one below the other, each of which sees itself alone: what Model.layer wants of them."""

    def __init__(self, spec: ModelSpec, length: int, count: int = 1) -> None:
        """`length`: of a window, in tokens."""
        self.spec, self.length = spec, length
        positions = np.tile(np.arange(length), count)
        self._rotations = {
            rope: self._rotated(positions, rope) for rope in map(spec.rope, range(spec.num_hidden_layers))
        }

    def _rotated(self, positions: Array, rope: Rope | None) -> Rotation:
        if rope is None:
            return None
        return rotation(positions, *frequencies(self.spec, self.length, rope), torch.float32)

    def rotation(self, layer: int) -> Rotation:
        return self._rotations[self.spec.rope(layer)]

    def memory(self, layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
        """Each window sees itself, as far as the layer's sliding window reaches."""
        at, window = torch.arange(self.length), self.spec.window(layer)
        short = window is not None and window < self.length
        near = (at[:, None] >= at) & (at[:, None] - at < (window or self.length))
        for start in range(0, len(keys), self.length):
            run = slice(start, start + self.length)
            mask = Mask(near) if short else Mask(causal=True)
            yield Context(run, keys[run].transpose(0, 1), values[run].transpose(0, 1), mask)


def embeddings(tensor: Weight, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each window's [T, hidden]."""
    return [torch.from_numpy(dequantize(tensor.rows(list(ids)))) for ids in windows]


def floats(source: Checkpoint, wanted: Collection[str]) -> dict[str, Tensor]:
    """These tensors in float32, by name."""
    return {name: torch.tensor(dequantize(tensor)) for name, tensor in only(source, wanted)}


def nothing(x: Any) -> Tensor:
    """In a model that has only layers, where embedding and head would be."""
    raise AssertionError("embedding and head are not asked")
