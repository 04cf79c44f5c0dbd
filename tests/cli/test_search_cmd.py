"""`llamachat models search`, and what `models show`, `pull` and `rm` do with a reference to the hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, reachable
from typer.testing import CliRunner, Result

from llamachat.cli import found_models
from llamachat.cli.models import models_app
from llamachat.errors import UsageError
from llamachat.models.fetch.hub_search import Found

FOUND = [
    Found(
        "unsloth/Qwen3-4B-Instruct-2507-GGUF",
        4_022_468_096,
        1_234_567,
        "2025-08-14",
        "apache-2.0",
        False,
        "qwen3",
        True,
    ),
    Found("a/b", None, 432, None, "\x1b[31mred\u202e", True, "gemma3n", False),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    files = {"m-Q4_K_M.gguf": b"4" * 2_000_000, "m-IQ2_M.gguf": b"2"}
    with reachable(Hub("a/b", files), tmp_path, monkeypatch) as server:
        yield server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models_app, arguments, catch_exceptions=False)


def test_off_a_terminal_rows_have_exact_numbers_and_json_has_all(hub: Hub) -> None:
    hub.found = [
        {"id": "a/b", "downloads": 1_234_567, "tags": ["license:mit"], "gguf": {"architecture": "llama", "total": 5}}
    ]
    assert run("search", "some", "words").stdout == "a/b\t5\t1234567\t?\tmit\tyes\n"
    assert hub.asked["search"] == ["some words"]
    (row,) = json.loads(run("search", "x", "--json", "--limit", "3").stdout)
    assert row["reference"] == "hf:a/b" and row["downloads"] == 1_234_567 and hub.asked["limit"] == ["3"]


def test_nothing_found_and_no_network_are_one_line(hub: Hub) -> None:
    result = run("search", "zzz")
    assert (result.stdout, result.stderr) == ("", "no GGUF repository of the hub is called like 'zzz'\n")
    with pytest.raises(UsageError, match="--offline forbids to ask the hub; nothing was searched"):
        run("search", "x", "--offline")


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_a_terminal_of_any_width_has_whole_names_and_as_much_else_as_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(found_models.sys.stdout, "isatty", lambda: True)
    found_models.found_table(FOUND)
    text = re.sub(r"\x1b\[[01]m", "", capsys.readouterr().out)
    assert all(each.name in text for each in FOUND) and not {"\x1b", "\u202e"} & {*text}
    assert ("4.0B" in text, "1.2M" in text, "2025-08-14" in text) == (width > 30, width > 80, width > 80)
    longest = max(map(len, text.splitlines()[:-1]))
    assert longest <= width or width == 30


def test_show_tells_what_a_repository_has_and_what_would_be_taken(hub: Hub) -> None:
    lines = dict(line.split(maxsplit=1) for line in run("show", "hf:a/b").stdout.splitlines())
    assert lines["source"] == "hf:a/b/m-Q4_K_M.gguf@main" and lines["download"] == "2 MB"
    assert lines["quants"] == "Q4_K_M 2 MB, IQ2_M 0 kB (not read)" and lines["memory"].endswith("is free: fits")
    quants = json.loads(run("show", "hf:a/b", "--json").stdout)["quants"]
    assert quants[0] == {"quant": "Q4_K_M", "files": ["m-Q4_K_M.gguf"], "bytes": 2_000_000, "reads": True, "fits": True}
    hub.log.clear()
    assert "quants" not in run("show", "hf:a/b", "--offline").stdout and hub.log == []


def test_pull_says_what_it_takes_and_rm_takes_it_away(hub: Hub) -> None:
    result = run("pull", f"{hub.url}/a/b")
    assert result.stdout.endswith("m-Q4_K_M.gguf\n")
    assert result.stderr == "asking for a/b\nhf:a/b: m-Q4_K_M.gguf, 2 MB\nfetching a/b (2 MB)\nchecking a/b (2 MB)\n"
    assert run("rm", "hf:a/b:q4_k_m").stdout == "hf:a/b:Q4_K_M: 2 MB freed\n"


def test_pull_warns_of_what_will_not_fit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.models.fit.available_memory", lambda: 1 << 20)
    assert "note: hf:a/b does not seem to fit: " in run("pull", "hf:a/b").stderr
