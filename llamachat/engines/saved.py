"""The keys and values that Engine.save_kv gives and Engine.load_kv takes back; they may come from a file, so they are checked.

kv      [layers, 2, kv_heads, slots, head_dim] keys and values as the engine stores them (bfloat16 as its bits); or, of keys in 8
        bits and values in 4, [layers, 1, kv_heads, slots, bytes]: a rotated key's codes, then the value's row (c/kernels.h)
scale   [layers, 2 or 1, kv_heads, slots] float32, beside codes of 8 bits only
pinned  [2] int64: of the slots, the first of a pinned block that has been rotated, and how many it has; if there is one
master  [layers, kv_heads, pinned slots, head_dim] its un-rotated keys, from which it is rotated again
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import Integers
from llamachat.core.spec import ModelSpec
from llamachat.engines.memory import nibble_bytes
from llamachat.errors import FormatError

Saved = Mapping[str, NDArray[Any]]
Keys = TypeVar("Keys")  # an engine's own kind of array


def in_words(kind: str) -> str:
    """A type of keys and values by name, for people."""
    keys, _, values = kind.partition("+")
    return f"keys {keys}, values {values}" if values else f"keys and values {kind}"


@dataclass(frozen=True)
class Layout:
    """What an engine stores, as numpy types."""

    config: ModelSpec
    kv: str
    scaled: bool
    master: str = "float32"
    together: bool = False  # key and value, in 8 and 4 bits

    @classmethod
    def of(cls, config: ModelSpec, kind: str, master: str = "float32") -> Self:
        """For a type of keys and values by name."""
        together = kind == "int8+int4"
        kept = "uint8" if together else "uint16" if kind == "bfloat16" else kind
        return cls(config, kept, together or kind == "int8", master, together)

    def shape(self, slots: int) -> tuple[int, ...]:
        """Of `kv`."""
        c, size = self.config, self.config.head_dim
        parts, last = (1, size + nibble_bytes(size)) if self.together else (2, size)
        return c.num_hidden_layers, parts, c.num_key_value_heads, slots, last

    def check(self, saved: Saved, slots: Integers) -> range | None:
        """The pinned block that is among them. Raises FormatError where it is not what `save_kv` of such slots gives."""
        kv = self.shape(len(slots))
        expected: dict[str, tuple[str, tuple[int, ...]]] = {"kv": (self.kv, kv)}
        if self.scaled:
            expected["scale"] = "float32", kv[:-1]
        block = _pinned(saved, slots) if "pinned" in saved else None
        if block is not None:
            expected |= {
                "pinned": ("int64", (2,)),
                "master": (self.master, (kv[0], kv[2], len(block), self.config.head_dim)),
            }
        if {name: (str(array.dtype), array.shape) for name, array in saved.items()} != expected:
            raise _damaged()
        return block


class PinnedKeys(Generic[Keys]):
    """The un-rotated keys of a pinned block of slots, from which it is rotated each time, so that rounding never adds up."""

    def __init__(self) -> None:
        self.block = range(0)
        self.keys: Keys | None = None

    def of(self, block: range, unrotated: Callable[[], Keys]) -> Keys:
        """Those of this block; `unrotated` makes them where it is another one than before."""
        if self.keys is None or self.block != block:
            self.hold(block, unrotated())
        assert self.keys is not None
        return self.keys

    def hold(self, block: range, keys: Keys) -> None:
        """Of a block that comes back from a file, say."""
        self.block, self.keys = block, keys

    def written(self, slots: Iterable[int]) -> None:
        """A block that is written to begins anew."""
        if self.keys is not None and any(slot in self.block for slot in slots):
            self.keys = None

    def saved(self, slots: Integers, to_numpy: Callable[[Keys], NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`pinned` and `master`, if all slots of the block are among these, side by side."""
        (at,) = np.nonzero(slots == self.block.start)
        if self.keys is None or not len(at) or not np.array_equal(slots[at[0] : at[0] + len(self.block)], self.block):
            return {}
        return {"pinned": np.array([at[0], len(self.block)], np.int64), "master": to_numpy(self.keys)}


def _pinned(saved: Saved, slots: Integers) -> range:
    if saved["pinned"].shape != (2,) or saved["pinned"].dtype != np.int64:
        raise _damaged()
    first, count = saved["pinned"].tolist()
    if not 0 <= first < first + count <= len(slots):
        raise _damaged()
    block = range(int(slots[first]), int(slots[first]) + count)
    if not np.array_equal(slots[first : first + count], block):
        raise _damaged()
    return block


def _damaged() -> FormatError:
    return FormatError("saved keys and values are damaged or another model's", "they cannot be used", "delete them")
