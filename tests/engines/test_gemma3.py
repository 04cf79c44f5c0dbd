"""Gemma 3 270M, a real file of 4-bit codes, beside llama.cpp: its texts, and what the native engine's rounding costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.native import build, description
from llamachat.engines.native.engine import NativeEngine
from llamachat.engines.native.pack import as_stored
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.formats.gguf import GGUFCheckpoint, open_gguf

# Of tools/measure_greedy.py --exact: llama.cpp 0.3.36 with the file's values as F32, which its rounding for codes does not move.
TEXTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("gemma3_texts.json").read_text())
NEAR_TIE = 0.01  # nats
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def checkpoint(gemma3_gguf: Path) -> GGUFCheckpoint:
    return open_gguf(gemma3_gguf)


@pytest.fixture(scope="module")
def weights(checkpoint: GGUFCheckpoint) -> PackedWeights:
    return PackedWeights.build(as_stored(checkpoint.index(), checkpoint.tensors))


def rows(checkpoint: GGUFCheckpoint, weights: PackedWeights, count: int) -> list[NDArray[np.float32]]:
    """Logits at each place of so many of llama.cpp's texts [64, vocabulary]."""
    engine = NativeEngine(checkpoint.config, weights, slots=128)
    found = []
    for said in TEXTS[:count]:
        every = advance(engine, Cache(128), said["ids"] + said["text"], "all")
        found.append(every[len(said["ids"]) - 1 : -1])
    return found


@pytest.fixture(scope="module")
def exact(checkpoint: GGUFCheckpoint, weights: PackedWeights) -> list[NDArray[np.float32]]:
    """With activations of 15 bits throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "SMALL", 10**6)
        return rows(checkpoint, weights, len(TEXTS))


def test_the_prompts_have_llama_cpps_ids(checkpoint: GGUFCheckpoint) -> None:
    tokenizer = checkpoint.tokenizer()
    for said in TEXTS:
        assert said["ids"][0] == tokenizer.bos_id
        assert tokenizer.encode(tokenizer.decode(said["ids"])) == said["ids"][1:]


def test_it_says_what_llama_cpp_says(exact: list[NDArray[np.float32]]) -> None:
    """64 tokens of ten texts; where it parts, which it never does so far, the two likeliest are as good as equal."""
    for said, ours in zip(TEXTS, exact, strict=True):
        parted = [
            margin
            for token, own, margin in zip(said["text"], ours.argmax(1).tolist(), said["margins"], strict=True)
            if own != token
        ]
        assert all(margin < NEAR_TIE for margin in parted), parted


def test_rounding_activations_costs_little(
    checkpoint: GGUFCheckpoint, weights: PackedWeights, exact: list[NDArray[np.float32]]
) -> None:
    costs = []
    for right, ours in zip(exact, rows(checkpoint, weights, 3), strict=False):
        p, q = (torch.from_numpy(x[::4]).log_softmax(-1) for x in (right, ours))
        costs.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert np.mean(costs) < 0.004
