"""T5 in torch beside transformers: logits, whatever the lengths, chunks and texts beside; and what is kept of a source."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_folders import PeftModel, trained
from t5_models import CASES, VOCAB_SIZE, as_stored, save_t5, save_t5_gguf, t5_logits, t5_model
from transformers.models.t5.modeling_t5 import T5Attention

from llamachat.core.cache import Cache
from llamachat.core.generate import Interrupted, advance
from llamachat.core.tensors import FloatTensor
from llamachat.engines.encoding import encoding, started
from llamachat.engines.torch import encoder_decoder
from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine, buckets, planned_bytes, source_bytes
from llamachat.errors import ConfigError, DoesNotFitError, UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import open_peft

random = np.random.default_rng(0)
LONG, SHORT = ([int(token) for token in random.integers(3, VOCAB_SIZE, size)] for size in (300, 5))
ANSWER = [0, *(int(token) for token in random.integers(3, VOCAB_SIZE, 150))]  # longer than the largest distance


def opened(path: Path, slots: int = 256, **settings: Any) -> EncoderDecoderEngine:
    checkpoint = open_checkpoint(path)
    return EncoderDecoderEngine.build(
        checkpoint.config, checkpoint.tensors(), slots=slots, **{"dtype": "float32"} | settings
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoderEngine:
    return opened(save_t5(tmp_path_factory.mktemp("t5")))


@pytest.fixture(scope="module")
def model() -> Any:
    return t5_model()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers(case: str, tmp_path: Path) -> None:
    engine, model = opened(save_t5(tmp_path, case)), t5_model(case)
    for source in (LONG, SHORT):
        engine.encode(0, source)
        logits = advance(engine, Cache(256), ANSWER, "all")
        np.testing.assert_allclose(logits, t5_logits(model, source, ANSWER), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["t5", "v1.1"])
@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_gguf_file_gives_the_same_logits(case: str, quant: str, tmp_path: Path) -> None:
    model = as_stored(t5_model(case), quant)
    engine = opened(save_t5_gguf(model, tmp_path / "t5.gguf", quant))
    engine.encode(0, LONG)
    logits = advance(engine, Cache(256), ANSWER, "all")
    np.testing.assert_allclose(logits, t5_logits(model, LONG, ANSWER), atol=1e-4, rtol=1e-4)


def test_an_adapter_gives_pefts_logits_and_goes_again(tmp_path: Path) -> None:
    linears, before = ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"], t5_model()
    adapter = trained(t5_model(), tmp_path / "adapter", target_modules=linears, task_type="SEQ_2_SEQ_LM")
    folder = save_t5(tmp_path / "t5")
    engine = opened(folder)
    engine.adapt([(open_peft(adapter, open_checkpoint(folder)), 1.0)])
    engine.encode(0, SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(t5_model(), adapter).eval()
    right = t5_logits(adapted, SHORT, ANSWER)
    assert np.abs(right - t5_logits(before, SHORT, ANSWER)).max() > 0.1
    np.testing.assert_allclose(advance(engine, Cache(256), ANSWER, "all"), right, atol=1e-4 * np.abs(right).max())
    engine.adapt([])
    engine.encode(0, SHORT)
    np.testing.assert_allclose(
        advance(engine, Cache(256), ANSWER, "all"), t5_logits(before, SHORT, ANSWER), atol=1e-4, rtol=1e-4
    )


def test_an_adapter_of_distances_is_refused_and_can_be_merged(tmp_path: Path) -> None:
    """Torch looks them up once, when the model is made."""
    modules = ["q", "relative_attention_bias"]
    adapter = trained(t5_model(), tmp_path / "adapter", target_modules=modules, task_type="SEQ_2_SEQ_LM")
    checkpoint = open_checkpoint(save_t5(tmp_path / "t5"))
    opened_adapter, engine = open_peft(adapter, checkpoint), opened(checkpoint.path)
    with pytest.raises(
        UsageError, match=r"changes .*bias.*, which is looked up in; .*; merge it with llamachat quantize"
    ):
        engine.adapt([(opened_adapter, 1.0)])
    engine.encode(0, SHORT)
    plain = t5_logits(t5_model(), SHORT, ANSWER)
    np.testing.assert_allclose(advance(engine, Cache(256), ANSWER, "all"), plain, atol=1e-4, rtol=1e-4)
    whole = Changed(checkpoint, [(opened_adapter, 1.0)], merge=True)
    engine = EncoderDecoderEngine.build(checkpoint.config, whole.tensors(), slots=256, dtype="float32")
    engine.encode(0, SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = t5_logits(PeftModel.from_pretrained(t5_model(), adapter).eval(), SHORT, ANSWER)
    np.testing.assert_allclose(advance(engine, Cache(256), ANSWER, "all"), right, atol=1e-3, rtol=1e-4)


def test_chunks_and_single_tokens_give_what_the_whole_gives(engine: EncoderDecoderEngine, model: Any) -> None:
    engine.encode(0, LONG)
    cache = Cache(256)
    parts = [advance(engine, cache, ANSWER[:40], "all"), advance(engine, cache, ANSWER[40:140], "all")]
    parts += [advance(engine, cache, [token])[None] for token in ANSWER[140:]]
    np.testing.assert_allclose(np.concatenate(parts), t5_logits(model, LONG, ANSWER), atol=1e-4, rtol=1e-4)


def test_texts_of_unequal_sources_run_side_by_side(engine: EncoderDecoderEngine, model: Any) -> None:
    sources, pieces = (LONG, SHORT, LONG[:77]), (ANSWER[:3], ANSWER[:9], ANSWER[:1])
    caches = [Cache(64, first) for first in (0, 64, 128)]
    for cache, source in zip(caches, sources, strict=True):
        engine.encode(cache.first, source)
    plans = [cache.plan(len(piece)) for cache, piece in zip(caches, pieces, strict=True)]
    rows = engine.forward_many(pieces, plans)
    for row, source, piece in zip(rows, sources, pieces, strict=True):
        np.testing.assert_allclose(row, t5_logits(model, source, piece)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "reach"), [(32, 128), (8, 20), (5, 100), (64, 1000)])
def test_every_distance_falls_into_transformers_bucket(both_ways: bool, count: int, reach: int) -> None:
    ahead = torch.arange(-2 * reach, 2 * reach + 1)
    theirs: Callable[..., torch.Tensor] = vars(T5Attention)["_relative_position_bucket"].__func__
    expected = theirs(ahead, bidirectional=both_ways, num_buckets=count, max_distance=reach)
    assert torch.equal(buckets(ahead, count, reach, both_ways), expected)
    assert torch.equal(buckets(ahead.clamp(-reach, reach), count, reach, both_ways), expected)


def test_saved_keys_and_values_come_back_to_another_place(engine: EncoderDecoderEngine) -> None:
    engine.encode(0, LONG)
    cache, other = Cache(64), Cache(64, 128)
    whole = advance(engine, cache, ANSWER[:20], "all")
    index = np.arange(15)
    engine.load_kv(other.slots(index), index, engine.save_kv(cache.slots(index)))
    other.commit(ANSWER[:15])
    engine.encode(128, LONG)
    np.testing.assert_allclose(advance(engine, other, ANSWER[15:20], "all"), whole[15:], atol=1e-4)


@pytest.mark.parametrize("settings", [{"kv_bits": 8}, {"kv_bits": 16}, {"dtype": "bfloat16"}, {"dtype": "float16"}])
def test_other_types_stay_near(settings: dict[str, Any], tmp_path: Path, model: Any) -> None:
    engine = opened(save_t5(tmp_path), **settings)
    engine.encode(0, LONG)
    logits, right = advance(engine, Cache(256), ANSWER, "all"), t5_logits(model, LONG, ANSWER)
    assert 0 < np.abs(logits - right).mean() < 0.05 * right.std()


def test_packed_weights_are_multiplied_as_they_are(tmp_path: Path) -> None:
    model = as_stored(t5_model(), "Q4_0")
    engine = opened(save_t5_gguf(model, tmp_path / "t5.gguf", "Q4_0"), dtype="bfloat16")
    assert "torch int4" in engine.kernels and engine.kernels["torch int4"] > 60_000
    engine.encode(0, SHORT)
    logits, right = advance(engine, Cache(256), ANSWER, "all"), t5_logits(model, SHORT, ANSWER)
    assert 0 < np.abs(logits - right).mean() < 0.1 * right.std()


def test_a_source_goes_with_its_text(engine: EncoderDecoderEngine) -> None:
    engine.encode(0, SHORT)
    engine.encode(64, LONG)
    assert engine.sources.keys() >= {0, 64}
    engine.release(64)
    engine.release(64)  # which no longer has one
    assert 64 not in engine.sources


def test_a_source_without_room_is_refused_before_it_is_read(
    engine: EncoderDecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = source_bytes(engine.config, engine.model.precision) * 100
    monkeypatch.setattr(encoder_decoder.memory, "available_memory", lambda: needed)
    assert engine.source_room() == 100
    engine.encode(0, LONG[:100])
    with pytest.raises(DoesNotFitError, match="300 tokens, there is room for 100"):
        engine.encode(0, LONG)


def test_reading_can_be_interrupted_within_a_layer(engine: EncoderDecoderEngine) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        engine.encode(0, LONG, lambda: next(asked))


def test_a_long_source_is_run_in_smaller_parts(
    engine: EncoderDecoderEngine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    monkeypatch.setattr(encoder_decoder, "PAIRS", 3000)
    engine.encode(0, LONG, lambda: asked.append(1) is not None)
    assert len(asked) == 2 * 30, "layers, and parts of 10 queries"
    logits = advance(engine, Cache(256), ANSWER, "all")
    np.testing.assert_allclose(logits, t5_logits(model, LONG, ANSWER), atol=1e-4, rtol=1e-4)


def test_the_plan_counts_both_stacks_and_the_keys_of_a_source(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_t5(tmp_path))
    engine = opened(tmp_path)
    planned = planned_bytes(checkpoint.config, checkpoint.index(), slots=256, dtype="float32")
    assert planned.weights == engine.weight_bytes
    engine.encode(0, (LONG * 2)[:256])
    cross = sum(tensor.nbytes for pair in engine.sources[0] for tensor in pair)
    assert planned.kv == engine.kv_bytes + cross


def test_who_answers_sources_is_told_by_the_spec(engine: EncoderDecoderEngine) -> None:
    assert encoding(engine) is engine
    assert started(engine, SHORT) == [0]


SIZES = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 2, "max_position_embeddings": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_layers": 0}, "number of encoder layers"),
        ({"encoder_layers": 2000}, "number of encoder layers"),
        ({"relative_buckets": 3}, "relative buckets"),
        ({"relative_buckets": 2**17}, "relative buckets"),
        ({"relative_buckets": 32, "relative_distance": 16}, "relative distance"),
        ({"relative_distance": 2**40}, "relative distance"),
        ({"decoder_start_token_id": 8}, "decoder_start_token_id"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"activation": "tanh"}, "activation"),
        ({"positions": "sinusoid"}, "positions"),
        ({"norm_kind": "batch"}, "norm_kind"),
    ],
)
def test_a_spec_checks_its_sizes(changes: dict[str, Any], said: str) -> None:
    EncoderDecoderSpec(**SIZES)
    with pytest.raises(ConfigError, match=said):
        EncoderDecoderSpec(**SIZES | changes)


@pytest.mark.parametrize("positions", ["learned_absolute", "rope"])
def test_layer_norms_biases_and_other_positions_are_run(positions: Any) -> None:
    """Beside the same arithmetic written out: one layer each, whole sequences."""
    spec = EncoderDecoderSpec(
        vocab_size=VOCAB_SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, encoder_layers=1, activation="gelu",
        positions=positions, norm_kind="layer", qkv_bias=True, attention_out_bias=True, mlp_bias=True, head_bias=True,
        tie_word_embeddings=True, rotary_dim=4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    w = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in spec.tensor_shapes().items()}
    engine = EncoderDecoderEngine.build(
        spec, [(name, FloatTensor(tensor.numpy())) for name, tensor in w.items()], slots=64, dtype="float32"
    )
    engine.encode(0, SHORT)
    logits = advance(engine, Cache(64), ANSWER[:12], "all")
    np.testing.assert_allclose(logits, written_out(spec, w, SHORT, ANSWER[:12]).numpy(), atol=1e-4, rtol=1e-4)
    assert (engine.source_room() == 64) == (positions == "learned_absolute")


def written_out(
    spec: EncoderDecoderSpec, w: dict[str, torch.Tensor], source: list[int], ids: list[int]
) -> torch.Tensor:
    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + spec.rms_norm_eps).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        """The first 4 of each head's 8, in pairs (i, i + 2)."""
        angles = torch.arange(len(x))[:, None, None] * 10000.0 ** -(torch.arange(0, 4, 2) / 4)
        a, b = x[..., :2], x[..., 2:4]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), x[..., 4:]), -1)

    def attend(x: torch.Tensor, over: torch.Tensor, name: str, causal: bool, rotated: bool) -> torch.Tensor:
        q, k, v = (linear(y, f"{name}.{part}_proj").view(-1, 2, 8) for y, part in ((x, "q"), (over, "k"), (over, "v")))
        if rotated:
            q, k = turned(q), turned(k)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1) > 0, -torch.inf)
        return linear(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(-1, 16), f"{name}.o_proj")

    def stack(which: str, ids: list[int], read: torch.Tensor | None) -> torch.Tensor:
        x, at, rope = w["model.embed_tokens.weight"][ids], f"{which}.layers.0.", spec.positions == "rope"
        x = x if rope else x + w["model.embed_positions.weight"][: len(ids)]
        normed = norm(x, at + "input_layernorm")
        x = x + attend(normed, normed, at + "self_attn", read is not None, rope)
        if read is not None:
            x = x + attend(norm(x, at + "cross_attn_layernorm"), read, at + "cross_attn", False, False)
        inner = torch.nn.functional.gelu(linear(norm(x, at + "post_attention_layernorm"), at + "mlp.up_proj"))
        return norm(x + linear(inner, at + "mlp.down_proj"), f"{which}.norm")

    out = stack("decoder", ids, stack("encoder", source, None))
    return out @ w["model.embed_tokens.weight"].T + w["lm_head.bias"]
