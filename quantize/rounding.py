"""Rounding a matrix for what it is multiplied with: the squared error of its products, not of its weights, is made small.

GPTQ (arXiv 2210.17323) rounds the columns one by one, the most active first, and compensates each column's error in
those yet to come. Coordinate descent then goes over the groups again: each code, and each group's scale, in turn becomes
the best one beside all others as they are, so that the error never grows. Rows are independent of each other.
"""

import numpy as np
import torch
from torch import Tensor

from llamachat.core.tensors import Array
from quantize.schemes import CODED, STEPS, Grid, Scheme, grid, half, search

# Another text is not quite like the one at hand: what columns have in common is taken for less than it was, and each for
# somewhat active; shares of each diagonal element, and of their mean, that are added to the Hessian's.
SHRINKAGE, DAMPING = 0.2, 0.05
PASSES = 2  # of coordinate descent
COLUMNS = 128  # rounded before their errors go to the columns further on


class Hessian:
    """Of the squared error in a matrix's output: `gram`, the columns' order by activity, and what one owes another."""

    def __init__(self, gram: Tensor) -> None:
        """The products x^T x [columns, columns] of the input, which are taken over."""
        gram.diagonal().mul_(1 + SHRINKAGE).add_(DAMPING * gram.diagonal().mean().clamp(min=1e-10))
        self.gram, self.order = gram, gram.diagonal().argsort(descending=True, stable=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[self.order][:, self.order]))
        self.factor = torch.linalg.cholesky(inverse, upper=True)

    def regressed(self, products: Tensor) -> Tensor:
        """The matrix whose products with the input are nearest to y: from `products` y^T x [rows, columns]."""
        result = torch.empty_like(products)
        result[:, self.order] = products[:, self.order] @ self.factor.T @ self.factor
        return result

    def error(self, difference: Tensor) -> float:
        """Of a matrix that differs by this from what it should be."""
        return float(((difference @ self.gram) * difference).sum())


def solve(matrix: Tensor, hessian: Hessian, scheme: Scheme, passes: int = PASSES) -> tuple[Array, Array]:
    """Some rows [n, columns] -> codes [n, columns] and float16 scales [n, columns / group]."""
    rows, columns = matrix.shape
    group, ruler = scheme.group or columns, grid(scheme.codebook)
    weights = np.tile(hessian.gram.diagonal().numpy().reshape(-1, group), (rows, 1))
    peaks = search(matrix.numpy().reshape(-1, group), scheme.codebook, CODED, weights)
    rounded = Rounded(ruler, torch.from_numpy(half(peaks / np.float32(ruler.unit))).reshape(rows, -1), group)
    rounded.compensate(matrix, hessian)
    for _ in range(passes):
        rounded.descend(matrix, hessian)
    return ruler.codes[rounded.places.numpy()], rounded.scale.numpy()


class Rounded:
    """A matrix that is being rounded: `places` [rows, columns] on the codebook's ruler, `scale` float16 [rows, groups]."""

    def __init__(self, ruler: Grid, scale: Tensor, group: int) -> None:
        self.scale, self.group, self.unit = scale, group, ruler.unit
        self.values = torch.from_numpy(ruler.values)
        self.places = torch.empty(len(scale), scale.shape[1] * group, dtype=torch.int32)

    def steps(self) -> Tensor:
        """What the codebook's largest value stands for, [rows, groups]."""
        return self.scale.float() * self.unit

    def at(self, units: Tensor) -> Tensor:
        """Grid.at for torch."""
        length = len(self.values)
        return (units * STEPS + length // 2).clamp_(0, length - 1).int()

    def compensate(self, matrix: Tensor, hessian: Hessian) -> None:
        """GPTQ: `places` for the scales as they are."""
        columns, factor = matrix.shape[1], hessian.factor
        steps, left = self.steps()[:, hessian.order // self.group], matrix[:, hessian.order]
        inverse, places = _inverse(steps), torch.empty_like(self.places)
        for start in range(0, columns, COLUMNS):
            stop = min(start + COLUMNS, columns)
            errors = torch.empty(len(matrix), stop - start)
            for j in range(start, stop):
                at = places[:, j] = self.at(left[:, j] * inverse[:, j])
                error = (left[:, j] - self.values[at] * steps[:, j]) / factor[j, j]
                left[:, j:stop] -= error[:, None] * factor[j, j:stop]
                errors[:, j - start] = error
            left[:, stop:] -= errors @ factor[start:stop, stop:]
        self.places[:, hessian.order] = places

    def descend(self, matrix: Tensor, hessian: Hessian) -> None:
        """One pass over all groups; `pull` is half the error's negative gradient by each weight."""
        values, steps = self.values[self.places], self.steps()
        pull = (matrix - values * steps.repeat_interleave(self.group, 1)) @ hessian.gram
        for number in range(self.scale.shape[1]):
            run = slice(number * self.group, (number + 1) * self.group)
            before = values[:, run] * steps[:, number, None]
            near, own = pull[:, run].clone(), hessian.gram[run, run]
            self.places[:, run] = self._codes(values[:, run], steps[:, number], near, own)
            steps[:, number] = self._scale(number, values[:, run], near, own)
            pull -= (values[:, run] * steps[:, number, None] - before) @ hessian.gram[run]

    def _codes(self, values: Tensor, step: Tensor, pull: Tensor, gram: Tensor) -> Tensor:
        """The best code of each of a group's columns in turn: their places; `values` and `pull` are changed to match."""
        inverse, places = _inverse(step), torch.empty(values.shape, dtype=torch.int32)
        for j in range(self.group):
            at = places[:, j] = self.at(values[:, j] + pull[:, j] * inverse / gram[j, j])
            pull -= ((self.values[at] - values[:, j]) * step)[:, None] * gram[j]
            values[:, j] = self.values[at]
        return places

    def _scale(self, number: int, values: Tensor, pull: Tensor, gram: Tensor) -> Tensor:
        """The best scale of a group beside its codes, kept where rounding to float16 leaves it better: its new steps."""
        old = self.scale[:, number].float() * self.unit
        down, curve = (values * pull).sum(1), ((values @ gram) * values).sum(1)
        fitted = ((old + down / curve.clamp(min=1e-30)) / self.unit).half()
        change = fitted.float() * self.unit - old
        better = change * (2 * down - change * curve) > 0
        self.scale[:, number] = torch.where(better, fitted, self.scale[:, number])
        return self.scale[:, number].float() * self.unit


def _inverse(steps: Tensor) -> Tensor:
    return 1 / torch.where(steps == 0, 1, steps)
