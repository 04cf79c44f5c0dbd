"""Several texts in one forward, and keys and values carried off and put back: both engines against one text at a time."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import BASE, KERNELS, random_model, tokens_of

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.tensors import Array
from llamachat.engines.native.engine import KV_TYPES, NativeEngine
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import FormatError

SIZE = 80  # tokens of a text
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 6},
    "one key-value head": {"num_key_value_heads": 1},
    "sliding window": {
        "sliding_window": 11,
        "layer_types": ("full_attention", "sliding_attention", "sliding_attention"),
    },
    "a narrow MLP": {"intermediate_size": 32},  # less than what threads take of it
    "as many key-value heads": {"num_key_value_heads": 4, "qkv_bias": True},
}
MODELS = {name: replace(BASE, **fields) for name, fields in SHAPES.items()}
WEIGHTS = {name: PackedWeights.build(random_model(config, "q4_1").items()) for name, config in MODELS.items()}
Pieces = list[list[int]]  # of each text, the tokens that one forward runs


def native(shape: str, slots: int, **options: Any) -> NativeEngine:
    return NativeEngine(MODELS[shape], WEIGHTS[shape], slots=slots, **options)


def exact(shape: str, slots: int, **options: Any) -> TorchEngine:
    tensors = random_model(MODELS[shape])
    return TorchEngine.build(MODELS[shape], tensors.items(), slots=slots, **({"dtype": "float32"} | options))


def caches(count: int) -> list[Cache]:
    return [Cache(SIZE, first=i * SIZE) for i in range(count)]


def together(engine: Engine, texts: Sequence[Cache], ids: Pieces) -> Array:
    """One forward_many, of those texts that have a piece in `ids`."""
    busy = [(cache, piece) for cache, piece in zip(texts, ids, strict=True) if piece]
    logits = engine.forward_many([piece for _, piece in busy], [cache.plan(len(piece)) for cache, piece in busy])
    for cache, piece in busy:
        cache.commit(piece)
    return logits


def one_by_one(engine: Engine, texts: Sequence[Cache], ids: Pieces) -> Array:
    rows = []
    for cache, piece in zip(texts, ids, strict=True):
        if piece:
            rows.append(engine.forward(piece, cache.plan(len(piece)), "last"))
            cache.commit(piece)
    return np.stack(rows)


def pieces(*counts: int) -> Pieces:
    return [tokens_of(BASE, count) for count in counts]


ROUNDS = [pieces(17, 1, 40, 3), pieces(1, 1, 1, 1), pieces(0, 60, 1, 16), pieces(1, 0, 2, 1), pieces(1, 1, 1, 1)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kv", ["float16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_texts_together_are_each_alone_to_the_last_bit(shape: str, kv: Any, kernels: str) -> None:
    for threads in (1, 2):
        many, single = (native(shape, 4 * SIZE, kv=kv, kernels=kernels, threads=n) for n in (threads, 1))
        ours, theirs = caches(4), caches(4)
        for ids in ROUNDS:
            assert np.array_equal(together(many, ours, ids), one_by_one(single, theirs, ids))


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15)
@given(rounds=st.lists(st.lists(st.integers(0, 13), min_size=5, max_size=5).filter(any), min_size=1, max_size=6))
def test_any_pieces_give_the_same_bits(shape: str, rounds: list[list[int]]) -> None:
    many, single = (native(shape, 5 * SIZE) for _ in range(2))
    ours, theirs = caches(5), caches(5)
    for counts in rounds:
        assert np.array_equal(together(many, ours, pieces(*counts)), one_by_one(single, theirs, pieces(*counts)))


@pytest.mark.parametrize("counts", [[300, 1, 300, 2], [511, 1], [512, 1], [3, 510, 600, 1], [1] * 530])
def test_more_tokens_than_a_call_takes_give_the_same_bits(counts: list[int]) -> None:
    many, single = (native("grouped", sum(counts)) for _ in range(2))
    starts = np.cumsum([0, *counts])
    ours, theirs = ([Cache(n, first=int(at)) for n, at in zip(counts, starts, strict=False)] for _ in range(2))
    assert np.array_equal(together(many, ours, pieces(*counts)), one_by_one(single, theirs, pieces(*counts)))


@pytest.mark.parametrize("kv_bits", [8, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_texts_together_are_each_alone_up_to_rounding(shape: str, kv_bits: Any) -> None:
    many, single = (exact(shape, 4 * SIZE, kv_bits=kv_bits) for _ in range(2))
    ours, theirs = caches(4), caches(4)
    for ids in ROUNDS:
        expected = one_by_one(single, theirs, ids)
        error = np.abs(together(many, ours, ids) - expected)
        assert (
            error.max() < (1e-4 if kv_bits == 32 else 0.1) * np.abs(expected).max()
        )  # int8 codes may fall the other way


@pytest.mark.parametrize("make", [native, exact])
def test_a_text_evicts_beside_others(make: Callable[..., Engine]) -> None:
    engine, alone = make("grouped", 3 * SIZE), make("grouped", SIZE)
    ours, (single,) = caches(3), caches(1)
    for cache in (ours[0], single):
        cache.pin(5)
    for step in range(30):
        if single.free < 7:
            for cache, of in ((ours[0], engine), (single, alone)):
                cache.evict(30)
                of.forward([3], cache.plan(1), "last")  # turns the pinned ones
                cache.commit([3])
        ids = pieces(7, step % 2, 1)
        got = together(engine, ours, ids)[0]
        expected = one_by_one(alone, [single], ids[:1])[0]
        assert np.abs(got - expected).max() <= (0 if engine.batch_invariant else 1e-4 * np.abs(expected).max())


STORES: dict[str, Callable[..., Engine]] = {
    f"native {kv}": partial(native, "grouped", kv=kv) for kv in KV_TYPES.values()
}
STORES["native bfloat16"] = partial(native, "grouped", kv="bfloat16")
STORES |= {f"torch {bits}": partial(exact, "grouped", kv_bits=bits) for bits in KV_TYPES}
STORES["torch bfloat16"] = partial(exact, "grouped", dtype="bfloat16")
every_store = pytest.mark.parametrize("store", STORES)


def rolled(engine: Engine, evictions: int, first: int = 0) -> Cache:
    """A cache whose pinned tokens have been turned so many times."""
    cache = Cache(SIZE, first)
    cache.pin(5)
    one_by_one(engine, [cache], pieces(60))
    for count in range(evictions):
        cache.evict(20)
        one_by_one(engine, [cache], pieces(20 + count))
    return cache


def going_on(engine: Engine, cache: Cache) -> list[Array]:
    """Logits of what comes next, another eviction included."""
    logits = [one_by_one(engine, [cache], pieces(4)), one_by_one(engine, [cache], pieces(1))]
    cache.evict(11)
    return [*logits, one_by_one(engine, [cache], pieces(2))]


def everything(cache: Cache) -> tuple[Array, Array]:
    index = np.arange(len(cache), dtype=np.int64)
    return cache.slots(index), index + cache.evicted


@every_store
@pytest.mark.parametrize("evictions", [0, 1, 3])
@pytest.mark.parametrize("to", [0, 37])
def test_a_restored_text_goes_on_with_the_same_bits(store: str, evictions: int, to: int) -> None:
    make = STORES[store]
    engine, other = make(SIZE + 40), make(SIZE + 40)
    one_by_one(other, [Cache(SIZE + 40)], pieces(90))  # leaves keys, values and positions everywhere
    cache = rolled(engine, evictions)
    moved = copy(cache)
    moved.first, moved.log = to, list(cache.log)
    slots, _ = everything(cache)
    saved = engine.save_kv(slots)
    assert ("master" in saved) == (evictions > 0)
    other.load_kv(*everything(moved), saved)
    for expected, got in zip(going_on(engine, cache), going_on(other, moved), strict=True):
        assert np.array_equal(expected, got)


@every_store
def test_a_common_prefix_is_copied_to_other_texts_of_the_same_engine(store: str) -> None:
    """To the last bit where slots lie alike to the native engine, which sums 128 of them together."""
    engine, alone = STORES[store](4 * 128), STORES[store](4 * 128)
    (source, *others), expected = ([Cache(SIZE, first=i * 128) for i in range(4)] for _ in range(2))
    one_by_one(engine, [source], pieces(30))
    index = np.arange(30)
    saved = engine.save_kv(source.slots(index))
    for cache in others:
        engine.load_kv(cache.slots(index), index, saved)
        cache.commit(pieces(30)[0])
    one_by_one(alone, expected, pieces(30, 30, 30, 30))
    assert np.array_equal(one_by_one(engine, others, pieces(3, 1, 7)), one_by_one(alone, expected[1:], pieces(3, 1, 7)))


DAMAGE: dict[str, Callable[[dict[str, Array]], object]] = {
    "nothing": lambda saved: saved.clear(),
    "a name too many": lambda saved: saved.update(more=np.zeros(1)),
    "no scales or masters": lambda saved: saved.popitem(),
    "fewer slots": lambda saved: saved.update(kv=saved["kv"][:, :, :, 1:]),
    "another type": lambda saved: saved.update(kv=saved["kv"].astype(np.float64)),
    "bytes the wrong way round": lambda saved: saved.update(master=saved["master"].astype(">f4")),
    "a pinned block beyond the slots": lambda saved: saved.update(pinned=np.array([58, 5])),
    "a pinned block of none": lambda saved: saved.update(pinned=np.array([0, 0])),
    "a pinned block that is negative": lambda saved: saved.update(pinned=np.array([-2, 5])),
    "a pinned block with a gap": lambda saved: saved.update(pinned=np.array([3, 5])),
    "pinned slots that overflow": lambda saved: saved.update(pinned=np.array([5, 2**63 - 1])),
    "pinned slots of another shape": lambda saved: saved.update(pinned=np.array([0])),
    "pinned slots of another type": lambda saved: saved.update(pinned=np.array([0.0, 5.0])),
    "a master of another length": lambda saved: saved.update(master=saved["master"][:, :, 1:]),
}


@pytest.mark.parametrize("store", ["native int8", "torch 8"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_not_saved_by_such_an_engine_is_refused_and_changes_nothing(store: str, damage: str) -> None:
    engine, twin = STORES[store](SIZE), STORES[store](SIZE)
    cache, same = rolled(engine, 1), rolled(twin, 1)
    slots, positions = everything(cache)
    saved = {name: array.copy() for name, array in engine.save_kv(slots).items()}
    DAMAGE[damage](saved)
    with pytest.raises(FormatError, match="damaged or another model's"):
        engine.load_kv(slots, positions + 1, saved)
    for expected, got in zip(going_on(twin, same), going_on(engine, cache), strict=True):
        assert np.array_equal(expected, got)
