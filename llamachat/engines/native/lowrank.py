"""Adapters as the C side has them (LowRank in c/packed.h): packed once, then put on and off the model's matrices."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llamachat.core.tensors import Array, to_float32
from llamachat.engines.native.abi import LowRank, Matrix, address
from llamachat.engines.native.pack import BF16, F16, F32, LANES, TILE, aligned
from llamachat.formats.adapter import Adapter, Scaled
from llamachat.formats.adapter import LowRank as Trained

GROUP = 4  # rows of `a`


@dataclass(frozen=True)
class Packed:
    """The two matrices in the kernels' layout, of one kind."""

    a: Array
    b: Array
    kind: int
    rank: int
    scale: float

    def added(self, factor: float, behind: LowRank | None) -> LowRank:
        """What the C side adds, times a factor, before what is `behind`; that and this must outlive it."""
        following = ctypes.addressof(behind) if behind else None
        sizes = self.a.nbytes, self.b.nbytes
        return LowRank(address(self.a), address(self.b), *sizes, following, self.rank, self.kind, self.scale * factor)


def packed(low: Trained) -> Packed:
    """In the fewest bits that hold its values as they are."""
    kind, (a, b) = _alike(to_float32(low.a), to_float32(low.b))
    rank, columns = a.shape
    groups, width = -(-rank // GROUP), -(-columns // TILE) * TILE
    strips = -(-len(b) // LANES)
    rows = np.zeros((groups * GROUP, width), a.dtype)
    rows[:rank, :columns] = a
    across = np.zeros((strips * LANES, rank), b.dtype)
    across[: len(b)] = b
    pieces = rows.reshape(groups, GROUP, width // LANES, LANES).swapaxes(1, 2)
    return Packed(_laid(pieces), _laid(across.reshape(strips, LANES, rank).swapaxes(1, 2)), kind, rank, low.scale)


def _alike(a: Array, b: Array) -> tuple[int, tuple[Array, Array]]:
    """float32 matrices as they are, or in 16 bits where these hold each value exactly."""
    pair = np.ascontiguousarray(a), np.ascontiguousarray(b)
    bits = [each.view(np.uint32) for each in pair]
    if not any((each & 0xFFFF).any() for each in bits):
        return BF16, ((bits[0] >> 16).astype(np.uint16), (bits[1] >> 16).astype(np.uint16))
    with np.errstate(over="ignore", under="ignore"):
        halves = pair[0].astype(np.float16), pair[1].astype(np.float16)
    if all(np.array_equal(half.astype(np.float32), each) for half, each in zip(halves, pair, strict=True)):
        return F16, halves
    return F32, pair


def _laid(array: Array) -> Array:
    """Its bytes, 64-byte aligned."""
    out = aligned(array.nbytes)
    out.view(array.dtype)[:] = array.reshape(-1)
    return out


@dataclass
class Additions:
    """What is added to the matrices of one model. `matrices`: by module, with what its weight is multiplied by."""

    matrices: Mapping[str, tuple[Matrix, float]]
    _packed: dict[Adapter, dict[str, Packed]] = field(default_factory=dict)
    _put: dict[str, list[LowRank]] = field(default_factory=dict)  # on the matrices now; they point to them

    def put(self, adapters: Sequence[Scaled]) -> dict[str, list[LowRank]]:
        """Put these on the matrices, in this order and no others; returns what was there, for `put_back`."""
        chains = dict[str, list[LowRank]]()
        for adapter, scale in reversed(adapters):
            for module, low in self._of(adapter).items():
                chain = chains.setdefault(module, [])
                factor = scale * self.matrices[module][1]
                chain.append(low.added(factor, chain[-1] if chain else None))
        before = self._put
        self.put_back(chains)
        return before

    def put_back(self, chains: dict[str, list[LowRank]]) -> None:
        """Put these there: of each matrix a list, whose last is the first."""
        for module, (matrix, _) in self.matrices.items():
            chain = chains.get(module)
            matrix.added = ctypes.addressof(chain[-1]) if chain else None
        self._put = chains

    def _of(self, adapter: Adapter) -> dict[str, Packed]:
        if adapter not in self._packed:
            self._packed[adapter] = {module: packed(low) for module, low in adapter.matrices.items()}
        return self._packed[adapter]
