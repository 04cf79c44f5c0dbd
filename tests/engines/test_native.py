"""The native engine against slow exact definitions: numpy for its products, the torch engine in float32 for whole models."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sanitize_native
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core.cache import CacheStep
from llamachat.core.spec import ModelSpec, RopeScaling
from llamachat.core.tensors import CODEBOOKS, Array, FloatTensor, QuantTensor, Tensor, TensorInfo, dequantize
from llamachat.engines.native import abi, build, description
from llamachat.engines.native.engine import (
    BATCH,
    WORKSPACE,
    NativeEngine,
    planned_bytes,
    single_attend,
    single_product,
    single_rows,
    supports,
    usable_kernels,
)
from llamachat.engines.native.pack import pack
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import FormatError
from llamachat.families.family import first_full

if build.compiler() is None and not (build.SOURCES / build.LIBRARY).exists():
    pytest.skip("no C compiler and no compiled library", allow_module_level=True)

KERNELS = usable_kernels()
TABLES = {
    "q4_0": np.arange(-8, 8, dtype=np.float32),
    "q4_1": np.arange(16, dtype=np.float32),
    "iq4_nl": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32),
    "zero point": np.arange(16, dtype=np.float32) * 2 - 7.25,
    **{name: np.array(values, np.float32) for name, values in CODEBOOKS.items()},
}


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, kind: str, group: int, spread: float = 1.0
) -> Tensor:
    """kind: float32, float16, bfloat16, int8, int8+min, int6, or a name of TABLES; `spread` scales the weights."""
    normal = rng.standard_normal((rows, columns)).astype(np.float32) * spread
    if kind == "bfloat16":
        return FloatTensor((normal.view(np.uint32) >> 16).astype(np.uint16))
    if kind.startswith("float"):
        return FloatTensor(normal.astype(kind))
    shape = (rows, -(-columns // group))
    scale = (rng.uniform(0.5, 2, shape) * spread / 64).astype(np.float16 if group == 32 else np.float32)
    minimum = (rng.standard_normal(shape) * spread).astype(scale.dtype) if kind in ("q4_1", "int8+min") else None
    if kind.startswith("int8"):
        codes = rng.integers(-128, 128, (rows, columns), dtype=np.int8)
        return QuantTensor(codes, scale, group, 8, minimum=minimum)
    if kind == "int6":  # in 8 bits
        return QuantTensor(rng.integers(-32, 32, (rows, columns), dtype=np.int8), scale, group, 8)
    packed = rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
    return QuantTensor(packed, scale, group, 4, TABLES[kind], minimum)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Array]:
    """A matrix and activations [T, columns] of odd sizes and extreme scales; large ones have streams of several strips."""
    kind = draw(st.sampled_from(["float32", "float16", "bfloat16", "int8", "int8+min", "int6", *TABLES]))
    rows, tokens = draw(st.integers(1, 70) | st.integers(113, 210)), draw(st.integers(1, 37))
    columns = 32 * draw(st.integers(1, 9))
    groups = [g for g in (16, 32, 64, columns) if columns % g == 0 and (g % 32 == 0 or kind not in CODEBOOKS)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([1e-3, 1.0, 100.0]))
    x = rng.standard_normal((tokens, columns)) * 10.0 ** rng.uniform(-20, 4, (tokens, 1))
    x[:, rng.integers(columns)] *= draw(st.sampled_from([0.0, 1.0, 1e3]))
    x[rng.integers(tokens)] *= draw(st.sampled_from([0.0, 1.0]))
    return random_matrix(rng, rows, columns, kind, draw(st.sampled_from(groups)), spread), x.astype(np.float32)


def rounded(x: Array, fine: bool) -> Array:
    """Activations as the engine rounds them, exactly, in float64: 127 steps (times 256 if fine) to the largest of 32."""
    grouped = x.reshape(len(x), -1, 32)
    scale = np.abs(grouped).max(-1, keepdims=True) / np.float32(127)
    scale[scale <= 2.0**-126] = np.inf
    steps = grouped * (np.float32(1) / scale)
    whole = np.rint(steps)
    codes = whole + np.clip(np.rint((steps - whole) * 256), -127, 127) / 256 if fine else whole
    scale[np.isinf(scale)] = 0
    return (codes * scale.astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize("kernels", KERNELS)
@settings(deadline=None, max_examples=40)
@given(case=matrices(), fine=st.booleans())
def test_product_equals_its_definition(kernels: str, case: tuple[Tensor, Array], fine: bool) -> None:
    tensor, x = case
    inputs = x if isinstance(tensor, FloatTensor) else rounded(x, fine)
    expected = inputs @ dequantize(tensor).astype(np.float64).T
    bound = np.abs(inputs) @ parts(tensor).astype(np.float64).T
    out = single_product(*pack(tensor), x, kernels, fine=fine)
    assert np.all(np.abs(out - expected) <= bound * (2e-6 if packed_exactly(tensor) else 2.0**-10) + 1e-37)


def packed_exactly(tensor: Tensor) -> bool:
    inexact = [TABLES[name] for name in ("zero point", "nf4", "fp4")]
    return isinstance(tensor, FloatTensor) or (
        tensor.scale.dtype == np.float16 and not any(tensor.table is table for table in inexact)
    )


def parts(tensor: Tensor) -> Array:
    """How large the parts of each weight can be, which rounding is relative to: scale * code and minimum may cancel."""
    if isinstance(tensor, FloatTensor):
        return np.abs(dequantize(tensor))
    part = np.abs(tensor.scale.astype(np.float32)) * (128 if tensor.table is None else np.abs(tensor.table).max())
    if tensor.minimum is not None:
        part = part + np.abs(tensor.minimum.astype(np.float32))
    return np.repeat(part, min(tensor.group, tensor.shape[1]), 1)[:, : tensor.shape[1]]


@pytest.mark.parametrize("kernels", KERNELS)
@settings(deadline=None, max_examples=20)
@given(case=matrices(), fine=st.booleans())
def test_product_of_a_token_does_not_depend_on_the_others(kernels: str, case: tuple[Tensor, Array], fine: bool) -> None:
    tensor, x = case
    header, data = pack(tensor)
    together = single_product(header, data, x, kernels, fine=fine, threads=2)
    alone = np.concatenate([single_product(header, data, row[None], kernels, fine=fine) for row in x])
    assert np.array_equal(together, alone)


@settings(deadline=None, max_examples=40)
@given(case=matrices())
def test_packed_rows_are_the_tensors_values(case: tuple[Tensor, Array]) -> None:
    tensor, _ = case
    for kernels in KERNELS:
        rows = single_rows(*pack(tensor), range(tensor.shape[0]), kernels)
        assert np.all(np.abs(rows - dequantize(tensor)) <= parts(tensor) * (0 if packed_exactly(tensor) else 2.0**-10))


@pytest.mark.parametrize(("name", "bound"), [("nf4", 1 / 65000), ("fp4", 1e-7)])
def test_a_table_of_its_own_keeps_its_values_to_sixteen_bits(name: str, bound: float) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (16, 32), dtype=np.uint8)
    tensor = QuantTensor(codes, np.ones((16, 1), np.float32), 64, 4, TABLES[name])
    exact = dequantize(tensor)
    for kernels in KERNELS:
        rows = single_rows(*pack(tensor), range(16), kernels)
        assert np.abs(rows / rows.max() - exact).max() <= bound  # the scale itself is rounded to fp16


def stored(kv: str, x: Array) -> tuple[Array, Array]:
    """Keys or values [slots, dim] as they are kept, and the scale of each slot."""
    if kv == "int8":
        scale = np.maximum(np.abs(x).max(1), np.float32(1e-30)) / np.float32(127)
        return np.rint(x / scale[:, None]).astype(np.int8), scale
    kept = (x.view(np.uint32) >> 16).astype(np.uint16) if kv == "bfloat16" else x.astype(kv)
    return kept, np.ones(len(x), np.float32)


def as_floats(kv: str, kept: Array, scale: Array) -> Array:
    wide = (kept.astype(np.uint32) << 16).view(np.float32) if kv == "bfloat16" else kept
    return wide.astype(np.float64) * scale[:, None]


def laid_out(kv: str, keys: Array, values: Array) -> tuple[Array, Array]:
    """As kernels.h has it; behind the keys lie others, as in an engine: blocks are read in pairs."""
    keys = np.concatenate((keys, np.full_like(keys[:16], 77)))
    blocks = keys.reshape(len(keys) // 16, 16, -1)
    if kv != "int8":
        return np.ascontiguousarray(blocks.transpose(0, 2, 1)), values
    fours = blocks.reshape(len(blocks), 16, -1, 4).transpose(0, 2, 1, 3)
    by_four = values.reshape(len(values) // 4, 4, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(fours), np.ascontiguousarray(by_four)


@pytest.mark.parametrize("kv", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("kernels", KERNELS)
@settings(deadline=None, max_examples=25)
@given(
    dim=st.integers(1, 17).map(lambda n: 16 * n), slots=st.integers(1, 8).map(lambda n: 16 * n), rows=st.integers(1, 8),
    sharp=st.sampled_from([0.0, 0.1, 1.0, 30.0]), spread=st.sampled_from([1e-6, 1.0, 100.0]),
    window=st.sampled_from([1, 20, 2**31 - 1]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_attention_equals_its_definition(
    kernels: str, kv: Any, dim: int, slots: int, rows: int, sharp: float, spread: float, window: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, slots, dim)).astype(np.float32)
    v *= (spread * rng.uniform(0.1, 1, (slots, 1))).astype(np.float32)
    q = (rng.standard_normal((rows, dim)) * sharp / np.sqrt(dim)).astype(np.float32)
    seen = rng.permutation(slots).astype(np.int32)
    seen[rng.random(slots) < 0.2] = 2**31 - 1
    positions = rng.integers(0, slots, rows).astype(np.int32)
    (keys, k_scale), (values, v_scale) = stored(kv, k), stored(kv, v)
    scales = np.stack((k_scale, v_scale))
    part = single_attend(kernels, kv, *laid_out(kv, keys, values), scales, seen, q, positions, window)
    k, v = as_floats(kv, keys, k_scale), as_floats(kv, values, v_scale)
    mask = (seen <= positions[:, None]) & (seen.astype(np.int64) > positions[:, None] - window)
    for row, query, visible in zip(part, q, mask, strict=True):
        if not visible.any():
            assert row[1] == 0
            continue
        scores = k[visible] @ query.astype(np.float64)
        weights = np.exp(scores - scores.max())
        step = 2.0**-16 if kv == "int8" else 2.0**-22  # of queries and of weights, relative to the largest
        off = step * (np.abs(k) @ np.ones(dim)).max() * np.abs(query).max() + 1e-6
        assert abs(row[0] - scores.max()) <= off
        assert row[1] == pytest.approx(weights.sum(), rel=2 * off + 1e-5)
        wrong = np.abs(row[16:] / row[1] - weights @ v[visible] / weights.sum())
        assert np.all(wrong <= (2 * off + 1e-5 + step * slots / weights.sum()) * np.abs(v[visible]).max())


BASE = ModelSpec(
    vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=512,
)  # fmt: skip
FEATURES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one key-value head": {"num_key_value_heads": 1},
    "as many key-value heads": {"num_key_value_heads": 4},
    "twelve queries to a key": {"num_attention_heads": 12, "num_key_value_heads": 1},
    "seven queries to a key": {"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 8},
    "biases": {"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "sliding window": {"sliding_window": 7},
    "sliding window in some layers": {"sliding_window": 5, "layer_types": first_full(3, 2)},
    "wide heads": {"head_dim": 40},
    "odd sizes": {"hidden_size": 40, "intermediate_size": 52, "head_dim": 6, "vocab_size": 33},
    "fewer rows than threads take together": {"intermediate_size": 70},
    "tied": {"tie_word_embeddings": True},
    "scaled rotations": {"rope_scaling": RopeScaling("yarn", 4.0, original_max_position_embeddings=32)},
}


def random_model(config: ModelSpec, kind: str = "float32", seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            low, high = (-1.0, 1.0) if name.endswith("bias") else (0.5, 1.5)
            tensors[name] = FloatTensor(rng.uniform(low, high, shape).astype(np.float32))
        else:
            tensors[name] = random_matrix(rng, *shape, kind, 32, 0.3)
    return tensors


def tokens_of(config: ModelSpec, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(7).integers(0, config.vocab_size, count)]


def in_order(first: int, count: int) -> CacheStep:
    where = np.arange(first, first + count, dtype=np.int64)
    return CacheStep(where, where, (range(first + count),))


def reference_engine(config: ModelSpec, tensors: dict[str, Tensor], slots: int) -> Any:
    from llamachat.engines.torch.engine import TorchEngine

    return TorchEngine.build(config, tensors.items(), slots=slots, dtype="float32")


@pytest.mark.parametrize("feature", FEATURES)
def test_logits_equal_the_reference_engines(feature: str) -> None:
    config = replace(BASE, **FEATURES[feature])
    tensors, ids = random_model(config), tokens_of(config, 40)
    expected = reference_engine(config, tensors, 64).forward(ids, in_order(0, 40), "all")
    for kernels in KERNELS:
        engine = NativeEngine.build(config, tensors.items(), slots=64, kv="float32", kernels=kernels, threads=2)
        logits = engine.forward(ids, in_order(0, 40), "all")
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8", *TABLES])
def test_quantized_models_are_near_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "SMALL", 0)  # activations of 8 bits, as large models have
    config = replace(BASE, hidden_size=128, intermediate_size=256)
    tensors, ids = random_model(config, kind), tokens_of(config, 24)
    expected = reference_engine(config, tensors, 32).forward(ids, in_order(0, 24), "all")
    logits = NativeEngine.build(config, tensors.items(), slots=32, kv="float32").forward(ids, in_order(0, 24), "all")
    assert np.square(logits - expected).mean() < 3e-3 * np.square(expected).mean()


@pytest.mark.parametrize("kv", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_chunks_and_threads_do_not_change_a_bit(kernels: str, kv: Any) -> None:
    config = replace(BASE, sliding_window=100, layer_types=first_full(3, 1), num_attention_heads=6)
    weights, ids = PackedWeights.build(random_model(config, "q4_1").items()), tokens_of(config, 300)

    def run(cuts: list[int], threads: int) -> Iterator[Array]:
        engine = NativeEngine(config, weights, slots=400, kv=kv, kernels=kernels, threads=threads)
        for first, last in pairwise(cuts):
            yield engine.forward(ids[first:last], in_order(first, last - first), "all")

    whole = np.concatenate(list(run([0, 300], 2)))
    for cuts, threads in (([0, 7, 20, 150, 155, 300], 1), ([0, 290, *range(291, 301)], 3)):
        assert np.array_equal(np.concatenate(list(run(cuts, threads))), whole)


def test_last_logits_are_the_last_of_all() -> None:
    tensors, ids = random_model(BASE, "int8"), tokens_of(BASE, 600)
    engine = NativeEngine.build(BASE, tensors.items(), slots=600)
    every = engine.forward(ids, in_order(0, 600), "all")
    assert every.shape == (600, 101)
    assert np.array_equal(engine.forward(ids, in_order(0, 600), "last"), every[-1])


def test_slots_in_any_order_and_visible_ranges_are_followed() -> None:
    tensors, ids = random_model(BASE), tokens_of(BASE, 20)
    slots = np.random.default_rng(3).permutation(40)[:20].astype(np.int64)
    places = tuple(range(slot, slot + 1) for slot in slots)
    scattered = CacheStep(slots, np.arange(5, 25, dtype=np.int64), places)
    engine, expected = (make(tensors) for make in (
        lambda t: NativeEngine.build(BASE, t.items(), slots=48, kv="float32"),
        lambda t: reference_engine(BASE, t, 48)))  # fmt: skip
    for one in (engine, expected):
        one.forward(tokens_of(BASE, 48), in_order(0, 48), "last")  # leaves keys in every slot
    logits, other = (one.forward(ids, scattered, "all") for one in (engine, expected))
    assert np.abs(logits - other).max() < 1e-4 * np.abs(other).max()


@pytest.mark.parametrize("kv", ["float32", "float16", "int8"])
def test_pinned_keys_are_rotated_as_in_the_reference(kv: Any) -> None:
    tensors, ids = random_model(BASE), tokens_of(BASE, 30)
    engine = NativeEngine.build(BASE, tensors.items(), slots=32, kv=kv)
    expected = reference_engine(BASE, tensors, 32)
    for one in (engine, expected):
        one.forward(ids, in_order(0, 30), "last")
    for start in (9, 20, 3):
        step = CacheStep(np.array([30]), np.array([30]), (range(6), range(24, 31)), (range(6), start))
        logits, other = (one.forward([5], step, "last") for one in (engine, expected))
        assert np.abs(logits - other).max() < {"float32": 1e-4, "float16": 1e-2, "int8": 0.1}[kv] * np.abs(other).max()


def test_a_file_of_packed_weights_holds_the_same_weights(tmp_path: Path) -> None:
    tensors = random_model(replace(BASE, qkv_bias=True), "q4_0")
    PackedWeights.write(((name, pack(tensor)) for name, tensor in tensors.items()), tmp_path / "model")
    mapped, built = PackedWeights.open(tmp_path / "model"), PackedWeights.build(tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for name, (header, data) in built.tensors.items():
        assert mapped.tensors[name][0] == header
        assert np.array_equal(mapped.tensors[name][1], data)
        assert mapped.tensors[name][1].ctypes.data % 64 == 0


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:100], lambda data: data[200:],
                                    lambda data: data.replace(b'"rows": 64', b'"rows": 9999'), lambda data: b""])  # fmt: skip
def test_a_damaged_file_of_packed_weights_is_refused(tmp_path: Path, damage: Any) -> None:
    PackedWeights.write(((name, pack(tensor)) for name, tensor in random_model(BASE).items()), tmp_path / "model")
    (tmp_path / "model").write_bytes(damage((tmp_path / "model").read_bytes()))
    with pytest.raises(FormatError, match="damaged"):
        PackedWeights.open(tmp_path / "model")


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(FormatError, match="not those of this model"):
        NativeEngine(replace(BASE, intermediate_size=128), PackedWeights.build(random_model(BASE).items()), slots=8)


# ---- what it is right for, and what it refuses ----

ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "num_hidden_layers": 1}
BOUNDS: list[
    tuple[Any, dict[str, int]]
] = [  # sizes at which arrays in C are just long enough, or loops have their largest step
    ("float32", {"head_dim": 1024, "num_attention_heads": 2, "num_key_value_heads": 1}),
    ("int8", {"head_dim": 1024, "num_attention_heads": 2, "num_key_value_heads": 1}),
    ("float16", {"head_dim": 1022, "num_attention_heads": 1, "num_key_value_heads": 1}),
    ("float32", {"head_dim": 2}),
    ("float32", {**ONE_HEAD, "intermediate_size": 2**20 + 32, "hidden_size": 2}),
    ("float32", {**ONE_HEAD, "intermediate_size": 1, "hidden_size": 2**20, "vocab_size": 3}),
    ("float32", {**ONE_HEAD, "num_attention_heads": 4096}),
    ("int8", {**ONE_HEAD, "num_attention_heads": 4096, "num_key_value_heads": 4096}),
    ("float32", {"vocab_size": 2**16 + 1, "hidden_size": 2}),
    ("float32", {"vocab_size": 1}),
]


@pytest.mark.parametrize(("kv", "sizes"), BOUNDS)
def test_the_largest_sizes_give_the_reference_engines_logits(kv: Any, sizes: dict[str, int]) -> None:
    config, rng = replace(BASE, **sizes), np.random.default_rng(5)
    tensors, ids = random_model(config, "float16"), tokens_of(config, 19)
    wide = {name: shape for name, shape in config.tensor_shapes().items() if shape[-1] > 2**20}
    tensors |= {name: random_matrix(rng, *shape, "int8", 32) for name, shape in wide.items()}
    assert supports(config, {}) is None
    expected = reference_engine(config, tensors, 32).forward(ids, in_order(0, 19), "all")
    engine = NativeEngine.build(config, tensors.items(), slots=32, kv=kv, threads=2)
    prompt, token = engine.forward(ids[:18], in_order(0, 18), "all"), engine.forward(ids[18:], in_order(18, 1), "last")
    wrong = np.abs(np.concatenate([prompt, [token]]) - expected).max()
    assert wrong < (1e-4 if kv == "float32" and not wide else 0.1) * np.abs(expected).max() + 1e-6


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [({"head_dim": 1026}, "heads of more than 1024"), ({"head_dim": 2**14}, "heads of more than 1024")],
)
def test_a_model_beyond_a_bound_is_refused_with_the_reason_on_both_sides(sizes: dict[str, int], reason: str) -> None:
    config = replace(BASE, num_hidden_layers=1, **sizes)
    assert reason in (supports(config, {}) or "")
    tensors = random_model(config)
    with pytest.raises(ValueError, match=reason):
        NativeEngine.build(config, tensors.items(), slots=8)
    ids = tokens_of(config, 3)
    assert np.isfinite(reference_engine(config, tensors, 8).forward(ids, in_order(0, 3), "last")).all()


@pytest.mark.parametrize(
    ("group", "table", "reason"), [(24, "q4_0", "groups of 24"), (16, "nf4", "a table of its own")]
)
def test_a_way_of_coding_that_is_not_packed_is_named(group: int, table: str, reason: str) -> None:
    packing = QuantTensor(np.zeros((0, 48), np.uint8), np.zeros((0, 96 // group), np.float16), group, 4, TABLES[table])
    assert reason in (supports(BASE, {"x": TensorInfo((8, 96), 100, packing)}) or "")
    with pytest.raises(FormatError, match=r"groups|table"):
        pack(replace(packing, codes=np.zeros((8, 48), np.uint8), scale=np.ones((8, 96 // group), np.float16)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_refused(dtype: str, value: float) -> None:
    weights = np.ones((5, 70), np.float32)
    weights[3, 69] = value
    kept = (weights.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else weights.astype(dtype)
    with pytest.raises(FormatError, match="not finite"):
        pack(FloatTensor(kept))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("fine", [False, True])
def test_an_activation_that_is_not_finite_is_never_lost(kernels: str, value: float, fine: bool) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 40] = value
    out = single_product(*pack(random_matrix(np.random.default_rng(0), 20, 64, "q4_1", 32)), x, kernels, fine=fine)
    assert np.isfinite(out[[0, 2]]).all() and not np.isfinite(out[1]).any()


WRONG_STEPS = {
    "a token": ([101], CacheStep(np.array([3]), np.array([3]), (range(4),))),
    "a negative token": ([-1], CacheStep(np.array([3]), np.array([3]), (range(4),))),
    "a slot": ([1], CacheStep(np.array([32]), np.array([3]), (range(4),))),
    "a negative slot": ([1], CacheStep(np.array([-1]), np.array([3]), (range(4),))),
    "a position": ([1], CacheStep(np.array([3]), np.array([2**31 - 1]), (range(4),))),
    "a range": ([1], CacheStep(np.array([3]), np.array([3]), (range(33),))),
    "an empty range": ([1], CacheStep(np.array([3]), np.array([3]), (range(4, 4),))),
    "a negative range": ([1], CacheStep(np.array([3]), np.array([3]), (range(-1, 4),))),
    "no range": ([1], CacheStep(np.array([3]), np.array([3]), ())),
    "a pinned block": ([1], CacheStep(np.array([3]), np.array([3]), (range(4),), (range(30, 33), 5))),
    "a pinned position": ([1], CacheStep(np.array([3]), np.array([3]), (range(4),), (range(2), 2**31))),
    "no slot": ([1], CacheStep(np.array([], np.int64), np.array([3]), (range(4),))),
}


@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_step_out_of_bounds_is_refused_also_where_asserts_are_off(wrong: str) -> None:
    engine, (ids, step) = NativeEngine.build(BASE, random_model(BASE).items(), slots=32), WRONG_STEPS[wrong]
    twice = replace(step, slots=np.repeat(step.slots, 2), positions=np.repeat(step.positions, 2))
    for tokens, wider in ((ids, step), (ids * 2, twice)):
        before = engine.forward([1, 2], in_order(0, 2), "last")
        with pytest.raises(ValueError):
            engine.forward(tokens, wider, "last")
        assert np.array_equal(engine.forward([1, 2], in_order(0, 2), "last"), before)


def test_memory_for_a_step_is_bounded_by_a_smaller_batch_and_planned() -> None:
    small = planned_bytes(BASE, {}, 64, "float32", 2)[2]
    wide = replace(BASE, intermediate_size=2**22, hidden_size=2)
    assert BATCH * BASE.intermediate_size * 8 < small < WORKSPACE
    assert 2**22 * 8 * 16 < planned_bytes(wide, {}, 64, "float32", 2)[2] <= 2 * WORKSPACE


def test_structures_are_laid_out_as_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = abi.native_library()
    for structure in abi.STRUCTURES:
        abi.require_layout(lib, structure)
        fields = [*structure._fields_]
        fields[1], fields[2] = fields[2], fields[1]
        for other in (fields, fields[:-1]):
            changed = type(structure.__name__, (abi.ctypes.Structure,), {"_fields_": other})
            with pytest.raises(build.BuildError, match=f"its {structure.__name__} is laid out otherwise"):
                abi.require_layout(lib, changed)


def test_random_models_and_wrong_steps_run_or_are_refused() -> None:
    assert sanitize_native.fuzz(6) > 0
