"""The commands `quantize` and `eval`, from arguments to what they print."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from checkpoints import save_hf, save_tokenizer, tiny_model
from typer.testing import CliRunner

from llamachat.cli.evaluate import evaluate_model
from llamachat.cli.quantize import quantize_model
from llamachat.errors import ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from quantize.writer import FolderWriter

app = typer.Typer()
app.command("quantize")(quantize_model)
app.command("eval")(evaluate_model)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_hf(tiny_model(), tmp_path / "source")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("the quick brown fox jumps over the lazy dog while many others look on " * 40)
    return path


def call(*arguments: object) -> str:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False).stdout


def test_a_conversion_tells_size_error_and_memory(source: Path, tmp_path: Path) -> None:
    printed = call("quantize", source, "-o", tmp_path / "out")
    assert "down_proj" in printed
    assert "bits a weight" in printed
    assert "memory to run it" in printed
    assert "█" in printed


@pytest.mark.parametrize(("columns", "left"), [(30, 3), (60, 6), (80, 7), (120, 7)])
def test_tables_fit_a_terminal_of_any_width_and_no_figure_is_cut(
    source: Path,
    tmp_path: Path,
    text: Path,
    columns: int,
    left: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for name, value in {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    told = ["quantize", source, "-o", tmp_path / "out", "--report", "--text", text, "--windows", 1]
    app([*map(str, told)], standalone_mode=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(len(line) <= columns for line in lines) and not any("…" in line for line in lines)
    head = lines[0].split()
    assert (
        head == ["tensors", "scheme", "bits", "error", "SNR", "outliers"] if left > 3 else ["tensors", "bits", "error"]
    )
    assert any("█" in line for line in lines) == (left == 7), "the bars go first"
    assert len(re.findall(r"[0-9.]+%: [-0-9.e]+(?= |$)", "\n".join(lines), re.MULTILINE)) == 16
    assert sum(line.startswith(("q_proj ", "down_proj ")) for line in lines) == 2


def test_the_report_measures_against_the_source(source: Path, tmp_path: Path, text: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    told = ("--report", "--text", text, "--windows", 1, "--json", "--html", page)
    printed: dict[str, Any] = json.loads(call("quantize", source, "-o", out, "--scheme", "int8", *told))
    assert printed["quality"]["kl_mean"]["value"] < 0.1
    assert printed["quality"]["same_top"]["value"] > 0.8
    assert printed["tensors"]["model.layers.0.mlp.up_proj.weight"]["snr_db"] > 40
    assert "up_proj" in page.read_text()


def test_every_option_reaches_the_output(source: Path, tmp_path: Path) -> None:
    options = ["--codebook", "nf4", "--embedding", "float", "--head", "int4", "--override", "*.o_proj=float"]
    call("quantize", source, "-o", tmp_path / "out", *options, "--group-size", 64)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["codebook"] == "nf4"
    assert config["overrides"] == ["*.o_proj=float"]
    index = open_checkpoint(tmp_path / "out").index()
    packing = index["model.layers.0.mlp.up_proj.weight"].packing
    assert packing is not None
    assert packing.group == 64
    assert index["model.layers.0.self_attn.o_proj.weight"].packing is None
    assert index["model.embed_tokens.weight"].packing is None


def test_gptq_needs_no_text_of_ones_own(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.texts.WINDOWS", 2)
    call("quantize", source, "-o", tmp_path / "out", "--scheme", "int4-gptq")
    assert open_checkpoint(tmp_path / "out").config.quantization is not None


@pytest.mark.parametrize(("option", "value", "most"), [("--target-bpw", "6.2", 6.2), ("--fits", "190kB", 190_000)])
def test_a_size_is_kept_to_and_what_was_chosen_is_said(
    source: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, most: float
) -> None:
    monkeypatch.setattr("quantize.texts.WINDOWS", 3)
    arguments = ["quantize", str(source), "-o", str(tmp_path / "out"), option, value, "--calibration", str(text)]
    told = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    chosen = re.fullmatch(r"chosen: (.*): (\d+) kB \((.*) bits a weight\)\n", told.stderr)
    assert chosen
    facts = json.loads(told.stdout)
    counts = Counter(each["scheme"].removesuffix(" gauss") for name, each in facts["tensors"].items() if _linear(name))
    assert chosen[1] == ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common())
    assert len(counts) > 1
    assert int(chosen[2]) == round(facts["bytes"] / 1000)
    assert chosen[3] == f"{facts['bits_per_weight']:.2f}"
    assert 0.95 * most < facts["bytes" if option == "--fits" else "bits_per_weight"] <= most
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert len(config["overrides"]) == 14
    add = FolderWriter.add

    def broken(self: FolderWriter, name: str, *rest: Any) -> None:
        if name.startswith("model.layers.1."):
            raise KeyboardInterrupt
        add(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "add", broken)
        broken_off = CliRunner().invoke(app, ["quantize", str(source), "-o", str(tmp_path / "again"), *arguments[4:]])
    assert "interrupted; the same command with --resume goes on from here\n" in broken_off.stderr
    assert not (tmp_path / "again").exists()
    begun, *done = (tmp_path / ".again.partial/journal.jsonl").read_text().splitlines()
    assert done and json.loads(begun)["calibration"] is None, "the text has done its work"
    call("quantize", source, "-o", tmp_path / "again", *arguments[4:], "--resume")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def _linear(name: str) -> bool:
    return ".layers." in name and "norm" not in name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target-bpw", 5, "--fits", "1GB"], "both given; give one of them"),
        (["--fits", "lots"], "'lots' is no size; nothing was converted; write it like 6GB"),
        (["--target-bpw", "nan"], "--target-bpw is nan; nothing was converted; give bits from 1 to 16"),
        (["--target-bpw", 0.5], "--target-bpw is 0.5"),
        (["--target-bpw", 2], r"bits a weight\) was allowed, and the least that this model takes is .*--embedding"),
        (
            ["--target-bpw", 5, "--scheme", "int8"],
            "bits are chosen between int8 and int4 or int4-gptq, and int8 was named",
        ),
    ],
)
def test_a_size_that_cannot_be_is_refused_in_a_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], says: str
) -> None:
    monkeypatch.setattr("quantize.texts.WINDOWS", 2)
    with pytest.raises(UsageError, match=says):
        call("quantize", source, "-o", tmp_path / "out", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("scheme", ["int4-gptq", "int4", "int8"])
def test_a_model_with_nothing_to_quantize_is_told_so_and_leaves_nothing(tmp_path: Path, scheme: str) -> None:
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    source = save_hf(tiny_model(hidden_size=60, intermediate_size=100, **heads), tmp_path / "source")
    save_tokenizer(source)
    with pytest.raises(ModelError, match="nothing to quantize"):
        call("quantize", source, "-o", tmp_path / "out", "--scheme", scheme)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_options_come_from_a_file_and_flags_go_before_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / "quant.json").write_text('{"scheme": "int8", "group_size": 64}')
    call("quantize", source, "-o", tmp_path / "out", "--config", tmp_path / "quant.json", "--group-size", 32)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (config["scheme"], config["group_size"]) == ("int8", 32)


def test_quantizing_twice_is_warned_of(source: Path, tmp_path: Path) -> None:
    call("quantize", source, "-o", tmp_path / "once", "--scheme", "int8")
    arguments = ["quantize", str(tmp_path / "once"), "-o", str(tmp_path / "twice")]
    assert "quantized already" in CliRunner().invoke(app, arguments, catch_exceptions=False).stderr


def test_eval_prints_every_statistic_with_its_error(source: Path, tmp_path: Path, text: Path) -> None:
    call("quantize", source, "-o", tmp_path / "out")
    printed = call("eval", "-m", tmp_path / "out", "--against", source, "--text", text, "--window", 64, "--windows", 2)
    for label in ("perplexity", "ratio", "KL divergence, mean", "Δp", "same most likely", "percentiles", "±"):
        assert label in printed
    alone = json.loads(call("eval", "-m", source, "--text", text, "--window", 64, "--windows", 2, "--json"))
    assert alone["perplexity"]["error"] > 0
    assert "kl_mean" not in alone


def test_a_text_too_short_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("the fox")
    with pytest.raises(UsageError, match="less than a window"):
        call("eval", "-m", source, "--text", tmp_path / "short")
