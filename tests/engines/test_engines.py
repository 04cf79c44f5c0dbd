"""engines.py: the native engine where it can be had, torch where it cannot or is asked for, and what is said then."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model

from llamachat.cli.options import EngineName
from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.native import abi, build
from llamachat.engines.select import ENGINES
from llamachat.errors import UsageError
from llamachat.models.load import LoadedModel, load

NEEDS_COMPILER = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    save_hf(tiny_model(), tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    return str(tmp_path / "model")


def kind(model: LoadedModel) -> str:
    return model.engine.describe().split()[0]


@NEEDS_COMPILER
def test_the_native_engine_is_the_default_on_a_cpu(folder: str) -> None:
    assert kind(load(folder, device="cpu")) == "native"
    assert kind(load(folder, engine="native")) == "native"


@pytest.mark.parametrize("options", [{"engine": "torch"}, {"dtype": "float32"}])
def test_torch_runs_what_asks_for_it(folder: str, options: dict[str, str]) -> None:
    assert kind(load(folder, device="cpu", **options)) == "torch"  # type: ignore[arg-type]


@NEEDS_COMPILER
def test_both_engines_give_the_same_logits_up_to_rounding(folder: str) -> None:
    ids = [1, 17, 300, 4, 4, 99]
    native, exact = (load(folder, **option).engine for option in ({"engine": "native"}, {"dtype": "float32"}))  # type: ignore[arg-type]
    got, expected = (advance(engine, Cache(64), ids, "all") for engine in (native, exact))
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


@NEEDS_COMPILER
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_kv_bits_reach_the_native_engine(folder: str, bits: int) -> None:
    name = {4: "keys int8, values int4", 8: "int8", 16: "float16", 32: "float32"}[bits]
    assert load(folder, engine="native", kv_bits=bits).engine.describe().endswith(name)


@NEEDS_COMPILER
def test_memory_is_planned_as_it_is_taken(folder: str) -> None:
    from llamachat.engines.native.engine import planned_bytes

    model = load(folder, engine="native")
    weights, kv, _ = planned_bytes(model.checkpoint.config, model.checkpoint.index(), model.engine.slots, "float16")
    assert (weights, kv) == (model.engine.weight_bytes, model.engine.kv_bytes)  # type: ignore[attr-defined]


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise build.BuildError("no C compiler found")

    monkeypatch.setattr(abi, "library", refuse)
    abi.native_library.cache_clear()


def test_without_a_compiler_torch_answers_and_one_line_says_so(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    said: list[str] = []
    assert kind(load(folder, device="cpu", report=said.append)) == "torch"
    assert [line for line in said if "native engine cannot be had (no C compiler found)" in line] == said[-1:]


def test_a_forced_native_engine_that_cannot_be_had_is_an_error(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    with pytest.raises(UsageError, match="no C compiler found"):
        load(folder, engine="native")


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}])
def test_a_forced_native_engine_refuses_others_arithmetic(folder: str, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="computes in its own types only"):
        load(folder, engine="native", **options)  # type: ignore[arg-type]


@NEEDS_COMPILER
def test_a_model_beyond_the_native_engine_is_torchs_and_one_line_says_why(tmp_path: Path) -> None:
    save_hf(tiny_model(head_dim=1026), tmp_path)
    save_tokenizer(tmp_path)
    said: list[str] = []
    assert kind(load(str(tmp_path), device="cpu", report=said.append, ctx_size=16)) == "torch"
    assert [line for line in said if "heads of more than 1024 elements); torch answers" in line] == said[-1:]
    with pytest.raises(UsageError, match=r"cannot run this model .*--engine torch"):
        load(str(tmp_path), engine="native", ctx_size=16)


def test_an_engine_that_there_is_not_is_refused_and_the_flag_knows_those_there_are(folder: str) -> None:
    assert [name.value for name in EngineName] == ["auto", *ENGINES]
    with pytest.raises(UsageError, match="engine is 'onnx'; allowed is one of auto, native, torch"):
        load(folder, engine="onnx")
