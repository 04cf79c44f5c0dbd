"""Where the time of a decoded token goes: the native kernels timed one by one (native/c/probe.c)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from llamachat.core.engine import Engine
from llamachat.engines.native.abi import address, native_library
from llamachat.engines.native.description import PARTS as MATRICES
from llamachat.engines.native.engine import NativeEngine
from llamachat.errors import UsageError

KERNELS = (
    "head",
    "norms",
    "activations to int8",
    "activation function",
    "attention",
    "embedding, narrowing of keys and values",
)
PARTS = (*MATRICES, *KERNELS)
_STEP, _ALL = len(PARTS), 16  # of probe.c's array


@contextmanager
def profiling(wanted: bool) -> Iterator[None]:
    """Native engines made in here time their kernels, if wanted."""
    if not wanted:
        yield
        return
    native_library().profile(1)
    try:
        yield
    finally:
        native_library().profile(0)


class Profile:
    """Of an engine that was made under `profiling`. Raises UsageError for one that is not the native engine."""

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, NativeEngine):
            raise UsageError("only the native engine has a profile", remedy="leave out --profile or --engine")
        self._engine = engine
        self._parts = np.array(engine._description.parts, np.uint8)  # the C side keeps it

    def start(self) -> None:
        """Count from now on."""
        native_library().profile_start(self._engine._description.matrices, address(self._parts), len(self._parts))

    def read(self, tokens: int, seconds: float) -> dict[str, float]:
        """Milliseconds a token of each part, the mean of the threads; they add up to those of `seconds`."""
        spent = np.empty((self._engine.threads, _ALL))
        for thread, row in enumerate(spent):
            native_library().profile_read(thread, ctypes.c_void_p(row.ctypes.data))
        parts = spent[:, :_STEP].mean(0)
        step = float(spent[0, _STEP])
        found = dict(zip(PARTS, parts.tolist(), strict=True))
        found["RoPE, keeping keys, adapters, waiting for each other"] = step - float(parts.sum())
        found["Python, start and end of the threads"] = seconds - step
        return {name: round(1000 * value / tokens, 4) for name, value in found.items()}
