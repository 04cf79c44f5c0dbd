"""The torch engine against transformers, the plain reference, and itself in other chunks, slots and dtypes."""

import gc
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaConfig as HFLlama
from transformers import LlamaForCausalLM, MistralConfig, PreTrainedModel, Qwen2Config
from transformers.models.mistral import MistralForCausalLM
from transformers.models.qwen2 import Qwen2ForCausalLM

from llamachat.core.cache import CacheStep
from llamachat.core.model import Context, Mask, Precision, Scores, plain_attention
from llamachat.core.spec import Dtypes, ModelSpec, RopeScaling
from llamachat.core.tensors import FloatTensor, QuantTensor, Tensor, TensorInfo, dequantize, pack_nibbles
from llamachat.engines.torch.attention import fused_attention
from llamachat.engines.torch.engine import TorchEngine, planned_bytes
from llamachat.engines.torch.keys_values import quantize
from llamachat.families.family import first_full
from llamachat.formats.gguf import open_gguf

Floats = NDArray[np.float32]
SIZE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}
BASE = ModelSpec(97, 64, 96, 3, 4, 2, 16, 64, rms_norm_eps=1e-6)
TOKENS = 50
LONG, SHORT = [1.0 + i for i in range(8)], [1.0 + i / 9 for i in range(8)]


def scaled(kind: str, **values: Any) -> dict[str, Any]:
    """transformers' settings and ours for one RoPE scaling."""
    tables = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return {
        "theirs": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **values}},
        "ours": {"rope_scaling": RopeScaling(kind, **(values | tables))},  # type: ignore[arg-type]
    }


CASES: dict[str, dict[str, Any]] = {
    "grouped query": {},
    "multi-head": {"theirs": {"num_key_value_heads": 4}},
    "multi-query": {"theirs": {"num_key_value_heads": 1}},
    "head_dim of its own": {"theirs": {"head_dim": 24}},
    "tied": {"theirs": {"tie_word_embeddings": True}},
    "biases": {
        "theirs": {"attention_bias": True, "mlp_bias": True},
        "ours": {"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    },
    "mistral": {"kind": (MistralConfig, MistralForCausalLM), "theirs": {"sliding_window": None}},
    "mistral, sliding window": {"kind": (MistralConfig, MistralForCausalLM), "theirs": {"sliding_window": 11}},
    "qwen2": {"kind": (Qwen2Config, Qwen2ForCausalLM), "theirs": {"head_dim": 16}, "ours": {"qkv_bias": True}},
    "qwen2, windows above layer 1": {
        "kind": (Qwen2Config, Qwen2ForCausalLM),
        "theirs": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        "ours": {"qkv_bias": True, "layer_types": first_full(3, 1)},
    },
    "linear": scaled("linear", factor=4.0),
    "dynamic": scaled("dynamic", factor=3.0) | {"slots": TOKENS},
    "yarn": scaled("yarn", factor=4.0, original_max_position_embeddings=16),
    "longrope, short": scaled(
        "longrope", factor=4.0, original_max_position_embeddings=TOKENS, long_factor=LONG, short_factor=SHORT
    )
    | {"slots": TOKENS},
    "longrope, long": scaled(
        "longrope", factor=4.0, original_max_position_embeddings=16, long_factor=LONG, short_factor=SHORT
    ),
    "llama3": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
}
CASES["dynamic"]["theirs"]["max_position_embeddings"] = 32  # so that these tokens are beyond it
CASES["dynamic"]["ours"]["max_position_embeddings"] = 32
every_case = pytest.mark.parametrize("case", CASES)


@cache
def theirs(case: str = "grouped query") -> PreTrainedModel:
    """A random model with biases and norms that matter."""
    config, model = CASES[case].get("kind", (HFLlama, LlamaForCausalLM))
    torch.manual_seed(0)
    made: PreTrainedModel = model(config(**(SIZE | CASES[case].get("theirs", {})))).eval()
    for name, weight in made.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    return made


def our_config(case: str) -> ModelSpec:
    config = theirs(case).config
    return replace(
        BASE,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim or 16,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        sliding_window=getattr(config, "sliding_window", None),
        **CASES[case].get("ours", {}),
    )


def weights(case: str = "grouped query") -> dict[str, Tensor]:
    state = theirs(case).state_dict()
    return {name: FloatTensor(state[name].numpy()) for name in our_config(case).tensor_shapes()}


@cache
def built(case: str = "grouped query", **options: Any) -> TorchEngine:
    slots = CASES[case].get("slots", 64)
    return TorchEngine.build(our_config(case), weights(case).items(), slots=slots, **({"dtype": "float32"} | options))


def step(start: int, count: int) -> CacheStep:
    where = np.arange(start, start + count)
    return CacheStep(where, where, (range(start + count),))


def run(engine: TorchEngine, ids: Sequence[int], chunks: Sequence[int] = (TOKENS,)) -> Floats:
    """All logits of a text that is run in chunks of these sizes."""
    ends = np.minimum(np.cumsum([0, *chunks]), len(ids)).tolist()
    steps = [(a, b) for a, b in itertools.pairwise(ends) if b > a]
    return np.concatenate([engine.forward(ids[a:b], step(a, b - a), "all") for a, b in steps])


def some_ids(seed: int = 0, count: int = TOKENS) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, count).tolist()


@every_case
def test_logits_equal_transformers(case: str) -> None:
    with torch.no_grad():
        expected = theirs(case)(torch.tensor([some_ids()])).logits[0].numpy()
    np.testing.assert_allclose(run(built(case), some_ids()), expected, atol=1e-4, rtol=0)


@every_case
def test_token_by_token_gives_what_one_forward_gives(case: str) -> None:
    whole = run(built(case), some_ids(1))
    np.testing.assert_allclose(run(built(case), some_ids(1), [1] * TOKENS), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["grouped query", "qwen2, windows above layer 1", "dynamic", "longrope, long"])
@settings(deadline=None, max_examples=10)
@given(chunks=st.lists(st.integers(1, 20), min_size=1, max_size=10), seed=st.integers(0, 99))
def test_any_chunks_give_what_one_forward_gives(case: str, chunks: list[int], seed: int) -> None:
    whole = run(built(case), some_ids(seed))
    np.testing.assert_allclose(run(built(case), some_ids(seed), [*chunks, TOKENS]), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 17])
