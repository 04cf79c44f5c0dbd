"""Linears and an embedding with low-rank additions, which can be other ones at any time; the weights beside stay as they are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamachat.core.tensors import to_float32
from llamachat.engines.torch.linear import Linear
from llamachat.formats.adapter import LowRank

# Rows of the matrix; and what x is multiplied with for them, [columns, rank] and, with its scale, [rank, rows].
Added = tuple[slice, Tensor, Tensor]


def added(low: LowRank, rows: slice, device: torch.device, dtype: torch.dtype) -> Added:
    a, b = (torch.from_numpy(to_float32(each).copy()).to(device) for each in (low.a, low.b))
    return rows, a.T.to(dtype), (b.T * low.scale).to(dtype)


class Adapted(Linear):
    """A matrix, and what is added to its product."""

    def __init__(self, linear: Linear) -> None:
        self.linear, self.kernel, self.nbytes = linear, linear.kernel, linear.nbytes
        self.added: Sequence[Added] = ()

    def __call__(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        for rows, a, b in self.added:
            y[..., rows] += x @ a @ b
        return y


class AdaptedEmbedding:
    """Rows of the embedding by id, and what is added to them."""

    def __init__(self, lookup: Callable[[Sequence[int]], Tensor]) -> None:
        self.lookup = lookup
        self.added: Sequence[Added] = ()

    def __call__(self, ids: Sequence[int]) -> Tensor:
        out = self.lookup(ids)
        for _, a, b in self.added:
            out = out + b.T[torch.tensor(ids, device=b.device)] @ a.T
        return out
