"""--lora of every command that takes a model: what it prints, and what it refuses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from checkpoints import save_hf, save_tokenizer, tiny_model
from peft_folders import merged, trained
from typer.testing import CliRunner

from llamachat import paths
from llamachat.cli.bench import bench
from llamachat.cli.complete import complete
from llamachat.cli.evaluate import evaluate_model
from llamachat.cli.main import app as whole
from llamachat.cli.quantize import quantize_model
from llamachat.errors import ConfigError, LlamachatError, UsageError

app = typer.Typer()
for command, name in ((quantize_model, "quantize"), (evaluate_model, "eval"), (bench, "bench"), (complete, "complete")):
    app.command(name)(command)
RAW = ("--raw", "the quick", "-n", 6, "--temp", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter that names it as its base, and both merged by PEFT."""
    top, model = tmp_path_factory.mktemp("flags"), tiny_model()
    for name in ("base", "merged"):
        (
            save_hf(model, top / name)
            if name == "base"
            else merged(copy.deepcopy(model), top / "a").save_pretrained(top / name)
        )
        save_tokenizer(top / name)
        if name == "base":
            trained(copy.deepcopy(model), top / "a")
    config = json.loads((top / "a/adapter_config.json").read_text()) | {"base_model_name_or_path": "../base"}
    (top / "a/adapter_config.json").write_text(json.dumps(config))
    return top


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def call(*arguments: object, of: typer.Typer = app) -> Any:
    return CliRunner().invoke(of, list(map(str, arguments)), catch_exceptions=False)


def test_complete_answers_with_adapters(made: Path) -> None:
    right = call("complete", "-m", made / "merged", *RAW).stdout
    assert call("complete", "-m", made / "base", "--lora", made / "a", *RAW).stdout == right
    alone = call("complete", "-m", made / "a", *RAW)
    assert alone.stdout == right and "a is an adapter; it runs on" in alone.stderr
    off = call("complete", "-m", made / "base", "--lora", f"{made}/a:0", *RAW).stdout
    assert off == call("complete", "-m", made / "base", *RAW).stdout != right
    with pytest.raises(UsageError, match=r"the scale in .*/a:x is no number"):
        call("complete", "-m", made / "base", "--lora", f"{made}/a:x", *RAW)


def test_the_config_file_names_them_relative_to_itself(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "config/llamachat/config.toml"
    file.parent.mkdir(parents=True)
    (file.parent / "a").symlink_to(made / "a")
    file.write_text('lora = ["a"]')
    right = call("complete", "-m", made / "merged", *RAW).stdout
    assert call("complete", "-m", made / "base", *RAW, of=whole).stdout == right
    file.write_text('lora = ["a:x"]')
    with pytest.raises(ConfigError, match="the scale in a:x is no number"):
        call("complete", "-m", made / "base", *RAW, of=whole)


def test_quantize_merges_first_and_says_so(made: Path, tmp_path: Path) -> None:
    printed = call("quantize", made / "base", "-o", tmp_path / "ours", "--lora", made / "a").stdout
    assert "merged before: a × 1" in " ".join(printed.split())
    told = json.loads(call("quantize", made / "a", "-o", tmp_path / "same", "--json").stdout)
    assert told["merged"] == "a × 1"
    call("quantize", made / "merged", "-o", tmp_path / "right")
    answers = [call("complete", "-m", tmp_path / name, *RAW).stdout for name in ("ours", "same", "right")]
    assert len(set(answers)) == 1


def test_quantize_refuses_to_merge_into_codes(made: Path, tmp_path: Path) -> None:
    call("quantize", made / "base", "-o", tmp_path / "int8", "--scheme", "int8")
    with pytest.raises(LlamachatError, match="quantized already; nothing can be merged into them"):
        call("quantize", tmp_path / "int8", "-o", tmp_path / "out", "--lora", made / "a")
    assert not (tmp_path / "out").exists()


def test_eval_and_the_report_compare_with_the_adapted_model(made: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog while many others look on " * 20)
    told = ("--text", text, "--windows", 1, "--json")
    found = json.loads(
        call("eval", "-m", made / "base", "--lora", made / "a", "--against", made / "merged", *told).stdout
    )
    assert found["kl_mean"]["value"] < 1e-6
    plain = json.loads(call("eval", "-m", made / "base", "--against", made / "merged", *told).stdout)
    assert plain["kl_mean"]["value"] > 0.01
    options = ("--lora", made / "a", "--scheme", "int8", "--report")
    printed = json.loads(call("quantize", made / "base", "-o", tmp_path / "out", *options, *told).stdout)
    assert printed["quality"]["kl_mean"]["value"] < 0.1


def test_bench_runs_beside_itself_without_them(made: Path) -> None:
    work = ("--prompt", 4, "--decode", 3, "--repeats", 1, "--threads", 1)
    for options in (("--lora", made / "a"), ("--lora-rank", 4)):
        found = json.loads(call("bench", "-m", made / "base", *options, *work, "--json").stdout)
        assert [*found["results"]] == ["llamachat", "without adapters"]
        assert found["results"]["without adapters"]["decode_ratio"] > 0
    with pytest.raises(UsageError, match="give --lora-rank with --shape"):
        call("bench", "--shape", "135m", "--lora", made / "a", *work)