def test_last_is_the_last_row_of_all(count: int) -> None:
    engine, ids = built(), some_ids(1, count)
    last = engine.forward(ids, step(0, count), "last")
    assert last.shape == (97,) and last.dtype == np.float32
    np.testing.assert_allclose(last, engine.forward(ids, step(0, count), "all")[-1], atol=1e-5, rtol=0)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """All arithmetic of engines built from here on, which no configuration can ask for."""
    monkeypatch.setattr("llamachat.engines.torch.engine.chosen_precision", lambda *_: Precision(*[torch.float64] * 5))


def exact_logits(engine: TorchEngine, ids: Sequence[int], where: CacheStep) -> torch.Tensor:
    """As `forward`, but not rounded to float32."""
    with torch.inference_mode():
        if where.pinned is not None:
            engine.keys_values.pin(*where.pinned)
        memory = engine.keys_values.begin([where])
        return engine.model(ids, engine.keys_values.rotations(where.positions), memory)


@pytest.mark.parametrize("case", ["grouped query", "biases", "mistral, sliding window", "qwen2, windows above layer 1"])
@pytest.mark.usefixtures("in_float64")
def test_in_float64_it_is_the_reference(case: str) -> None:
    engine = TorchEngine.build(our_config(case), weights(case).items(), slots=64)
    got = exact_logits(engine, some_ids(), step(0, TOKENS))
    expected = reference.logits(theirs(case).state_dict(), theirs(case).config, some_ids())
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=0)


def ranges(slots: Sequence[int]) -> tuple[range, ...]:
    """The runs of neighbours among them."""
    ordered = sorted(slots)
    starts = [slot for slot in ordered if slot - 1 not in slots]
    ends = [slot + 1 for slot in ordered if slot + 1 not in slots]
    return tuple(map(range, starts, ends))


