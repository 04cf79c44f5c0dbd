"""The native library as Python sees it: its structures (c/packed.h, model.h, kernels.h), its functions, and what they report."""

import ctypes
from functools import cache

from llamachat.core.tensors import Array
from llamachat.engines.native.build import BuildError, library

_INT, _INT64, _SIZE, _POINTER, _TEXT = ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p


class Matrix(ctypes.Structure):
    """A packed matrix."""

    _fields_ = [
        ("data", _POINTER),
        ("bytes", ctypes.c_uint64),
        ("bias", _POINTER),
        *((name, _INT) for name in ("rows", "columns", "kind", "scaling", "subs", "minimum", "first")),
        ("unit", ctypes.c_float),
        ("table", ctypes.c_uint8 * 16),
        ("low", ctypes.c_uint8 * 16),
        *((name, _INT) for name in ("tabled", "wide")),
        ("added", _POINTER),
    ]


class LowRank(ctypes.Structure):
    """What is added to a matrix's product."""

    _fields_ = [
        *((name, _POINTER) for name in ("a", "b")),
        *((name, ctypes.c_uint64) for name in ("a_bytes", "b_bytes")),
        ("next", _POINTER),
        *((name, _INT) for name in ("rank", "kind")),
        ("scale", ctypes.c_float),
    ]


class Source(ctypes.Structure):
    """What a matrix is packed from."""

    _fields_ = [
        *((name, _POINTER) for name in ("codes", "scale", "minimum")),
        *((name, ctypes.c_uint64) for name in ("codes_bytes", "scales")),
        *((name, _INT) for name in ("group", "half")),
        *((name, ctypes.c_float) for name in ("factor", "offset")),
    ]


class Blocks(ctypes.Structure):
    """ggml's blocks that a matrix is packed from."""

    _fields_ = [
        *((name, _POINTER) for name in ("data", "order")),
        ("bytes", ctypes.c_uint64),
        *((name, _INT) for name in ("stored", "type")),
    ]


class Rope(ctypes.Structure):
    """A way to rotate."""

    _fields_ = [("frequency", _POINTER), ("factor", ctypes.c_float), ("dim", _INT)]


class Layer(ctypes.Structure):
    """What is a layer's own."""

    _fields_ = [
        *(
            (name, _POINTER)
            for name in ("attention_in", "attention_out", "mlp_in", "mlp_out", "q_norm", "k_norm", "sinks")
        ),
        *((name, ctypes.POINTER(Matrix)) for name in ("attention", "mlp", "router")),
        *((name, _INT) for name in ("window", "rope")),
    ]


class Model(ctypes.Structure):
    """Sizes and weights of a model."""

    _fields_ = [
        *((name, _INT) for name in ("vocab", "hidden", "inner", "layers", "heads", "kv_heads", "head_dim")),
        *(
            (name, _INT)
            for name in (
                "slots",
                "kv_kind",
                "threads",
                "batch",
                "outputs",
                "activation",
                "ropes",
                "fine",
                "whole_norms",
            )
        ),
        *((name, _INT) for name in ("experts", "picked", "expert_inner", "whole_softmax", "query_span")),
        *(
            (name, ctypes.c_float)
            for name in ("query_growth", "eps", "query_scale", "softcap", "logit_softcap", "swiglu_limit")
        ),
        ("rope", ctypes.POINTER(Rope)),
        ("layer", ctypes.POINTER(Layer)),
        ("norm", _POINTER),
        *((name, ctypes.POINTER(Matrix)) for name in ("embed", "head")),
    ]


class Step(ctypes.Structure):
    """Tokens of one call."""

    _fields_ = [
        *((name, _POINTER) for name in ("ids", "slots", "positions", "visible", "runs")),
        *((name, _INT) for name in ("tokens", "texts", "ranges", "run_count", "wanted", "hidden")),
        ("logits", _POINTER),
    ]


class Keys(ctypes.Structure):
    """Keys and values that queries attend to."""

    _fields_ = [
        *((name, _POINTER) for name in ("k", "v", "next", "k_scale", "v_scale", "position")),
        *((name, _INT) for name in ("kind", "dim", "window")),
        ("softcap", ctypes.c_float),
    ]


