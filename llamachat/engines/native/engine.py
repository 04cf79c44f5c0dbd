"""The CPU engine: packed weights mapped, one C call for each chunk of tokens. See c/engine.c; no torch here."""

import ctypes
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.engine import Outputs
from llamachat.core.spec import Activation, ModelSpec
from llamachat.core.tensors import Array, Tensor, TensorInfo
from llamachat.engines.memory import active_bytes, kv_bytes
from llamachat.engines.native.abi import Keys, Model, Step, address, checked, native_library
from llamachat.engines.native.description import ACTIVATIONS, Description, sized
from llamachat.engines.native.lowrank import Additions
from llamachat.engines.native.pack import BF16, F16, F32, LANES, Q4, Q8, TILE, Header, packed_bytes, unpackable
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.engines.native.rows import Rows
from llamachat.engines.native.single_step import SingleStep
from llamachat.engines.saved import Layout, PinnedKeys, Saved, in_words
from llamachat.errors import FormatError, UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.adapter import Scaled

KvType = Literal[
    "float32", "float16", "bfloat16", "int8", "int8+int4"
]  # the last: keys in 8 bits, values in 4, rotated
KV_TYPES: dict[int, KvType] = {4: "int8+int4", 8: "int8", 16: "float16", 32: "float32"}
KV_KINDS: dict[KvType, int] = {"float32": F32, "float16": F16, "bfloat16": BF16, "int8": Q8, "int8+int4": Q4}
BATCH = 512  # tokens a call; longer prompts take several
WORKSPACE = 1 << 30  # bytes of activations and the like from which on the batch is smaller
_INT32_MAX = np.iinfo(np.int32).max
_UNPLACED = "each token needs a slot and a position"