@pytest.mark.parametrize("case", ["grouped query", "mistral, sliding window"])
@pytest.mark.parametrize("kv_bits", [None, 8])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), chunks=st.lists(st.integers(1, 9), min_size=6, max_size=6))
def test_it_does_not_matter_which_slots_are_used(case: str, kv_bits: int | None, seed: int, chunks: list[int]) -> None:
    ids = some_ids(seed, sum(chunks))
    slots, positions = np.random.default_rng(seed).permutation(64)[: len(ids)], np.arange(len(ids))
    engine, done, rows = built(case, kv_bits=kv_bits), 0, []
    for count in chunks:
        new = slice(done, done + count)
        done += count
        where = CacheStep(slots[new], positions[new], ranges(slots[:done].tolist()))
        rows.append(engine.forward(ids[new], where, "all"))
    error = np.abs(np.concatenate(rows) - run(engine, ids, chunks))
    assert error.max() < (1e-4 if kv_bits is None else 0.2) and error.mean() < 1e-3  # int8 codes may fall the other way


PINNED, TAIL, TURN = 5, 20, 4


def rolling(evictions: int) -> Iterator[tuple[CacheStep, list[int], int]]:
    """Steps of one token each through a cache that drops whole turns when full; with each, the tail kept and the shift.

    Slots [0, PINNED) hold the pinned block, the others are a ring. The tail keeps its positions; the pinned block moves
    up to right before it.
    """
    tail: list[int] = []
    shift = 0
    for token in itertools.count():
        pinned = None
        if len(tail) == TAIL:
            if evictions == 0:
                return
            tail, evictions = tail[2 * TURN :], evictions - 1
            shift = tail[0] - PINNED
            pinned = range(PINNED), shift
        slot = token if token < PINNED else PINNED + (token - PINNED) % TAIL
        if token >= PINNED:
            tail.append(token)
        used = ranges([*range(min(token + 1, PINNED)), *(PINNED + (t - PINNED) % TAIL for t in tail)])
        yield CacheStep(np.array([slot]), np.array([token]), used, pinned), list(tail), shift


@pytest.mark.parametrize(
    "case, dtype, bound",
    [("grouped query", "float64", 1e-10), ("grouped query", "float32", 2e-4), ("yarn", "float32", 2e-4)],
)
def test_a_rolling_cache_equals_a_dense_forward_over_the_whole_history(
    case: str, dtype: Any, bound: float, request: pytest.FixtureRequest
) -> None:
    if dtype == "float64":
        request.getfixturevalue("in_float64")
    engine = TorchEngine.build(our_config(case), weights(case).items(), slots=PINNED + TAIL, dtype=dtype)
    steps = list(rolling(25))
    ids, count = some_ids(3, len(steps)), len(steps)
    got = torch.cat([exact_logits(engine, [ids[t]], where) for t, (where, _, _) in enumerate(steps)])
    visible = torch.zeros(count, count, dtype=torch.bool)
    positions = torch.arange(count).repeat(count, 1)
    for t, (_, tail, shift) in enumerate(steps):
        visible[t, tail] = True
        visible[t, : min(t + 1, PINNED)] = True
        positions[t, :PINNED] += shift
    state, config = theirs(case).state_dict(), theirs(case).config
    expected = reference.logits(state, config, ids, visible=visible, key_positions=positions)
    error = (got.double() - expected).abs().amax(-1)
    assert error.max() < bound
    assert error[-50:].max() < 4 * error[:50].max()  # it does not grow


@pytest.mark.parametrize("kv_bits", [4, 8, 16, 32])
def test_turning_a_pinned_block_again_and_again_adds_no_rounding(kv_bits: int) -> None:
    engine = TorchEngine.build(BASE, weights().items(), slots=64, dtype="float32", kv_bits=kv_bits)  # type: ignore[arg-type]
    run(engine, some_ids(count=20))

    def after(start: int) -> torch.Tensor:
        where = CacheStep(np.array([20]), np.array([2000]), (range(21),), (range(6), start))
        engine.forward([1], where, "last")
        return engine.keys_values.data[:, :, :, :6].clone()

    first = after(100)
    assert not torch.equal(after(777), first)
    for start in range(300):
        after(start)
    assert torch.equal(after(100), first)


