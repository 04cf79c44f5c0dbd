"""Perplexity and KL divergence against scipy and transformers, and against what must hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_hf, tiny_model
from scipy.special import log_softmax, rel_entr
from typer.testing import CliRunner

from llamachat.cli.main import app
from llamachat.core.engine import Engine
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.generation import perplexity as ev

TEXT = [(i * i) % 320 for i in range(300)]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return opened(save_hf(tiny_model(), tmp_path / "a"))


@pytest.fixture
def other(tmp_path: Path) -> Engine:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)), alpha=0.02)
    return opened(save_hf(model, tmp_path / "b"))


def opened(folder: Path) -> Engine:
    checkpoint = open_checkpoint(folder)
    return TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=128, dtype="float32")


def test_perplexity_is_that_of_transformers(engine: Engine) -> None:
    cut = ev.windows(TEXT, 100, 64)
    with torch.no_grad():
        losses = [tiny_model()(torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in cut]
    found = ev.summary(ev.evaluate(engine, cut))
    assert found["tokens"] == 3 * 99
    assert found["perplexity"].value == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)


def test_kl_and_the_change_of_probabilities_are_scipys(engine: Engine, other: Engine) -> None:
    cut = ev.windows(TEXT, 100, 2)
    found = ev.evaluate(other, cut, engine)
    p, q = (np.stack([log_softmax(ev.run(each, ids).astype(np.float64), 1) for ids in cut]) for each in (engine, other))
    assert found.kl is not None
    np.testing.assert_allclose(found.kl, rel_entr(np.exp(p), np.exp(q)).sum(-1).ravel(), atol=1e-5)
    statistics = ev.summary(found)
    following = np.array([ids[1:] for ids in cut])[..., None]
    change = [np.take_along_axis(np.exp(each[:, :-1]), following, 2).ravel() for each in (q, p)]
    change = change[0] - change[1]
    assert statistics["dp_mean"].value == pytest.approx(change.mean(), abs=1e-6)
    assert statistics["dp_mean"].error == pytest.approx(change.std(ddof=1) / np.sqrt(len(change)), rel=1e-3)
    assert statistics["dp_rms"].value == pytest.approx(np.sqrt((change**2).mean()), rel=1e-3)
    assert statistics["same_top"].value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert statistics["kl_p99"] == pytest.approx(np.percentile(found.kl, 99))


def test_a_model_is_no_distance_from_itself(engine: Engine) -> None:
    statistics = ev.summary(ev.evaluate(engine, ev.windows(TEXT, 100), engine))
    assert statistics["kl_max"] < 1e-6
    assert statistics["same_top"] == ev.Estimate(1.0, 0.0)
    assert statistics["perplexity_ratio"] == ev.Estimate(1.0, 0.0)
    assert statistics["dp_rms"].value == 0


def test_windows_are_whole_and_each_begins_with_bos() -> None:
    assert ev.windows(list(range(10)), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ev.windows(list(range(10)), 4, 2, bos=99) == [[99, 0, 1, 2], [99, 3, 4, 5]]
    with pytest.raises(UsageError, match="less than a window"):
        ev.windows([1, 2, 3], 4)


def test_models_of_different_vocabularies_are_not_compared(engine: Engine, tmp_path: Path) -> None:
    small = opened(save_hf(tiny_model(vocab_size=300), tmp_path / "small"))
    with pytest.raises(UsageError, match="300 and 320"):
        ev.evaluate(small, [[1, 2, 3]], engine)


def test_progress_tells_of_every_window(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    ev.evaluate(engine, ev.windows(TEXT, 100), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_standard_error_covers_the_true_mean_as_often_as_it_should() -> None:
    random = np.random.default_rng(0)
    hits = [abs((estimate := ev.mean(random.normal(3, 2, 200))).value - 3) < 2 * estimate.error for _ in range(500)]
    assert 0.92 < np.mean(hits) < 0.98


def test_several_engines_are_each_compared_as_if_alone(engine: Engine, other: Engine) -> None:
    cut = ev.windows(TEXT, 100, 2)
    together = ev.evaluate_all([engine, other], cut, other)
    for each, found in zip((engine, other), together, strict=True):
        alone = ev.evaluate(each, cut, other)
        np.testing.assert_array_equal(found.kl, alone.kl)
        np.testing.assert_array_equal(found.nll, alone.nll)


def test_the_native_engine_is_measured_against_exact_arithmetic_beside_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_gguf: Path
) -> None:
    class Peer:
        """Always sure of token 0."""

        def __init__(self, file: Path, window: int, threads: int | None) -> None:
            self.config, self.slots = open_checkpoint(file).config, window

        def forward(self, ids: list[int], step: object, logits: str) -> np.ndarray:
            out = np.zeros((len(ids), self.config.vocab_size), np.float32)
            out[:, 0] = 1
            return out

    monkeypatch.setattr("llamachat.bench.peer_logits.LlamaCppLogits", Peer)
    name = str(smollm2_gguf)
    command = ["eval", "-m", name, "--against", name, "--engine", "native", "--window", "32", "--windows", "1"]
    result = CliRunner().invoke(app, [*command, "--vs-gguf", name, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 0 < found["kl_mean"]["value"] < 0.01
    assert found["llama.cpp"]["kl_mean"]["value"] > 1
    assert found["reference_perplexity"] == found["llama.cpp"]["reference_perplexity"]
