"""The CPU engine: packed weights mapped, one C call for each chunk of tokens. See native/engine.c; no torch here."""

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.cache import CacheStep
from llamachat.config import LlamaConfig
from llamachat.engine.pack import BF16, F16, F32, LANES, Q8, TILE, Arena, Head, Matrix, native_library, packed_bytes
from llamachat.engine.rope import frequencies
from llamachat.tensors import Array, Tensor, TensorInfo

KvType = Literal["float32", "float16", "bfloat16", "int8"]
KV_TYPES: dict[int, KvType] = {8: "int8", 16: "float16", 32: "float32"}
BATCH = 512  # tokens a call; longer prompts take several
LINEARS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)
_NONE, _LAST, _ALL = range(3)
_UNSEEN = np.iinfo(np.int32).max


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "vocab", "hidden", "inner", "layers", "heads", "kv_heads", "head_dim", "slots", "kv_kind", "threads", "batch")),
        ("eps", ctypes.c_float),
        ("rope_factor", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("frequency", "window", "norms")),
        *((name, ctypes.POINTER(Matrix)) for name in ("embed", "head", "linears")),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ids", "slots", "positions", "visible")),
        *((name, ctypes.c_int32) for name in ("tokens", "ranges", "wanted")),
        ("logits", ctypes.c_void_p),
    ]


class NativeEngine:
    """See engine.Engine. Deterministic: neither the number of threads nor the cutting into chunks changes a bit."""

    repeatable = True

    def __init__(
        self,
        config: LlamaConfig,
        arena: Arena,
        *,
        slots: int,
        kv: KvType = "float16",
        threads: int | None = None,
        kernels: str | None = None,
    ) -> None:
        """`kernels` is one of usable_kernels(), by default the first. Raises FormatError and MemoryError."""
        arena.require(config.tensor_shapes())
        self.config, self.slots, self.arena = config, slots, arena
        self.kv, self.threads, self.kernels = kv, threads or default_threads(), kernels or usable_kernels()[0]
        self._lib = _declared(native_library())
        self._model, self._kept = self._describe()
        self._engine = self._lib.engine_new(ctypes.byref(self._model), self.kernels.encode())
        if not self._engine:
            raise MemoryError(f"a context of {slots} tokens does not fit in memory")
        self._master: tuple[range, NDArray[np.float32]] | None = None

    @classmethod
    def build(cls, config: LlamaConfig, tensors: Iterable[tuple[str, Tensor]], **options: Any) -> "NativeEngine":
        """From the tensors of config.tensor_shapes(), packed in memory; see __init__ for the options."""
        return cls(config, Arena.build(tensors), **options)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._lib.engine_free(self._engine)

    @property
    def weight_bytes(self) -> int:
        return self.arena.nbytes

    @property
    def kv_bytes(self) -> int:
        """When every slot is in use; memory is taken as slots are written."""
        return _kv_bytes(self.config, self.slots, self.kv)

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        assert len(ids) == len(step.slots) == len(step.positions) > 0
        tokens = np.asarray(ids, np.int32)
        slots, positions = np.ascontiguousarray(step.slots, np.int64), np.ascontiguousarray(step.positions, np.int64)
        visible = np.array([(span.start, span.stop) for span in step.visible], np.int64)
        assert tokens.min() >= 0 and tokens.max() < self.config.vocab_size
        assert min(slots.min(), visible.min()) >= 0 and max(slots.max() + 1, visible.max()) <= self.slots
        if step.pinned is not None:
            self._pin(*step.pinned)
        if self._master is not None and any(slot in self._master[0] for slot in slots.tolist()):
            self._master = None
        self._lib.engine_place(self._engine, _at(slots), _at(positions), len(slots))
        width = -(-self.config.vocab_size // LANES) * LANES
        out = np.empty((len(tokens) if logits == "all" else 1, width), np.float32)
        for first in range(0, len(tokens), BATCH):
            part = slice(first, first + BATCH)
            wanted = _ALL if logits == "all" else _LAST if first + BATCH >= len(tokens) else _NONE
            arrays = (tokens[part], slots[part], positions[part], visible)
            to = _at(out[first:]) if logits == "all" else _at(out)
            self._lib.engine_forward(
                self._engine, _Step(*(_at(array) for array in arrays), len(arrays[0]), len(visible), wanted, to)
            )
        out = out[:, : self.config.vocab_size]
        return out if logits == "all" else out[0]

    def describe(self) -> str:
        size = f"{self.weight_bytes / 1e6:.0f} MB of weights"
        return f"native ({self.kernels}, {self.threads} threads); {size}; keys and values {self.kv}"

    def _pin(self, block: range, start: int) -> None:
        """Turns the keys of these slots to positions from `start` on, always from the same un-rotated copy of them."""
        if self._master is None or self._master[0] != block:
            shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, len(block), self.config.head_dim)
            self._master = block, np.empty(shape, np.float32)
            self._lib.engine_read_keys(self._engine, block.start, len(block), _at(self._master[1]))
        self._lib.engine_write_keys(self._engine, block.start, len(block), start, _at(self._master[1]))

    def _describe(self) -> tuple[_Model, list[Any]]:
        """The model for the C side, and the objects that it points to."""
        c = self.config
        frequency, factor = frequencies(c, self.slots)
        windows = np.array([c.window(layer) or _UNSEEN for layer in range(c.num_hidden_layers)], np.int32)
        matrices = [
            self._matrix(f"model.layers.{layer}.{name}") for layer in range(c.num_hidden_layers) for name in LINEARS
        ]
        linears = (Matrix * len(matrices))(*matrices)
        embed = self._matrix("model.embed_tokens")
        head = embed if c.tie_word_embeddings else self._matrix("lm_head")
        norms = self._norms()
        kind = {"float32": F32, "float16": F16, "bfloat16": BF16, "int8": Q8}[self.kv]
        model = _Model(
            c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
            c.num_key_value_heads, c.head_dim, self.slots, kind, self.threads, BATCH, c.rms_norm_eps, factor,
            _at(frequency), _at(windows), _at(norms), ctypes.pointer(embed), ctypes.pointer(head), linears,
        )  # fmt: skip
        return model, [frequency, windows, norms, embed, head, linears]

    def _matrix(self, name: str) -> Matrix:
        head, data = self.arena.tensors[name + ".weight"]
        bias = self.arena.tensors.get(name + ".bias")
        return head.matrix(data, None if bias is None else bias[1])

    def _norms(self) -> NDArray[np.float32]:
        names = [f"layers.{layer}.{name}_layernorm" for layer in range(self.config.num_hidden_layers)
                 for name in ("input", "post_attention")]  # fmt: skip
        return np.stack([self.arena.tensors[f"model.{name}.weight"][1].view(np.float32) for name in [*names, "norm"]])


