"""The clipboard: by a program of the platform where one can know, by the terminal else, and always told which."""

import base64
from pathlib import Path

import pytest

from llamachat.errors import UsageError
from llamachat.ui.clipboard import LIMIT, copy
from llamachat.ui.markdown.snippets import snippets


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of programs: each writes what it is given, and how it is called, beside itself."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def install(folder: Path, *names: str, then: str = "") -> None:
    for name in names:
        (folder / name).write_text(
            f'#!/bin/sh\n/bin/cat > "{folder}/{name}.got"\necho "$@" > "{folder}/{name}.args"\n{then}\n'
        )
        (folder / name).chmod(0o700)


def copied(text: str, environ: dict[str, str], platform: str = "linux", patience: float = 5.0) -> tuple[str, list[str]]:
    sent = list[str]()
    return copy(text, sent.append, environ, platform, patience), sent


@pytest.mark.parametrize(
    ("variable", "program", "arguments", "encoding"),
    [
        ("WAYLAND_DISPLAY", "wl-copy", "", "utf-8"),
        ("DISPLAY", "xclip", "-selection clipboard", "utf-8"),
        ("DISPLAY", "xsel", "--clipboard --input", "utf-8"),
        ("WSL_DISTRO_NAME", "clip.exe", "", "utf-16"),
        ("TERMUX_VERSION", "termux-clipboard-set", "", "utf-8"),
        ("", "pbcopy", "", "utf-8"),
    ],
)
def test_a_program_of_the_platform_is_given_the_text(
    tools: Path, variable: str, program: str, arguments: str, encoding: str
) -> None:
    install(tools, program)
    environ = {"PATH": str(tools)} | ({variable: "1"} if variable else {})
    told, sent = copied("ü\x1b]52;c;x\x07\n" * 70_000, environ, "linux" if variable else "darwin")
    assert (told, sent) == (f"140000 characters copied by {program}", [])
    assert (tools / f"{program}.got").read_bytes().decode(encoding) == "ü\n" * 70_000
    assert (tools / f"{program}.args").read_text().strip() == arguments


def test_through_ssh_and_without_a_display_it_is_the_terminal(tools: Path) -> None:
    install(tools, "wl-copy", "xclip")
    sequence = f"\x1b]52;c;{base64.b64encode(b'text').decode()}\x07"
    told = "4 characters sent to the terminal's clipboard"
    assert copied("text", {"PATH": str(tools)}) == (told, [sequence])
    assert not list(tools.glob("*.got"))
    away = {"PATH": str(tools), "DISPLAY": ":10", "SSH_CONNECTION": "a b"}
    assert copied("text", away) == (f"{told}, and copied by xclip on this machine", [sequence])


def test_a_program_that_fails_or_hangs_is_told_of_and_the_terminal_asked(tools: Path) -> None:
    environ = {"PATH": str(tools), "DISPLAY": ":0"}
    told = "4 characters sent to the terminal's clipboard; xclip "
    install(tools, "xclip", then="exit 3")
    assert copied("text", environ)[0] == told + "failed (exit code 3)"
    install(tools, "xclip", then="exec /bin/sleep 60")
    assert copied("text", environ, patience=0.1)[0] == told + "did not answer"
    (tools / "xclip").write_text("no program\0")
    assert copied("text", environ)[0].startswith(told + "failed (")


def test_a_program_in_a_relative_folder_is_not_run(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tools, "xclip")
    monkeypatch.chdir(tools.parent)
    for path in ("bin", "./bin:", ".", ""):
        assert "xclip" not in copied("text", {"PATH": path, "DISPLAY": ":0"})[0]


def test_what_no_way_takes_is_refused(tools: Path) -> None:
    with pytest.raises(UsageError, match="more than a terminal's clipboard takes"):
        copied("x" * (LIMIT + 1), {})
    with pytest.raises(UsageError, match="this terminal has no clipboard"):
        copied("x", {"TERM": "dumb"})
    install(tools, "xclip")
    assert copied("x", {"TERM": "dumb", "PATH": str(tools), "DISPLAY": ":0"})[1] == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Words `x` only.", []),
        ("```make\nall:\n\techo $$x\n\n```\nand\n~~~\n  b\n~~~", ["all:\n\techo $$x\n", "  b"]),
        ("```\na\n```\n```\nb\n```", ["a", "b"]),
        ("1. do\n   ```py\n   if x:\n       y\n\n   z\n   ```\n2. that", ["if x:\n    y\n\nz"]),
        ("> ```\n> q\n> ```", ["q"]),
        ("so:\n\n    one\n\n      two\n\nend", ["one\n\n  two"]),
        ("cut off\n```c\nint x;", ["int x;"]),
        ("````\n```\n````", ["```"]),
        ("```\n" + "long " * 1000 + "\n```", ["long " * 1000]),
    ],
)
def test_code_blocks_are_found_as_they_are_written(text: str, code: list[str]) -> None:
    assert snippets(text) == code
