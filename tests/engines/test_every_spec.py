"""The native engine on all that a spec can say, beside core/model.py in float64: floats, codes, chunks, batches, rolling."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from family_files import BASE, CASES, IDS
from family_files import case_of as made
from numpy.typing import NDArray
from test_native import KERNELS, in_order

from llamachat.core.cache import Cache, CacheStep
from llamachat.core.engine import Engine
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine, gated
from llamachat.core.spec import Activation, Experts, HeadKind, ModelSpec, Rope, RopeScaling
from llamachat.core.tensors import FloatTensor, QuantTensor, Tensor, pack_nibbles
from llamachat.engines import memory
from llamachat.engines.memory import active_bytes
from llamachat.engines.native import description
from llamachat.engines.native.engine import NativeEngine, single_activate, single_attend, supports
from llamachat.engines.native.pack import pack
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import UsageError

MXFP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
CODES = {"int8": None, "int4": np.arange(16, dtype=np.float32), "mxfp4": MXFP4}
every_case = pytest.mark.parametrize("case", CASES)
every_code = pytest.mark.parametrize("code", CODES)
Floats = NDArray[np.float32]


@cache
def case_of(case: str) -> tuple[ModelSpec, dict[str, Tensor], Floats]:
    return made(case)


def spec_of(case: str) -> ModelSpec:
    return case_of(case)[0]


def encoded(weight: Floats, code: str) -> QuantTensor:
    """Rounded to nearest, in groups of 32 columns."""
    groups, table = weight.reshape(len(weight), -1, 32), CODES[code]
    low = groups.min(-1) if code == "int4" else None
    most = groups.max(-1) - low if low is not None else np.abs(groups).max(-1)
    scale = (most / (127 if table is None else table.max())).astype(np.float16)  # which the packed ones have too
    low = None if low is None else low.astype(np.float16)
    steps = (groups - (0 if low is None else low[..., None])) / scale[..., None].astype(np.float32)
    if table is None:
        return QuantTensor(np.rint(steps).clip(-127, 127).astype(np.int8).reshape(weight.shape), scale, 32, 8)
    codes = np.abs(steps[..., None] - table).argmin(-1).astype(np.uint8).reshape(weight.shape)
    return QuantTensor(pack_nibbles(codes), scale, 32, 4, table, low)


def random_tensors(spec: ModelSpec, code: str | None = None) -> dict[str, Tensor]:
    """Routers stay floats, as files have them; none of these models has a token near a tie of two experts."""
    rng, tensors = np.random.default_rng(5), dict[str, Tensor]()
    for name, shape in spec.tensor_shapes().items():
        mean = 1.0 if "norm" in name else 0.0
        weight = rng.normal(mean, 0.3, shape).astype(np.float32)
        plain = code is None or len(shape) == 1 or name.endswith("mlp.gate.weight")
        tensors[name] = FloatTensor(weight) if plain else encoded(weight, str(code))
    return tensors


def in_parts(engine: Engine, ids: list[int], *sizes: int) -> Floats:
    cache = Cache(engine.slots)
    ends = np.cumsum([0, *sizes, len(ids) - sum(sizes)]).tolist()
    return np.concatenate(
        [advance(engine, cache, ids[first:end], "all") for first, end in pairwise(ends) if end > first]
    )


def tokens(count: int) -> list[int]:
    return [int(each) for each in np.random.default_rng(7).integers(0, 97, count)]


def exact(spec: ModelSpec, tensors: dict[str, Tensor], slots: int) -> PlainEngine:
    return PlainEngine.build(spec, tensors.items(), slots, torch.float64)


def engines(spec: ModelSpec, tensors: dict[str, Tensor], slots: int) -> Iterator[Engine]:
    """All of them, in float32."""
    for kernels in KERNELS:
        yield NativeEngine.build(spec, tensors.items(), slots=slots, kv="float32", threads=2, kernels=kernels)
    yield TorchEngine.build(spec, tensors.items(), slots=slots, dtype="float32")


def divergence(right: Floats, ours: Floats) -> float:
    """Mean KL in nats, of rows [T, vocabulary]."""
    p, q = (torch.from_numpy(rows).double().log_softmax(-1) for rows in (right, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())


@every_case
def test_logits_are_transformers(case: str) -> None:
    spec, weights, right = case_of(case)
    assert supports(spec, {}) is None
    for kernels in KERNELS:
        engine = NativeEngine.build(spec, weights.items(), slots=64, kv="float32", threads=2, kernels=kernels)
        np.testing.assert_allclose(in_parts(engine, IDS, 9, 1), right, atol=2e-4, rtol=1e-4)


@cache
def coded(case: str, code: str) -> tuple[ModelSpec, PackedWeights, Floats]:
    """A random model of the family with weights so coded, and the logits of 60 tokens."""
    spec = spec_of(case)
    tensors = random_tensors(spec, code)
    return spec, PackedWeights.build(tensors.items()), in_parts(exact(spec, tensors, 60), tokens(60))


@every_code
@every_case
def test_coded_weights_give_the_logits_of_their_values(case: str, code: str) -> None:
    spec, weights, right = coded(case, code)
    for kernels in KERNELS[:1]:
        engine = NativeEngine(spec, weights, slots=64, kv="float32", kernels=kernels, threads=2)
        assert divergence(right, in_parts(engine, tokens(60), 30, 1)) < 0.002


@pytest.fixture(params=["8 bits", "15 bits"])
def activations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(description, "SMALL", 0 if request.param == "8 bits" else 512)
    yield


@pytest.mark.usefixtures("activations")
@pytest.mark.parametrize("kernels", KERNELS[:1])
@every_case
def test_chunks_batches_and_threads_do_not_change_a_bit(case: str, kernels: str) -> None:
    spec, weights, _ = coded(case, "int4")
    pieces = [tokens(60)[:count] for count in (37, 1, 20, 2)]
    whole = NativeEngine(spec, weights, slots=256, threads=1, kernels=kernels)
    texts = [Cache(64, first=64 * number) for number in range(4)]
    alone = [np.concatenate([advance(whole, text, [token], "all") for token in ids])
             for text, ids in zip(texts, pieces, strict=True)]  # fmt: skip
    many = NativeEngine(spec, weights, slots=256, threads=3, kernels=kernels)
    steps = [
        text.plan(len(ids)) for text, ids in zip([Cache(64, first=text.first) for text in texts], pieces, strict=True)
    ]
    assert np.array_equal(many.forward_many(pieces, steps), [rows[-1] for rows in alone])
    for ids, rows in zip(pieces, alone, strict=True):
        engine = NativeEngine(spec, weights, slots=64, threads=2, kernels=kernels)
        assert np.array_equal(in_parts(engine, ids, len(ids) // 3), rows)


@every_case
def test_it_rolls_as_the_plain_engine_does(case: str) -> None:
    """A window of 12 with 3 pinned tokens, after many evictions; keys and values as floats and in 8 bits."""
    spec, weights, _ = case_of(case)
    kept = [NativeEngine.build(spec, weights.items(), slots=12, kv=kv, threads=1) for kv in ("float32", "int8")]
    engines: list[Engine] = [exact(spec, {**weights}, 12), *kept]
    caches, rows = [Cache(12) for _ in engines], list[list[Floats]]()
    for text in caches:
        text.pin(3)
    for token in tokens(200):
        for text in caches:
            if not text.free:
                text.evict(4)
        rows.append([advance(engine, text, [token]) for engine, text in zip(engines, caches, strict=True)])
    right, ours, rounded = (np.stack(each) for each in zip(*rows, strict=True))
    np.testing.assert_allclose(ours, right, atol=1e-3, rtol=1e-3)
    assert divergence(right, ours) < 1e-6
    assert divergence(right, rounded) < 0.15


HEADS: list[dict[str, Any]] = [
    {"head_dim": 80, "rotary_dim": 32, "qk_norm": "head"},
    {"head_dim": 96, "rotary_dim": 72},
    {"head_dim": 112, "qk_norm": "projection"},
    {"head_dim": 192, "attention_softcap": 2.0},
    {"head_dim": 256, "attention_sinks": True, "num_key_value_heads": 1},
    {"head_dim": 10, "rotary_dim": 6, "qk_norm": "head", "attention_sinks": True, "norms": "both"},
    {"hidden_size": 40, "intermediate_size": 52, "head_dim": 6, "qk_norm": "projection", "norms": "after"},
    {"sliding_window": 5, "layer_types": ("sliding_attention", "full_attention") * 2, "unrotated_layers": (2,),
     "sliding_rope": Rope(1000.0, RopeScaling("yarn", 4.0, original_max_position_embeddings=16), 8)},
    {"hidden_act": "gelu", "mlp_bias": True, "residual_multiplier": 0.4, "attention_out_bias": True},
    {"norms": "both", "residual_multiplier": 0.4, "norm_offset": 1.0, "tie_word_embeddings": True, "embedding_multiplier": 7.0,
     "logit_multiplier": 0.2},
    {"experts": Experts(7, 7, 33, normalized=False, bias=True), "dense_layers": (0, 3), "hidden_act": "gelu"},
    {"experts": Experts(1, 1, 1)},
    {"experts": Experts(40, 5, 32, softmax_first=False), "residual_multiplier": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("fields", HEADS, ids=lambda fields: " ".join(fields))
def test_what_no_family_here_has_together(fields: dict[str, Any]) -> None:
    spec, ids = replace(BASE, **fields), tokens(50)
    tensors = random_tensors(spec)
    right = in_parts(exact(spec, tensors, 64), ids)
    engine = NativeEngine.build(spec, tensors.items(), slots=64, kv="float32", threads=2)
    np.testing.assert_allclose(in_parts(engine, ids, 40, 1), right, atol=1e-4 * np.abs(right).max(), rtol=1e-3)


def test_a_coded_router_is_given_fine_activations() -> None:
    spec = spec_of("qwen3 moe")
    tensors = random_tensors(spec, "int8")
    routers = [name for name in tensors if name.endswith("mlp.gate.weight")]
    tensors |= {name: encoded(tensors[name].data, "int8") for name in routers}  # type: ignore[union-attr]
    engine = NativeEngine.build(spec, tensors.items(), slots=64, kv="float32")
    assert divergence(in_parts(exact(spec, tensors, 64), tokens(60)), in_parts(engine, tokens(60), 20)) < 0.002


def test_codes_of_mxfp4_are_packed_as_they_are() -> None:
    header, _ = pack(encoded(np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32), "mxfp4"))
    assert header.low == ()
    assert [code + header.first for code in header.table] == (2 * MXFP4).tolist()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("activation", description.ACTIVATIONS)
def test_activation_functions_are_exact_to_a_millionth(activation: Activation, kernels: str) -> None:
    rng = np.random.default_rng(1)
    gate = np.concatenate([rng.normal(0, 10.0**scale, 1600) for scale in (-6, -2, 0, 0.5, 1)]).astype(np.float32)
    gate, up = gate[np.abs(gate) < 11], rng.normal(size=8000).astype(np.float32)
    gate = gate[: len(gate) // 16 * 16]
    up = up[: len(gate)]
    right, alone = (
        gated(torch.from_numpy(gate).double(), torch.from_numpy(x).double(), activation, 7.0).numpy()
        for x in (up, 1 + 0 * up)
    )
    bound = (1e-6 * np.abs(alone) + 1e-8) * (1 + np.abs(up))  # the latter where next to nothing is left of it
    assert np.all(np.abs(single_activate(kernels, activation, 7.0, gate, up) - right) <= bound)
    for value in (np.nan, np.inf):
        odd = np.full(16, value, np.float32)
        assert not np.isfinite(single_activate(kernels, activation, np.inf, odd, up[:16])).any()
        assert not np.isfinite(single_activate(kernels, activation, np.inf, gate[:16], odd)).any()


@pytest.mark.parametrize("kernels", KERNELS)
def test_scores_are_capped(kernels: str) -> None:
    rng = np.random.default_rng(2)
    keys, values, q = (rng.normal(0, 3, (rows, 16)).astype(np.float32) for rows in (32, 32, 4))
    seen, last = np.arange(32, dtype=np.int32), np.full(4, 31, np.int32)
    blocks = np.concatenate((keys, keys)).reshape(4, 16, 16).transpose(0, 2, 1)
    part = single_attend(
        kernels,
        "float32",
        np.ascontiguousarray(blocks),
        values,
        np.ones((2, 32), np.float32),
        seen,
        q,
        last,
        2**31 - 1,
        5.0,
    )
    scores = 5 * np.tanh(q.astype(np.float64) @ keys.T / 5)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(part[:, 16:] / part[:, 1:2], weights @ values / weights.sum(1, keepdims=True), atol=1e-4)


def test_a_mixture_says_what_a_token_reads() -> None:
    spec = spec_of("mixtral")
    engine = NativeEngine.build(spec, random_tensors(spec).items(), slots=16)
    sizes = {name: data.nbytes for name, (_, data) in engine.weights.tensors.items()}
    expert = sum(size for name, size in sizes.items() if ".experts.0." in name)
    read = engine.weight_bytes - 3 * expert - sizes["model.embed_tokens.weight"]  # 2 of 5 experts
    assert engine.active_bytes == active_bytes(spec, sizes) == read
    assert f"of which a token reads {read / 1e6:.0f} MB" in engine.describe()
    assert active_bytes(BASE, sizes) is None


def test_a_mixture_that_does_not_fit_may_be_forced() -> None:
    plan = memory.Plan(weights=900, kv=50, workspace=50, available=500, slots=256, active=300)
    assert not plan.fits and "of which a token reads 0 kB" in memory.describe(plan)
    assert "other experts come from the disk" in memory.advice(plan)
    assert "other experts" not in memory.advice(replace(plan, active=450))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", ["sequence_labels", "token_labels", "span"])
def test_heads_that_classify(head: HeadKind, tied: bool) -> None:
    spec = replace(BASE, head=head, num_labels=2 if head == "span" else 19, tie_word_embeddings=tied)
    tensors = random_tensors(spec)
    right = in_parts(exact(spec, tensors, 64), tokens(50))
    assert right.shape == (50, spec.num_labels)
    for engine in engines(spec, tensors, 64):
        np.testing.assert_allclose(in_parts(engine, tokens(50), 40, 1), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["next_token", "none"])
def test_what_the_head_is_given(head: HeadKind) -> None:
    spec, ids = replace(BASE, head=head), tokens(30)
    tensors = random_tensors(spec)
    right = exact(spec, tensors, 64).forward(ids, in_order(0, 30), "all", "hidden")
    assert right.shape == (30, spec.hidden_size)
    for engine in engines(spec, tensors, 64):
        first = engine.forward(ids[:29], in_order(0, 29), "all", "hidden")
        last = engine.forward(ids[29:], in_order(29, 1), "last", "hidden")
        np.testing.assert_allclose(np.vstack((first, last)), right, atol=1e-4, rtol=1e-4)
        steps = [CacheStep(np.arange(a, b), np.arange(b - a), (range(a, b),)) for a, b in ((0, 30), (30, 37))]
        many = engine.forward_many([ids, ids[:7]], steps, "hidden")
        np.testing.assert_allclose(many, right[[29, 6]], atol=1e-4, rtol=1e-4)


def test_a_model_without_a_head_gives_no_logits() -> None:
    spec = replace(BASE, head="none")
    for engine in engines(spec, random_tensors(spec), 8):
        with pytest.raises(ValueError, match="head"):
            engine.forward([1], in_order(0, 1), "last")


def test_the_native_engine_says_who_gives_more() -> None:
    engine = NativeEngine.build(BASE, random_tensors(BASE).items(), slots=8)
    with pytest.raises(UsageError, match="not give hidden states; nothing was computed; use --engine torch"):
        engine.forward([1], in_order(0, 1), "last", "hidden_states")