def planned_bytes(config: LlamaConfig, index: Mapping[str, TensorInfo], slots: int, kv: KvType) -> tuple[int, int]:
    """Bytes of weights and of keys and values that an engine of this model will hold, from headers alone."""
    return sum(packed_bytes(info) for info in index.values()), _kv_bytes(config, slots, kv)


def _kv_bytes(config: LlamaConfig, slots: int, kv: KvType) -> int:
    vector = config.head_dim * {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[kv] + 4 * (kv == "int8")
    return slots * config.num_hidden_layers * 2 * config.num_key_value_heads * vector


def default_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_kernels() -> list[str]:
    """Names of the kernels this processor can run, best first. Raises build.BuildError where there is no library."""
    lib, names = _declared(native_library()), list[str]()
    while name := lib.usable_kernels(len(names)):
        names.append(name.decode())
    return names


def _at(array: Array) -> int:
    return int(array.ctypes.data)


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    lib.usable_kernels.restype = ctypes.c_char_p
    lib.engine_new.restype = pointer
    lib.engine_new.argtypes = [ctypes.POINTER(_Model), ctypes.c_char_p]
    lib.engine_free.argtypes = [pointer]
    lib.single_product.argtypes = [ctypes.c_char_p, pointer, pointer, integer, integer, integer, pointer]
    lib.single_rows.argtypes = [ctypes.c_char_p, pointer, pointer, integer, pointer]
    lib.engine_place.argtypes = [pointer, pointer, pointer, integer]
    lib.engine_forward.argtypes = [pointer, ctypes.POINTER(_Step)]
    lib.engine_read_keys.argtypes = [pointer, integer, integer, pointer]
    lib.engine_write_keys.argtypes = [pointer, integer, integer, ctypes.c_int64, pointer]
    return lib


def single_product(
    head: Head, data: Array, x: Array, kernels: str, *, fine: bool = False, threads: int = 1
) -> NDArray[np.float32]:
    """x [T, columns] times a packed matrix -> [T, rows], as the engine computes it; for tests and measurements."""
    matrix, x = head.matrix(data), np.ascontiguousarray(x, np.float32)
    out = np.empty((len(x), -(-head.rows // LANES) * LANES), np.float32)
    lib = _declared(native_library())
    if not lib.single_product(kernels.encode(), ctypes.byref(matrix), _at(x), len(x), fine, threads, _at(out)):
        raise MemoryError
    return out[:, : head.rows]


def single_rows(head: Head, data: Array, rows: Sequence[int], kernels: str) -> NDArray[np.float32]:
    """These rows of a packed matrix as floats."""
    out = np.empty((len(rows), -(-head.columns // TILE) * TILE), np.float32)
    index = np.array(rows, np.int32)
    _declared(native_library()).single_rows(
        kernels.encode(), ctypes.byref(head.matrix(data)), _at(index), len(rows), _at(out)
    )
    return out[:, : head.columns]