STRUCTURES = Matrix, LowRank, Source, Blocks, Rope, Layer, Model, Step, Keys
# name -> what it returns (a text is what was wrong, None: nothing) and takes
FUNCTIONS = {
    "usable_kernels": (_TEXT, [_INT]),
    "packed_bytes": (_SIZE, [ctypes.POINTER(Matrix)]),
    "pack_matrix": (_TEXT, [ctypes.POINTER(Matrix), ctypes.POINTER(Source), _POINTER]),
    "pack_blocks": (_TEXT, [ctypes.POINTER(Matrix), ctypes.POINTER(Blocks), _POINTER]),
    "model_fault": (_TEXT, [ctypes.POINTER(Model)]),
    "engine_workspace": (_SIZE, [ctypes.POINTER(Model)]),
    "engine_new": (_POINTER, [ctypes.POINTER(Model), _TEXT, ctypes.POINTER(_TEXT)]),
    "engine_free": (None, [_POINTER]),
    "engine_adapt": (_TEXT, [_POINTER]),
    "engine_set_positions": (_TEXT, [_POINTER, _POINTER, _POINTER, _INT]),
    "engine_forward": (_TEXT, [_POINTER, ctypes.POINTER(Step)]),
    "engine_save_kv": (_TEXT, [_POINTER, _POINTER, _INT, _POINTER, _POINTER]),
    "engine_load_kv": (_TEXT, [_POINTER, _POINTER, _INT, _POINTER, _POINTER]),
    "engine_unrotated_keys": (_TEXT, [_POINTER, _INT, _INT, _POINTER]),
    "engine_rotate_keys": (_TEXT, [_POINTER, _INT, _INT, _INT64, _POINTER]),
    "single_product": (_TEXT, [_TEXT, ctypes.POINTER(Matrix), _POINTER, _INT, _INT, _INT, _POINTER]),
    "single_rows": (_TEXT, [_TEXT, ctypes.POINTER(Matrix), _POINTER, _INT, _POINTER]),
    "single_attend": (_TEXT, [_TEXT, ctypes.POINTER(Keys), _POINTER, _POINTER, _INT, _INT, _POINTER]),
    "single_activate": (_TEXT, [_TEXT, _INT, ctypes.c_float, _POINTER, _POINTER, _INT, _POINTER]),
    "profile": (None, [_INT]),
    "profile_start": (None, [ctypes.POINTER(Matrix), _POINTER, _INT]),
    "profile_read": (None, [_INT, _POINTER]),
    "read_memory": (ctypes.c_uint64, [_POINTER, _SIZE, _INT, _INT]),
}


@cache
def native_library() -> ctypes.CDLL:
    """The compiled kernels. Raises build.BuildError where they cannot be had, or are of another version than this file."""
    try:
        lib = ctypes.CDLL(str(library()))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        for structure in STRUCTURES:
            require_layout(lib, structure)
    except (OSError, AttributeError) as error:
        raise BuildError(f"the compiled library cannot be used: {error}") from error
    return lib


def require_layout(lib: ctypes.CDLL, structure: type[ctypes.Structure]) -> None:
    """Raises build.BuildError unless C and Python lay a structure out alike, to the byte."""
    fields = {name: getattr(structure, name) for name, *_ in structure._fields_}
    ours = {name: (field.offset, field.size) for name, field in fields.items()} | {"": (0, ctypes.sizeof(structure))}
    if _layout(lib, structure.__name__) != ours:
        raise BuildError(f"the compiled library is of another version: its {structure.__name__} is laid out otherwise")


def _layout(lib: ctypes.CDLL, structure: str) -> dict[str, tuple[int, int]]:
    """Field -> (offset, bytes) as compiled; the whole structure under the empty name."""
    kind, name, offset, nbytes = _TEXT(), _TEXT(), _SIZE(), _SIZE()
    found, number = dict[str, tuple[int, int]](), 0
    while lib.abi_field(number, *map(ctypes.byref, (kind, name, offset, nbytes))):
        if kind.value == structure.encode():
            found[(name.value or b"").decode()] = offset.value, nbytes.value
        number += 1
    return found


def checked(fault: bytes | None) -> None:
    """For what a function reports. Raises MemoryError, and ValueError for what it was right to refuse."""
    if fault == b"no memory":
        raise MemoryError("no memory for what a step sees")
    if fault:
        raise ValueError(f"the native engine was given {fault.decode()}")


def address(array: Array) -> int:
    """Of an array's first byte; the array must outlive its use."""
    return int(array.ctypes.data)
