"""Calibrated 4 bits: less error where the activations are, the same layout, the same bytes."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hf, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quality import build

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import QuantTensor, dequantize
from llamachat.errors import FormatError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.generation.perplexity import run
from quantize.convert import convert
from quantize.gptq import Calibration
from quantize.recipe import Recipe
from quantize.rounding import Hessian, solve
from quantize.schemes import SCHEMES, TABLES, Scheme, quantize
from quantize.texts import docstrings
from quantize.threads import Threads
from quantize.writer import FolderWriter

GPTQ = Recipe("int4-gptq", embedding="float", head="float")
TEXT = [[(i * i + seed) % 320 for i in range(64)] for seed in range(12)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_hf(tiny_model(), tmp_path / "source")


def correlated(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    few = torch.randn(rows, columns // 4, generator=generator)
    return few @ mixing + 0.3 * torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("codebook", ["gauss", "int4", "nf4"])
def test_the_output_of_a_layer_is_far_closer_than_with_rounding_alone(codebook: str) -> None:
    matrix, inputs = torch.randn(48, 128, generator=torch.Generator().manual_seed(1)), correlated(2000, 128)
    scheme = Scheme(4, 32, codebook, calibrated=True)
    codes, scale = solve(matrix, Hessian(inputs.T @ inputs), scheme)
    table = quantize(matrix.numpy(), scheme).table
    assert table is not None
    solved = table[codes] * scale.astype(np.float32).repeat(32, 1)
    plain = dequantize(quantize(matrix.numpy(), scheme))
    errors = [torch.linalg.norm(inputs @ (torch.tensor(each) - matrix).T) for each in (solved, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_with_inputs_that_have_nothing_in_common_gptq_is_rounding_to_nearest() -> None:
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    codes, scale = solve(matrix, Hessian(torch.eye(64)), SCHEMES["int4-gptq"], passes=0)
    plain = quantize(matrix.numpy(), SCHEMES["int4"])
    np.testing.assert_array_equal(scale, plain.scale)
    np.testing.assert_allclose(np.array(plain.table)[codes] * scale.repeat(32, 1).astype(np.float32), dequantize(plain))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["gauss", "int4"]), st.sampled_from([1e-4, 1.0, 50.0]))
def test_no_pass_makes_the_error_larger_and_some_pass_makes_it_smaller(seed: int, codebook: str, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(96, 24, generator=generator) @ torch.randn(24, 128, generator=generator)
    inputs = few + 0.2 * torch.randn(96, 128, generator=generator)
    matrix = torch.randn(8, 128, generator=generator) * size
    hessian, scheme = Hessian(inputs.T @ inputs), Scheme(4, 32, codebook, calibrated=True)
    table, errors = np.array(TABLES[codebook], np.float32), []
    for passes in range(4):
        codes, scale = solve(matrix, hessian, scheme, passes)
        rounded = table[codes] * scale.astype(np.float32).repeat(32, 1)
        errors.append(hessian.error(torch.tensor(rounded) - matrix))
    plain = hessian.error(torch.tensor(dequantize(quantize(matrix.numpy(), scheme))) - matrix)
    assert errors[0] < plain
    assert all(after <= before * 1.0001 for before, after in pairwise(errors))
    assert errors[-1] < 0.98 * errors[0]


def test_columns_that_are_never_active_do_no_harm() -> None:
    inputs = correlated(500, 64)
    inputs[:, 10:45] = 0
    codes, scale = solve(torch.randn(16, 64), Hessian(inputs.T @ inputs), SCHEMES["int4-gptq"])
    assert np.isfinite(scale).all()
    assert ((codes >= 0) & (codes < 16)).all()


@pytest.fixture
def work(source: Path, tmp_path: Path) -> Iterator[Calibration]:
    with Threads(1) as pool, torch.inference_mode():
        calibration = Calibration(open_checkpoint(source).config, GPTQ, FolderWriter(tmp_path, {}, 64), pool)
        calibration.seen = {}
        yield calibration
        calibration.writer.close()


def test_a_token_of_a_large_state_counts_less_in_what_is_added_to_it(work: Calibration) -> None:
    """As after the next norm an error of its is small: one such token in the text changes hardly a code."""
    state, inputs = torch.ones(8, 64), torch.randn(8, 64)
    state[3], inputs[3] = 1000, inputs[3] * 1000
    work.model.entered = state
    grams = [
        work.task((f"model.layers.0.{name}",), inputs).hessian.gram for name in ("self_attn.o_proj", "mlp.up_proj")
    ]
    assert grams[0].diagonal().mean() < 20 < 1e4 < grams[1].diagonal().mean()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.sampled_from(["self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"]))
def test_a_matrix_makes_up_for_what_its_input_and_its_state_have_become(
    work: Calibration, seed: int, name: str
) -> None:
    """What another input and another state come from is told by the input, as far as it can be."""
    torch.manual_seed(seed)
    mixing, matrix, owing = torch.eye(64) + torch.randn(64, 64) / 20, torch.randn(64, 64) / 8, torch.randn(64, 64) / 20
    x, before = torch.randn(600, 64), torch.randn(600, 64) * 10
    exact, added = x @ mixing, name != "mlp.up_proj"
    work.seen[f"model.layers.0.{name}",], work.model.entered = (exact, before + x @ owing), before
    goal = work.task((f"model.layers.0.{name}",), x).goal(matrix)
    wanted = exact @ matrix.T + (x @ owing if added else 0)
    assert torch.linalg.norm(x @ goal.T - wanted) < 0.65 * torch.linalg.norm(x @ matrix.T - wanted)


def test_experts_that_other_tokens_came_to_are_rounded_for_their_own(work: Calibration) -> None:
    modules, matrix = ("model.layers.0.mlp.experts.0.up_proj",), torch.randn(16, 64)
    work.model.entered, work.seen[modules] = torch.randn(30, 64), (torch.randn(20, 64), torch.randn(30, 64))
    assert work.task(modules, torch.randn(20, 64)).goal(matrix) is matrix


def test_the_calibrated_model_is_closer_to_the_source_and_of_the_same_layout(tmp_path: Path) -> None:
    model = tiny_model(initializer_range=0.1)
    model.model.embed_tokens.weight.data = correlated(320, 64) / 4  # as activations of real models are
    checkpoint = open_checkpoint(save_hf(model, tmp_path / "source"))
    convert(checkpoint, tmp_path / "gptq", GPTQ, calibration=TEXT)
    convert(checkpoint, tmp_path / "int4", Recipe("int4", embedding="float", head="float"))
    index = [open_checkpoint(tmp_path / name).index() for name in ("gptq", "int4")]
    assert {name: info.nbytes for name, info in index[0].items()} == {n: i.nbytes for n, i in index[1].items()}
    other = [[(7 * i + 3) % 320 for i in range(64)]]
    reference = run(build(checkpoint, lambda name: None, 64), other[0])
    errors = []
    for name in ("gptq", "int4"):
        tensors = dict(open_checkpoint(tmp_path / name).tensors())
        errors.append(np.linalg.norm(run(build(checkpoint, tensors.get, 64), other[0]) - reference))
    assert errors[0] < 0.8 * errors[1]


def test_the_layers_are_run_as_the_engine_runs_them(source: Path, tmp_path: Path) -> None:
    """With nothing quantized, what is left after the last layer is what the engine has there."""
    from quantize.coding import by_layer

    checkpoint = open_checkpoint(source)
    recipe = Recipe("int4", skip=("*",))
    weights = dict(checkpoint.tensors())
    with Threads(2) as pool, torch.inference_mode():
        writer = FolderWriter(tmp_path, {}, 64)
        work = Calibration(checkpoint.config, recipe, writer, pool)
        embedding = weights["model.embed_tokens.weight"]
        work.begin([torch.tensor(dequantize(embedding.rows(ids))) for ids in TEXT])
        for prefix, tensors in by_layer(checkpoint):
            if prefix:
                work.layer(prefix, dict(tensors))
        writer.close()
        norm, head = (torch.tensor(dequantize(weights[name])) for name in ("model.norm.weight", "lm_head.weight"))
        assert work.state is not None
        last = torch.nn.functional.rms_norm(
            work.state.split(len(TEXT[1]))[1], norm.shape, norm, checkpoint.config.rms_norm_eps
        )
        torch.testing.assert_close(
            last @ head.T, torch.tensor(run(build(checkpoint, lambda name: None, 64), TEXT[1])), atol=1e-4, rtol=1e-4
        )


def test_threads_and_interruptions_change_no_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(source)
    for name, threads in (("one", 1), ("three", 3)):
        convert(checkpoint, tmp_path / name, GPTQ, calibration=TEXT, threads=threads)
    whole = (tmp_path / "one/model.safetensors").read_bytes()
    assert whole == (tmp_path / "three/model.safetensors").read_bytes()
    add, count = FolderWriter.add, 0

    def limited(self: FolderWriter, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 14:
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderWriter, "add", limited)
        convert(checkpoint, tmp_path / "resumed", GPTQ, calibration=TEXT)
    begun = (tmp_path / ".resumed.partial/journal.jsonl").read_text().splitlines()[0]
    assert len(json.loads(begun)["calibration"]) == 32, "a key of the text, not the text"
    with pytest.raises(UsageError, match="other options"):
        convert(checkpoint, tmp_path / "resumed", GPTQ, calibration=TEXT[::-1], resume=True)
    convert(checkpoint, tmp_path / "resumed", GPTQ, calibration=TEXT, resume=True)
    assert whole == (tmp_path / "resumed/model.safetensors").read_bytes()


def test_what_is_not_to_be_calibrated_is_rounded_or_left(source: Path, tmp_path: Path) -> None:
    recipe = Recipe("int4-gptq", overrides=("*.o_proj=float", "*.layers.0.*.down_proj=int8"))
    convert(open_checkpoint(source), tmp_path / "out", recipe, calibration=TEXT)
    tensors = dict(open_checkpoint(tmp_path / "out").tensors())
    kinds = {name: tensor.bits if isinstance(tensor, QuantTensor) else 32 for name, tensor in tensors.items()}
    assert kinds["model.layers.0.self_attn.o_proj.weight"] == 32
    assert kinds["model.layers.0.mlp.down_proj.weight"] == 8
    assert kinds["model.layers.1.mlp.down_proj.weight"] == 4
    assert kinds["model.embed_tokens.weight"] == 8


def test_a_weight_that_is_not_a_number_is_named(source: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 3] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=f"{name} has values"):
        convert(open_checkpoint(source), tmp_path / "out", GPTQ, calibration=TEXT)


def test_the_text_at_hand_is_long_enough_for_a_calibration() -> None:
    assert len(docstrings()) > 32 * 512 * 5


def test_biases_and_grouped_queries_are_calibrated_too(tmp_path: Path) -> None:
    config = open_checkpoint(save_hf(tiny_model(num_key_value_heads=2, attention_bias=True), tmp_path / "s")).config
    assert isinstance(config, ModelSpec)
    assert config.qkv_bias
    done = convert(open_checkpoint(tmp_path / "s"), tmp_path / "out", GPTQ, calibration=TEXT)
    assert done.tensors["model.layers.1.self_attn.q_proj.bias"]["scheme"] == "float"