class NativeEngine:
    """See engine.Engine. Deterministic: neither the number of threads nor the cutting into chunks changes a bit."""

    batch_invariant = True
    used = 0.0  # when the last step ended, by time.monotonic; infinite within one

    def __init__(
        self,
        config: ModelSpec,
        weights: PackedWeights,
        *,
        slots: int,
        kv: KvType = "float16",
        threads: int | None = None,
        kernels: str | None = None,
    ) -> None:
        """`kernels` is one of usable_kernels(), by default the first. Raises FormatError and MemoryError."""
        weights.require(config.tensor_shapes())
        self.config, self.slots, self.weights = config, slots, weights
        self.kv, self.threads, self.kernels = kv, threads or default_threads(), kernels or usable_kernels()[0]
        self._layout = Layout.of(config, self.kv)
        self._lib = native_library()
        self._model = _sizes(config, slots, kv, self.threads)
        self._description = Description(config, weights, self._model)
        why = ctypes.c_char_p()
        self._engine = self._lib.engine_new(self._model, self.kernels.encode(), ctypes.byref(why))
        checked(why.value)
        if not self._engine:
            raise MemoryError(f"a context of {slots} tokens does not fit in memory")
        self._single, self._rows = SingleStep(), Rows()
        self._pinned = PinnedKeys[NDArray[np.float32]]()
        self._additions = Additions(self._description.modules)

    @classmethod
    def build(cls, config: ModelSpec, tensors: Iterable[tuple[str, Tensor]], **options: Any) -> "NativeEngine":
        """From the tensors of config.tensor_shapes(), packed in memory; see __init__ for the options."""
        return cls(config, PackedWeights.build(tensors), **options)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._lib.engine_free(self._engine)

    @property
    def weight_bytes(self) -> int:
        return self.weights.nbytes

    @property
    def active_bytes(self) -> int | None:
        """Of a mixture's weights, what one token reads."""
        return active_bytes(self.config, {name: data.nbytes for name, (_, data) in self.weights.tensors.items()})

    @property
    def kv_bytes(self) -> int:
        """When every slot is in use; memory is taken as slots are written."""
        return _kv_bytes(self.config, self.slots, self.kv)

    def adapt(self, adapters: Sequence[Scaled]) -> None:
        """Have these adapters in force from the next step on, and no others."""
        before = self._additions.put(adapters)
        try:
            checked(self._lib.engine_adapt(self._engine))
        except (ValueError, MemoryError):
            self._additions.put_back(before)
            raise

    def forward(
        self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"], outputs: Outputs = "logits"
    ) -> NDArray[np.float32]:
        if outputs not in ("logits", "hidden"):
            cause = f"the native engine does not give {outputs.replace('_', ' ')}"
            raise UsageError(cause, "nothing was computed", "use --engine torch")
        if step.pinned is not None:
            self._pin(*step.pinned)
        out = self._run([ids], [step], logits == "all", outputs == "hidden")
        return out if logits == "all" else out[0]

    def forward_many(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], outputs: Literal["logits", "hidden"] = "logits"
    ) -> NDArray[np.float32]:
        assert all(step.pinned is None for step in steps)
        return self._run(ids, steps, hidden=outputs == "hidden")

    def _run(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], every: bool = False, hidden: bool = False
    ) -> NDArray[np.float32]:
        """Logits of each text's last token, or of every token; or what the head is given.

        Tokens go text by text, those that want logits behind all others; within a call of the C side, before them.
        """
        if len(ids) == 1 == len(ids[0]):
            return self._one(ids[0][0], steps[0], hidden)
        counts = np.array([len(text) for text in ids])
        tokens, text = np.concatenate(ids).astype(np.int32), np.repeat(np.arange(len(counts)), counts)
        slots = np.concatenate([step.slots for step in steps]).astype(np.int64)
        positions = np.concatenate([step.positions for step in steps]).astype(np.int64)
        visible = np.array([(r.start, r.stop, i) for i, step in enumerate(steps) for r in step.visible], np.int64)
        if not len(tokens) == len(slots) == len(positions):
            raise ValueError(_UNPLACED)
        self._pinned.written(slots.tolist())
        checked(self._lib.engine_set_positions(self._engine, address(slots), address(positions), len(slots)))
        wants = np.full(len(tokens), every)
        wants[counts.cumsum() - 1] = True
        order = np.argsort(wants, kind="stable")
        out = self._room(int(wants.sum()), hidden)
        for first in range(0, len(order), self._model.batch):
            part = order[first : first + self._model.batch]
            wanted = int(wants[part].sum())
            row = first + len(part) - wanted - (len(order) - len(out))
            part = np.roll(part, wanted)
            logits, runs = out[row : row + wanted], _runs(text[part])
            arrays: list[Array] = [tokens[part], slots[part], positions[part], visible, runs]
            sizes = len(part), len(ids), len(visible), len(runs), wanted
            self._call(Step(*map(address, arrays), *sizes, hidden, address(logits)))
        return out[:, : self._width(hidden)]

    def _width(self, hidden: bool) -> int:
        return self.config.hidden_size if hidden else self.config.outputs

    def _room(self, count: int, hidden: bool) -> NDArray[np.float32]:
        """For what a step gives; rows of logits are written by whole strips."""
        width = self._width(hidden)
        return self._rows(count, width if hidden else -(-width // LANES) * LANES)

    def _one(self, token: int, step: CacheStep, hidden: bool) -> NDArray[np.float32]:
        """`_run` of a single token, without what only several need."""
        if not len(step.slots) == len(step.positions) == 1:
            raise ValueError(_UNPLACED)
        out = self._room(1, hidden)
        self._pinned.written((int(step.slots[0]),))
        self._call(self._single.told(token, step, hidden, out))
        return out[:, : self._width(hidden)]

    def _call(self, step: Step) -> None:
        """Up to a batch of tokens."""
        self.used = math.inf
        try:
            checked(self._lib.engine_forward(self._engine, step))
        finally:
            self.used = time.monotonic()

    def save_kv(self, slots: Integers) -> Saved:
        shape = self._layout.shape(len(slots))
        saved: dict[str, NDArray[Any]] = {"kv": np.empty(shape, self._layout.kv)}
        if self._layout.scaled:
            saved["scale"] = np.empty(shape[:-1], np.float32)
        self._transfer(self._lib.engine_save_kv, slots, saved)
        return saved | self._pinned.saved(slots, lambda keys: keys)

    def load_kv(self, slots: Integers, positions: Integers, saved: Saved) -> None:
        block = self._layout.check(saved, slots)
        if len(positions) != len(slots) or positions.min() < 0 or positions.max() >= _INT32_MAX:
            raise FormatError("saved keys have impossible positions", "they cannot be used", "delete them")
        self._pinned.written(slots.tolist())
        self._transfer(self._lib.engine_load_kv, slots, saved)
        slots, positions = np.ascontiguousarray(slots, np.int64), np.ascontiguousarray(positions, np.int64)
        checked(self._lib.engine_set_positions(self._engine, address(slots), address(positions), len(slots)))
        if block is not None:
            self._pinned.hold(block, np.ascontiguousarray(saved["master"]))

    def _transfer(self, function: Any, slots: Integers, saved: Saved) -> None:
        """Keys and values of these slots to or from the arrays of `saved`, as the C function does it."""
        slots = np.ascontiguousarray(slots, np.int64)
        kv, scale = (np.ascontiguousarray(saved[name]) if name in saved else None for name in ("kv", "scale"))
        assert kv is not None
        factors = None if scale is None else address(scale)
        checked(function(self._engine, address(slots), len(slots), address(kv), factors))

    def describe(self) -> str:
        asked = self.config.dtypes.compute
        types = self.types + (f" ({asked} is asked for)" if asked not in (None, self.types) else "")
        size = f"{self.weight_bytes / 1e6:.0f} MB of weights"
        if (active := self.active_bytes) is not None:
            size += f", of which a token reads {active / 1e6:.0f} MB"
        kernels = f"native ({self.kernels}, {self.threads} threads)"
        return f"{kernels}; computes in {types}; {size}; {in_words(self.kv)}"

    @property
    def types(self) -> str:
        """What it multiplies in, for people: codes by activations rounded to 8 bits, summed in float32; or floats."""
        coded = any(header.kind > BF16 for header, _ in self.weights.tensors.values())
        return "8-bit integers and float32" if coded else "float32"

    def _pin(self, block: range, start: int) -> None:
        """Rotates the keys of these slots to positions from `start` on, always from the same un-rotated copy of them."""
        if not 0 <= block.start < block.stop <= self.slots:
            raise ValueError("a pinned block of slots that are not there")

        def unrotated() -> NDArray[np.float32]:
            config = self.config
            keys = np.empty(
                (config.num_hidden_layers, config.num_key_value_heads, len(block), config.head_dim), np.float32
            )
            checked(self._lib.engine_unrotated_keys(self._engine, block.start, len(block), address(keys)))
            return keys

        keys = self._pinned.of(block, unrotated)
        checked(self._lib.engine_rotate_keys(self._engine, block.start, len(block), start, address(keys)))


def supports(config: ModelSpec, index: Mapping[str, TensorInfo]) -> str | None:
    """What of this model the C side cannot run, in words, or None. It checks again what it is given."""
    if isinstance(config, EncoderDecoderSpec):
        return "it reads a source with an encoder"
    for name, info in index.items():
        if info.packing is not None and (reason := unpackable(info.packing, info.shape[-1])):
            return f"{name} has {reason}"
    fault: bytes | None = native_library().model_fault(_sizes(config, 1, "float32", 1))
    return f"it has {fault.decode()}" if fault else None


def planned_bytes(
    config: ModelSpec, index: Mapping[str, TensorInfo], slots: int, kv: KvType, threads: int | None = None
) -> tuple[int, int, int]:
    """Bytes of weights, of keys and values and of workspace that an engine of this model will hold, from headers alone."""
    model = _sizes(config, slots, kv, threads or default_threads())
    weights = sum(packed_bytes(info) for info in index.values())
    return weights, _kv_bytes(config, slots, kv), _workspace(model)


def _sizes(config: ModelSpec, slots: int, kv: KvType, threads: int) -> Model:
    """A model without its weights; its batch is the largest that does not need much memory."""
    model = sized(config, slots, KV_KINDS[kv], threads, BATCH)
    while model.batch > LANES and not native_library().model_fault(model) and _workspace(model) > WORKSPACE:
        model.batch //= 2
    return model


def _workspace(model: Model) -> int:
    return int(native_library().engine_workspace(model))


def _runs(text: Array) -> Array:
    """(first, end, text) of each run of tokens of one text."""
    starts = np.flatnonzero(np.diff(text, prepend=-1))
    return np.stack((starts, np.append(starts[1:], len(text)), text[starts]), 1).astype(np.int32)


def _kv_bytes(config: ModelSpec, slots: int, kv: KvType) -> int:
    bits = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int8+int4": 4}[kv]
    return kv_bytes(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, slots, bits)


def default_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_kernels() -> list[str]:
    """Names of the kernels this processor can run, best first. Raises build.BuildError where there is no library."""
    lib, names = native_library(), list[str]()
    while name := lib.usable_kernels(len(names)):
        names.append(name.decode())
    return names


def single_product(
    header: Header, data: Array, x: Array, kernels: str, *, fine: bool = False, threads: int = 1
) -> NDArray[np.float32]:
    """x [T, columns] times a packed matrix -> [T, rows], as the engine computes it; for tests and measurements."""
    matrix, x = header.matrix(data), np.ascontiguousarray(x, np.float32)
    out = np.empty((len(x), -(-header.rows // LANES) * LANES), np.float32)
    lib = native_library()
    checked(lib.single_product(kernels.encode(), matrix, address(x), len(x), fine, threads, address(out)))
    return out[:, : header.rows]


def single_rows(header: Header, data: Array, rows: Sequence[int], kernels: str) -> NDArray[np.float32]:
    """These rows of a packed matrix as floats."""
    out = np.empty((len(rows), -(-header.columns // TILE) * TILE), np.float32)
    index = np.array(rows, np.int32)
    lib = native_library()
    checked(lib.single_rows(kernels.encode(), header.matrix(data), address(index), len(rows), address(out)))
    return out[:, : header.columns]


def single_attend(
    kernels: str,
    kv: KvType,
    keys: Array,
    values: Array,
    scales: Array,
    mask: Array,
    q: Array,
    positions: Array,
    window: int,
    softcap: float = 0.0,
) -> NDArray[np.float32]:
    """What up to 8 queries [rows, dim] make of a chunk's slots: [rows, PART + dim], see c/kernels.h, which says how keys and
    values lie; scales [2, slots] float32, mask (positions of slots, 2^31 - 1 where masked) and positions int32."""
    out = np.zeros((len(q), 16 + q.shape[1]), np.float32)
    held = Keys(
        address(keys),
        address(values),
        address(keys),
        address(scales[0]),
        address(scales[1]),
        address(mask),
        KV_KINDS[kv],
        q.shape[1],
        window,
        softcap,
    )
    lib = native_library()
    checked(lib.single_attend(kernels.encode(), held, address(q), address(positions), len(q), len(mask), address(out)))
    return out


def single_activate(kernels: str, activation: Activation, limit: float, gate: Array, up: Array) -> NDArray[np.float32]:
    """act(gate) * up [n], n a multiple of 16."""
    out, lib = np.empty(len(gate), np.float32), native_library()
    kind = ACTIVATIONS.index(activation)
    arrays = address(gate), address(up), len(gate), address(out)
    checked(lib.single_activate(kernels.encode(), kind, limit, *arrays))
    return out
