"""Completion as shells ask for it: in the environment, of the whole command, and in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import document, standing_in
from store_folders import ollama, write_header

from llamachat.cli.main import main
from llamachat.cli.shell_words import PARTED

SCRIPT = r"""
eval "$(_LLAMACHAT_COMPLETE=source_bash llamachat)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_llamachat_completion llamachat
printf '%s\n' "${COMPREPLY[@]}"
complete -p llamachat
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of a person lie who has a model, two personas and a few dialogs."""
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    (tmp_path / "llamachat/personas").mkdir(parents=True)
    (tmp_path / "llamachat/sessions").mkdir()
    (tmp_path / "llamachat/models.toml").write_text(
        '[models.zine]\nsource = { path = "x" }\ndescription = "my own"\n[models.zinc]\nsource = { path = "x" }\n'
    )
    (tmp_path / "llamachat/personas/pirate.toml").write_text('system = "Arr."')
    (tmp_path / "llamachat/personas/broken.toml").write_text("system = 3")
    for name in ("2026-01-01_10-00-00", "work", "with a space", "$(reboot)"):
        (tmp_path / f"llamachat/sessions/{name}.jsonl").touch()
    return tmp_path


def asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, shell: str = "bash"
) -> list[str]:
    """What a shell is told for the last of these words."""
    line = " ".join(["llamachat", *words])
    settings = {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_ARGS": line, PARTED: ""}
    for name, value in {**settings, "_LLAMACHAT_COMPLETE": f"complete_{shell}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setattr(sys, "argv", ["llamachat"])
    with pytest.raises(SystemExit) as exit:
        main()
    captured = capsys.readouterr()
    assert (exit.value.code or 0, captured.err) == (0, "")
    return captured.out.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["c"], ["chat", "complete", "classify", "config"]),
        (
            [""],
            [
                "chat",
                "complete",
                "classify",
                "tag",
                "extract",
                "embed",
                "sessions",
                "models",
                "config",
                "quantize",
                "eval",
                "bench",
            ],
        ),
        (["-m", "mistral-7"], ["mistral-7b"]),
        (["complete", "--model", "zin"], ["zine", "zinc"]),
        (["chat", "--model=zin"], ["zine", "zinc"]),
        (["models", "show", "zin"], ["zine", "zinc"]),
        (["models", "p"], ["pull"]),
        (["chat", "--persona", ""], ["broken", "pirate"]),
        (["--session", ""], ["2026-01-01_10-00-00", "work"]),
        (["sessions", "rm", "work", ""], ["2026-01-01_10-00-00", "work"]),
        (["sessions", "re"], ["rename"]),
        (["chat", "--engine", "t"], ["torch"]),
        (["--top"], ["--top-k", "--top-p"]),
        (["--vers"], ["--version"]),
        (["complete", "--tem"], ["--temperature", "--temp"]),
        (["config", "set", "top"], ["top-k", "top-p"]),
        (["config", "get", "eng"], ["engine"]),
        (["config", "set", "model", "zin"], ["zine", "zinc"]),
        (["config", "set", "overflow", "s"], ["stop"]),
        (["config", "set", "offline", ""], ["true", "false"]),
        (["config", "set", "nonsense", ""], []),
        (["-m", "./"], []),
        (["complete", "-f", ""], []),
    ],
)
def test_a_shell_is_offered_what_fits_and_else_its_own_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], offered: list[str]
) -> None:
    assert [line for line in asked(monkeypatch, capsys, *words) if line] == offered


def test_the_models_of_a_server_are_offered_where_one_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with standing_in([document({"data": [{"id": "zone", "max_model_len": 99}, {"id": "other"}]})]) as server:
        for words in (["--server", server.url, "-m", "z"], ["complete", "--server", server.url, "--model", "z"]):
            assert asked(monkeypatch, capsys, *words) == ["zone"]
        url = server.url
    assert [line for line in asked(monkeypatch, capsys, "--server", url, "-m", "z") if line] == []


def test_zsh_and_fish_are_told_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "zine\tmy own" in asked(monkeypatch, capsys, "-m", "zin", shell="fish")
    zsh = "".join(asked(monkeypatch, capsys, "-m", "zin", shell="zsh"))
    assert zsh == '_arguments \'*: :(("zine":"my own""zinc"))\''
    assert asked(monkeypatch, capsys, "-m", "./", shell="zsh") == ["_files"]


def test_a_broken_catalog_or_config_offers_nothing_and_says_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "llamachat/models.toml").write_text("nonsense")
    (home / "llamachat/config.toml").write_text("nonsense")
    assert [line for line in asked(monkeypatch, capsys, "-m", "") if line] == []
    assert asked(monkeypatch, capsys, "--top") == ["--top-k", "--top-p"]


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "llamachat").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{LAUNCH}" "$@"\n')
    (folder / "llamachat").chmod(0o755)
    settings = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    words = ["llamachat", "chat", "-m", "zin"]
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT, "bash", *words], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["zine", "zinc", "complete -o default -F _llamachat_completion llamachat"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["-m", "oll"], ["ollama:tiny", "ollama:tiny:1b", "ollama:tiny:2b"]),
        (["-m", "ollama", ":"], ["tiny", "tiny:1b", "tiny:2b"]),
        (["-m", "ollama", ":", "ti"], ["tiny", "tiny:1b", "tiny:2b"]),
        (["-m", "ollama", ":", "tiny", ":"], ["1b", "2b"]),
        (["complete", "--model", "ollama", ":", "tiny", ":", "1"], ["1b"]),
        (["-m", "nothing", ":", "ti"], []),
        (["--server", "http", ":", "//x", "--engine", "t"], ["torch"]),
        (["-m", '"ollama', ":"], []),
    ],
)
def test_what_bash_parts_at_colons_is_completed_behind_the_last(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    offered: list[str],
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    weights = write_header(home / "tiny.gguf")
    for tag in ("1b", "2b", "latest"):
        ollama(home / "ollama", f"registry.ollama.ai/library/tiny/{tag}", weights)
    assert [line for line in asked(monkeypatch, capsys, *words) if line] == offered


LAUNCH = "import sys; sys.argv[0] = 'llamachat'; from llamachat.cli.main import main; main()"
HEAVY = {"torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "jinja2", "prompt_toolkit"}


def test_an_answer_to_a_shell_imports_nothing_heavy() -> None:
    code = f"import atexit; atexit.register(lambda: print(*sys.modules)); {LAUNCH}"
    settings = {
        **os.environ,
        "_LLAMACHAT_COMPLETE": "complete_bash",
        "COMP_WORDS": "llamachat -m zin",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    first, second, modules = done.stdout.splitlines()
    assert (first, second) == ("zine", "zinc")
    assert not HEAVY & set(modules.split())


def test_what_is_told_of_a_name_cannot_drive_the_terminal(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "llamachat/personas/pirate.toml").write_text('system = "\\u001b]0;x\\u0007Arr\\u202e."')
    (home / "llamachat/models.toml").write_text('[models."mi\\u001b[2Jne"]\nsource = { path = "x" }\n')
    told = asked(monkeypatch, capsys, "--persona", "p", shell="fish")
    assert told == ["pirate\tArr⟨U+202E⟩."]
    assert asked(monkeypatch, capsys, "-m", "mi") == [""]
