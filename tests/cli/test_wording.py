"""What is wrong on a command line is said in our words: cause, consequence, remedy; never in a validator's."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.exceptions import TyperException

from llamachat.cli.main import app, main
from llamachat.cli.wording import worded

VALIDATORS = re.compile(
    r"[Ii]nvalid|Input should|Value error|valid (integer|number)|parse|argument\(s\)|No such|Missing|requires an argument"
)
ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def complaint(command: Any, *arguments: str) -> str:
    """Of a command line that is not run."""
    with pytest.raises(TyperException) as raised:
        command.make_context("x", list(arguments), parent=ROOT.make_context("llamachat", ["chat"]))
    error = worded(raised.value)
    assert error.exit_code == 2
    return str(error)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    monkeypatch.setattr("llamachat.cli.main.app", ROOT)  # made once


@pytest.mark.parametrize(
    ("path", "command"), [*commands()], ids=lambda each: " ".join(each) if isinstance(each, tuple) else ""
)
def test_every_option_of_every_command_refuses_what_it_cannot_take_in_our_words(
    path: tuple[str, ...], command: Any
) -> None:
    said = [complaint(command, "--no-such-option")]
    for option in command.params:
        name, kind = option.opts[0], option.type_descriptor
        if not name.startswith("-") or option.is_eager:
            continue
        if option.is_flag:
            said.append(complaint(command, f"{name}=x"))
            assert said[-1].startswith(f"{name} takes no value; nothing was done; ")
            continue
        said.append(complaint(command, name))
        assert said[-1].startswith(f"{name} is without its value")
        if kind.annotation in (int, float) or kind.choices:
            said.append(complaint(command, name, "no\x1b such"))
            assert "cannot be 'no\\x1b such'; nothing was done; give " in said[-1]
        if kind.is_ranged:
            said.append(complaint(command, name, str(kind.parameter_info.min - 1)))
            assert re.search(r"give a (whole )?number from \d+ (on|to \d+)", said[-1])
    assert [each for each in said if VALIDATORS.search(each)] == []
    assert all(each.count("; ") >= 2 and "\n" not in each for each in said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("chat --tmep 3", "there is no option --tmep; nothing was done; did you mean --temp?"),
        ("chat --temp x", "--temperature cannot be 'x'; nothing was done; give a number"),
        ("chat --ctx-size 3", "--ctx-size cannot be '3'; nothing was done; give a whole number from 16 on"),
        ("chat --engine fast", "--engine cannot be 'fast'; nothing was done; give one of auto, native, torch"),
        ("models lst", "there is no command 'lst'; nothing was done; did you mean list?"),
        ("models foo", "there is no command 'foo'; nothing was done; `llamachat models --help` lists the commands"),
        ("models show", "NAME is missing; nothing was done; `llamachat models show --help` shows what it is"),
        ("models show a b", "'b' is one argument too many; nothing was done; `llamachat models show --help` shows"),
        ("complete a b", "'b' is one argument too many; nothing was done; put a text of several words in quotes"),
        ("config set", "NAME is missing; nothing was done; "),
        ("eval", "--model is missing; nothing was done; "),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    assert _run(monkeypatch, *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {says}") and err.count("\n") == 1


def test_a_variable_is_named_where_it_set_the_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMACHAT_TEMPERATURE", "x")
    assert _run(monkeypatch, "complete", "hi") == 2
    assert capsys.readouterr().err == "error: LLAMACHAT_TEMPERATURE cannot be 'x'; nothing was done; give a number\n"


def test_a_group_alone_shows_its_help_and_no_complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "models") == 2
    out, err = capsys.readouterr()
    assert "Usage: llamachat models" in out and err == ""


@pytest.mark.parametrize("width", [30, 60, 80])
def test_at_a_terminal_a_complaint_breaks_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    _run(monkeypatch, "chat", "--tmep", "0")
    whole = capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _run(monkeypatch, "chat", "--tmep", "0")
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= width and " ".join(lines) + "\n" == whole


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llamachat", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)
