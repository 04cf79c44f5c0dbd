"""What a value must be, and the one error that says which it is and what is allowed."""

import math
import reprlib
from typing import TypeGuard

from llamachat.errors import ConfigError, LlamachatError

# The largest value of each size: far above any real model, far below what would hurt before the weights are missed.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 2**14,
    "max_position_embeddings": 2**30,
    "sliding_window": 2**30,
}


class _Repr(reprlib.Repr):
    """A repr of bounded length, also of integers too long for Python to print."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_repr = _Repr()
_repr.maxstring = _repr.maxother = 80
shown = _repr.repr  # how errors show a value that anyone may have written


def is_whole(value: object) -> TypeGuard[int]:
    """True for an int that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: object) -> TypeGuard[int]:
    """True for a number of tokens that there can be in a context."""
    return is_whole(value) and 0 <= value <= LARGEST["max_position_embeddings"]


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite float, or an int (no bool) that fits into one."""
    return math.isfinite(value) if isinstance(value, float) else is_whole(value) and abs(value) < 10**300


def require(holds: bool, name: str, value: object, allowed: str, error: type[LlamachatError] = ConfigError) -> None:
    """Raise `error`, naming what has which value and what is allowed, unless it holds."""
    if not holds:
        raise error(f"{name} is {shown(value)}", remedy=f"allowed is {allowed}")


def require_whole(name: str, value: object, low: int, high: int, error: type[LlamachatError] = ConfigError) -> None:
    """The value must be an int in low..high."""
    require(is_whole(value) and low <= value <= high, name, value, f"a whole number from {low} to {high}", error)


def require_number(
    name: str, value: object, low: float, high: float, error: type[LlamachatError] = ConfigError
) -> None:
    """The value must be a finite number in low..high."""
    require(is_number(value) and low <= value <= high, name, value, f"a number from {low:g} to {high:g}", error)


def require_choice(
    name: str, value: object, choices: tuple[object, ...], error: type[LlamachatError] = ConfigError
) -> None:
    """The value must be one of these."""
    require(value in choices, name, value, "one of " + ", ".join(map(str, choices)), error)