def test_int8_keys_and_values_change_little() -> None:
    exact, rounded = run(built(), some_ids()), run(built(kv_bits=8), some_ids())
    error = np.abs(rounded - exact)
    assert 0 < error.mean() < 0.02 * exact.std()
    assert built(kv_bits=8).kv_bytes == 3 * 2 * 2 * 64 * (16 + 4)


def test_int8_keys_and_values_equal_their_plain_twin() -> None:
    engine, kept = built(kv_bits=8), []

    def memory(layer: int, keys: torch.Tensor, values: torch.Tensor) -> list[Context]:
        kept.append(layer)
        rounded = []
        for x in (keys.numpy(), values.numpy()):
            scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
            rounded.append(torch.from_numpy(np.rint(x / scale).astype(np.int8) * scale).transpose(0, 1))
        return [Context(slice(None), *rounded, Mask(causal=True))]

    with torch.inference_mode():
        twin = engine.model(some_ids(), engine.keys_values.rotations(np.arange(TOKENS)), memory)
    assert kept == [0, 1, 2]
    np.testing.assert_allclose(run(engine, some_ids()), twin.numpy(), atol=1e-5, rtol=0)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40))
def test_int8_is_within_half_a_step(values: list[float]) -> None:
    x = torch.tensor([values])
    codes, scale = quantize(x)
    assert (codes * scale - x).abs().max() <= 0.5001 * scale


@pytest.mark.parametrize("dtype, bound", [("float16", 0.01), ("bfloat16", 0.08)])
def test_half_precision_is_close(dtype: str, bound: float) -> None:
    exact, rough = run(built(), some_ids()), run(built(dtype=dtype), some_ids())
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).mean() < bound * exact.std()


def test_not_a_number_is_not_hidden() -> None:
    tensors = weights()
    broken = dequantize(tensors["model.layers.1.mlp.up_proj.weight"]).copy()
    broken[3, 5] = np.nan
    tensors["model.layers.1.mlp.up_proj.weight"] = FloatTensor(broken)
    engine = TorchEngine.build(BASE, tensors.items(), slots=64, dtype="bfloat16")
    assert np.isnan(run(engine, some_ids())).all()


@pytest.mark.parametrize("field", ["norm", "softmax", "rotary", "residual"])
def test_each_configured_dtype_is_used(field: str) -> None:
    config = replace(our_config("grouped query"), dtypes=Dtypes(compute="float32", **{field: "bfloat16"}))
    rough = run(TorchEngine.build(config, weights().items(), slots=64), some_ids())
    exact = run(built(), some_ids())
    assert 0 < np.abs(rough - exact).mean() < 0.05 * exact.std()


@pytest.mark.parametrize("tokens, keys", [(1, 9), (6, 6), (6, 9)])
@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (4, 1)])
def test_fused_attention_equals_the_plain_one(tokens: int, keys: int, heads: int, groups: int) -> None:
    torch.manual_seed(tokens)
    q, k, v = torch.randn(tokens, heads, 8), torch.randn(groups, keys, 8), torch.randn(groups, keys, 8)
    visible = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
    for mask in [Mask(), Mask(visible), *([Mask(causal=True)] if tokens == keys else [])]:
        fused, plain = (run(q, k, v, mask, Scores(q.shape[-1] ** -0.5)) for run in (fused_attention, plain_attention))
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)


CODES = np.arange(16, dtype=np.float32)


def packed(tensor: Tensor, bits: int) -> Tensor:
    """Round a matrix to groups of 32, plainly."""
    values = dequantize(tensor)
    if values.ndim == 1:
        return tensor
    groups = values.reshape(len(values), -1, 32)
    top = {4: 7, 8: 127}[bits]
    scale = np.abs(groups).max(-1) / top
    codes = np.rint(groups / scale[..., None]).astype(np.int8).reshape(values.shape)
    if bits == 8:
        return QuantTensor(codes, scale, 32, 8)
    return QuantTensor(pack_nibbles(codes + 8), scale, 32, 4, CODES - 8)


def no_rows(tensor: QuantTensor) -> QuantTensor:
    return replace(tensor, codes=tensor.codes[:0], scale=tensor.scale[:0])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kv_bits", [None, 4, 8, 16, 32])
