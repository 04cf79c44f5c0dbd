"""environment.py: every program that is started sees what it needs of the environment and none of the person's secrets."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import llamachat
import quantize
from llamachat.system import environment
from llamachat.ui import editor

STARTS = {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")}
FORBIDDEN = {"system", "popen", "fork", "forkpty", "startfile"}  # of os, beside exec…, spawn… and posix_spawn…
SECRETS = {
    "HF_TOKEN": "x",
    "HUGGING_FACE_HUB_TOKEN": "x",
    "OPENAI_API_KEY": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "GITHUB_TOKEN": "x",
    "SSH_AUTH_SOCK": "x",
    "LD_PRELOAD": "x",
    "PYTHONSTARTUP": "x",
}


@pytest.fixture(scope="module")
def sources() -> dict[Path, list[ast.AST]]:
    """Every node of every file."""
    files = (file for package in (llamachat, quantize) for file in Path(package.__file__ or "").parent.rglob("*.py"))
    return {file: [*ast.walk(ast.parse(file.read_bytes()))] for file in files}


def starts(sources: dict[Path, list[ast.AST]]) -> Iterator[tuple[Path, ast.Call]]:
    """Every call that starts a program."""
    for file, nodes in sources.items():
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in STARTS:
                yield file, node


def test_every_program_is_started_with_an_environment_of_its_own(sources: dict[Path, list[ast.AST]]) -> None:
    found = list(starts(sources))
    assert len(found) >= 6
    for file, call in found:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        names = ast.unparse(ast.parse(file.read_bytes()))
        made = given.get("env", "")
        assert made in ("env", "environment") or made.startswith("environment.of_"), f"{file}:{call.lineno}"
        assert "environment.of_" in names, file


def test_no_program_is_started_in_another_way(sources: dict[Path, list[ast.AST]]) -> None:
    for file, nodes in sources.items():
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not imported & {
            "multiprocessing",
            "pty",
            "asyncio.subprocess",
            "webbrowser",
            "concurrent.futures.process",
        }
        calls = [node for node in nodes if isinstance(node, ast.Attribute)]
        used = {each.attr for each in calls if isinstance(each.value, ast.Name) and each.value.id == "os"}
        assert not {name for name in used if name in FORBIDDEN or name.startswith(("exec", "spawn", "posix_spawn"))}, (
            file
        )
        assert "subprocess" not in {n.module for n in nodes if isinstance(n, ast.ImportFrom)}, file


KINDS = {
    "python": environment.of_python,
    "ourselves": environment.of_ourselves,
    "pip": lambda: environment.of_pip({}),
    "compiler": environment.of_compiler,
    "editor": environment.of_editor,
    "clipboard": environment.of_clipboard,
}


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_passed_to_no_one_and_what_all_need_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"PATH": "/bin", "HOME": "/home", "LANG": "C", "LC_ALL": "C", "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/c"}
    for name, value in {**SECRETS, **needed}.items():
        monkeypatch.setenv(name, value)
    passed = KINDS[kind]()
    assert "x" not in passed.values() and passed.items() >= needed.items()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("pip", "https_proxy"),
        ("pip", "SSL_CERT_FILE"),
        ("pip", "PIP_INDEX_URL"),
        ("editor", "TERM"),
        ("editor", "WAYLAND_DISPLAY"),
        ("ourselves", "HF_HOME"),
        ("python", "PYTHONPATH"),
        ("compiler", "SDKROOT"),
        ("clipboard", "WAYLAND_DISPLAY"),
        ("clipboard", "WSL_INTEROP"),
        ("clipboard", "TERMUX_VERSION"),
    ],
)
def test_each_gets_what_it_is_for(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "there")
    assert KINDS[kind]()[name] == "there"


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_editor_sees_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "editor").write_text('#!/bin/sh\nenv > "$1"\n')
    (tmp_path / "editor").chmod(0o700)
    monkeypatch.setenv("VISUAL", str(tmp_path / "editor"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = editor.edited("text")
    assert "PATH=" in seen and "secret" not in seen
