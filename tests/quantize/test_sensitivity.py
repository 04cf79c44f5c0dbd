"""What quantizing one matrix would cost: transformers' own gradients say the same, and the right matrix costs most."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hf, tiny_model
from family_files import model_of
from numpy.typing import NDArray
from quality import build

from llamachat.core.tensors import FloatTensor, dequantize
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.generation.perplexity import run
from quantize.activity import activities
from quantize.convert import silent
from quantize.schemes import SCHEMES, Scheme, quantize_tensor
from quantize.sensitivity import LENGTH, costs

SCHEME = SCHEMES["int4"]
TEXT = [[(i * i + 7 * seed) % 90 + 3 for i in range(20)] for seed in range(4)]


def choices(source: Checkpoint, scheme: Scheme = SCHEME) -> dict[str, list[Scheme]]:
    index = source.index()
    return {name: [scheme] for name, info in index.items() if ".layers." in name and len(info.shape) == 2}


def changes(source: Checkpoint) -> dict[str, torch.Tensor]:
    """By what each matrix would differ."""
    known, found = activities(source), {}
    for name, tensor in source.tensors():
        if name in choices(source):
            data = dequantize(tensor)
            coded = quantize_tensor(name, FloatTensor(data), SCHEME, activity=known.get(name))
            found[name] = torch.from_numpy(dequantize(coded) - data)
    return found


def gradients(model: Any, name: str) -> torch.Tensor | None:
    """Of a matrix by the name it has here: transformers stacks experts, gate above up."""
    head, _, tail = name.partition(".experts.")
    if not tail:
        return model.get_parameter(name).grad if ".mlp.gate." not in name else None
    number, _, kind = tail.removesuffix("_proj.weight").partition(".")
    stack = model.get_parameter(f"{head}.experts.{'down_proj' if kind == 'down' else 'gate_up_proj'}").grad[int(number)]
    return stack if kind == "down" else stack.chunk(2)[kind == "up"]


@pytest.mark.parametrize("case", ["qwen3", "gemma2", "gemma3", "smollm3", "granite", "olmo2", "mixtral", "qwen3 moe"])
def test_costs_are_those_of_transformers_gradients(case: str, tmp_path: Path) -> None:
    model = model_of(case)
    model.save_pretrained(tmp_path)
    source = open_checkpoint(tmp_path)
    own = {name for name in choices(source) if not name.endswith("mlp.gate.weight")}
    found = costs(source, {name: [SCHEME, SCHEMES["int8"]] for name in own}, TEXT, 2, silent)
    change, wanted = changes(source), dict.fromkeys(own, 0.0)
    for number, ids in enumerate(TEXT):
        logits = model(torch.tensor([ids])).logits[0]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(number))
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
        for name in own:
            if (gradient := gradients(model, name)) is not None:
                wanted[name] += float((gradient * change[name]).sum(1).square().sum()) / (2 * sum(map(len, TEXT)))
    for name in own:
        four, eight = found.get(name, [0.0, 0.0])
        assert four == pytest.approx(wanted[name], rel=2e-3, abs=1e-9), name
        assert eight <= 0.05 * four, name


def test_what_is_not_looked_at_of_a_long_window_or_by_more_threads_changes_nothing(tmp_path: Path) -> None:
    source = open_checkpoint(save_hf(tiny_model(), tmp_path))
    text = [[(i * i + seed) % 320 for i in range(LENGTH)] for seed in range(3)]
    one = costs(source, choices(source), text, 1, silent)
    assert one == costs(source, choices(source), [window + [5] * 9 for window in text], 3, silent)


def test_some_rows_stand_for_all_of_a_large_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(save_hf(tiny_model(), tmp_path))
    whole = costs(source, choices(source), TEXT, 2, silent)
    monkeypatch.setattr("quantize.sensitivity.ROWS", 24)
    part = costs(source, choices(source), TEXT, 2, silent)
    ratios = [part[name][0] / whole[name][0] for name in whole]
    assert 0.7 < np.mean(ratios) < 1.4
    assert min(ratios) > 0.1


def test_costs_foretell_how_far_predictions_move(tmp_path: Path) -> None:
    """Each matrix quantized alone: the divergence that comes of it is about its cost, and the dearest stand first."""
    source = open_checkpoint(save_hf(tiny_model(initializer_range=0.1), tmp_path))
    text = [[(i * i * (seed + 1) + 7 * seed) % 320 for i in range(LENGTH)] for seed in range(24)]
    found = {name: each[0] for name, each in costs(source, choices(source), text, 2, silent).items()}
    weights, change = {name: dequantize(each) for name, each in source.tensors()}, changes(source)
    exact, moved = build(source, lambda name: None, LENGTH), {}
    for name in found:
        other = build(source, {name: FloatTensor(weights[name] + change[name].numpy())}.get, LENGTH)
        moved[name] = float(np.mean([divergence(run(exact, ids), run(other, ids)) for ids in text[:6]]))
    names = sorted(found, key=lambda name: moved[name])
    ratios = [found[name] / moved[name] for name in names]
    assert 0.7 < sum(found.values()) / sum(moved.values()) < 1.4, ratios
    ranks = [sorted(names, key=lambda name: found[name]).index(name) for name in names]
    assert np.corrcoef(range(len(names)), ranks)[0, 1] > 0.6, ratios


def divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean KL of logits [T, vocabulary]."""
    p, q = (torch.from_numpy(logits).log_softmax(-1) for logits in (one, other))
    return float((p.exp() * (p - q)).sum(-1).mean())