def test_planned_bytes_are_those_it_takes(tied: bool, bits: int, dtype: Any, kv_bits: Any) -> None:
    config = replace(BASE, vocab_size=96, tie_word_embeddings=tied)
    rng = np.random.default_rng(0)
    tensors: dict[str, Tensor] = {
        name: FloatTensor(rng.standard_normal(shape, dtype=np.float32))
        for name, shape in config.tensor_shapes().items()
    }
    if bits < 32:
        tensors = {name: packed(tensor, bits) for name, tensor in tensors.items()}
    index = {
        name: TensorInfo(tensor.shape, tensor.nbytes, no_rows(tensor) if isinstance(tensor, QuantTensor) else None)
        for name, tensor in tensors.items()
    }
    options = {"slots": 40, "dtype": dtype, "kv_bits": kv_bits}
    engine = TorchEngine.build(config, tensors.items(), **options)
    assert planned_bytes(config, index, **options) == (engine.weight_bytes, engine.kv_bytes)
    held = engine.keys_values
    assert engine.kv_bytes == held.data.nbytes + (0 if held.scale is None else held.scale.nbytes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", ["grouped query", "tied"])
def test_packed_weights_in_bfloat16_are_close_to_the_exact_engine_on_them(case: str, bits: int) -> None:
    tensors = {name: packed(tensor, bits) for name, tensor in weights(case).items()}
    exact, fast = (
        run(TorchEngine.build(our_config(case), tensors.items(), slots=64, dtype=dtype), some_ids())
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(fast - exact).mean() < 0.08 * exact.std()


def test_tensors_may_come_in_any_order_and_are_let_go() -> None:
    names, alive = list(weights()), []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name in np.random.default_rng(0).permutation(names).tolist():
            data = dequantize(weights()[name]).copy()
            alive.append(weakref.ref(data))
            yield name, FloatTensor(data)

    engine = TorchEngine.build(our_config("grouped query"), stream(), slots=64, dtype="float32")
    gc.collect()
    assert len(alive) == len(names) and not any(ref() is not None for ref in alive)
    np.testing.assert_array_equal(run(engine, some_ids()), run(built(), some_ids()))


def test_description_names_device_kernels_and_cache() -> None:
    tensors = {name: packed(tensor, 4) for name, tensor in weights().items()}
    text = TorchEngine.build(
        our_config("grouped query"), tensors.items(), slots=64, dtype="bfloat16", kv_bits=8
    ).describe()
    assert all(word in text for word in ("torch", "cpu", "torch int4", "keys and values int8")) and "\n" not in text


PROMPTS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "def fibonacci(n):\n": [1604, 3987, 46477, 24, 94, 727, 198],
    "Once upon a time, in a land far away,": [6403, 1980, 253, 655, 28, 281, 253, 1666, 1869, 2025, 28],
    "Why is the sky blue?, as a dialog": [1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198],
}


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> tuple[TorchEngine, PreTrainedModel]:
    """Our exact engine, and transformers on the same dequantized weights."""
    checkpoint = open_gguf(smollm2_gguf)
    tensors = dict(checkpoint.tensors())
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    config = HFLlama(
        vocab_size=49152,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        **shape,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.tensor(dequantize(tensors[name])))
    return TorchEngine.build(checkpoint.config, tensors.items(), slots=128, dtype="float32"), model


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_writes_what_transformers_writes(smollm2: tuple[TorchEngine, PreTrainedModel], prompt: str) -> None:
    engine, model = smollm2
    ids = list(PROMPTS[prompt])
    last = engine.forward(ids, step(0, len(ids)), "last")
    for _ in range(16):
        ids.append(int(last.argmax()))
        last = engine.forward(ids[-1:], step(len(ids) - 1, 1), "last")
    with torch.no_grad():  # one forward over the text tells what greedy decoding would have written at each place
        expected = model(torch.tensor([ids])).logits[0]
    first = len(PROMPTS[prompt])
    assert ids[first:] == expected[first - 1 : -1].argmax(-1).tolist()
    np.testing.assert_allclose(last, expected[-1].numpy(), atol=1e-3, rtol=0)
