"""The config file: strictly read, carefully written, and weaker than the environment and the command line."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from llamachat.cli import defaults
from llamachat.cli.main import app, main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the config file lies; its folder is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("LLAMACHAT_")]:
        monkeypatch.delenv(name)
    return tmp_path / "config/llamachat/config.toml"


@pytest.fixture
def run(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamachat", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return go


def write(file: Path, text: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def parsed(*arguments: str) -> dict[str, Any]:
    """What a command line comes to, without running it."""
    name, *rest = arguments
    root = _root()
    return dict(root.command.commands[name].make_context(name, rest, parent=root).params)


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(*arguments: str) -> tuple[Any, ...]:
        found = parsed("complete", *arguments)
        return found["top_k"], found["temperature"], found["stop"], found["engine"].value, found["offline"]

    assert seen() == (None, None, [], "auto", False)
    write(
        file, 'top-k = 10\ntemperature = 1\nstop = ["a", "b c"]\nengine = "torch"\noffline = true\nno-history = true\n'
    )
    assert seen() == (10, 1.0, ["a", "b c"], "torch", True)
    monkeypatch.setenv("LLAMACHAT_TOP_K", "20")
    assert seen()[0] == 20
    assert seen("--top-k", "30", "--stop", "x")[:3] == (30, 1.0, ["x"])
    assert parsed("chat")["no_history"] is True
    write(file, 'show-thinking = true\nthink = "off"\nthink-budget = 9')
    assert parsed("chat")["show_thinking"] is True and parsed("chat", "--hide-thinking")["show_thinking"] is False
    assert (parsed("complete")["think"], parsed("complete")["think_budget"]) == ("off", 9)
    monkeypatch.setenv("LLAMACHAT_SHOW_THINKING", "0")
    monkeypatch.setenv("LLAMACHAT_THINK", "on")
    assert (parsed("chat")["show_thinking"], parsed("chat")["think"]) == (False, "on")


def test_a_path_is_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, 'system-file = "prompt.txt"')
    assert parsed("chat")["system_file"] == file.parent / "prompt.txt"
    monkeypatch.setenv("HOME", "/home/me")
    write(file, 'system-file = "~/prompt.txt"')
    assert parsed("chat")["system_file"] == Path("/home/me/prompt.txt")


def test_the_weaker_of_two_system_prompts_gives_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(*arguments: str) -> tuple[Any, Any]:
        found = parsed("chat", *arguments)
        return found["system"], found["system_file"]

    write(file, 'system = "mine"')
    assert seen("--system-file", "x") == (None, Path("x"))
    monkeypatch.setenv("LLAMACHAT_SYSTEM_FILE", "y")
    assert seen() == (None, Path("y"))
    assert seen("-s", "typed") == ("typed", None)
    assert seen("-s", "typed", "--system-file", "x") == ("typed", Path("x")), "which the command refuses"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("top_k = 3", r"unknown key 'top_k' in .*config\.toml; nothing was started; did you mean top-k\?"),
        ("[chat]\ntop-k = 3", "unknown key 'chat'"),
        ("help = true", "unknown key 'help' .*; correct it, or take it out with `llamachat config unset help`"),
        ('"a b" = 1', "take it out with `llamachat config unset 'a b'`"),
        ("top-p = 2", "top_p is 2.0.*; correct it, or take it out with `llamachat config unset top-p`"),
        ("json = true", "unknown key 'json'"),
        ("top-k = 1.5", r"top-k = '1\.5' in .*config\.toml is not a whole number; nothing was started"),
        ('top-k = "3"', "is not a whole number"),
        ("top-k = true", r"top-k = True in .*config\.toml is not a whole number; nothing was started; correct it"),
        ("temperature = -1", "temperature is -1"),
        ("temperature = inf", "temperature is inf"),
        ("ctx-size = 3", "is not a whole number from 16 on"),
        ("ctx-size = 99999999999999", "the context size is 99999999999999"),
        ("kv-bits = 7", "kv_bits is 7"),
        ('engine = "fast"', "is not one of auto, native, torch"),
        ("model = 3", "is not text in quotes"),
        ("model = true", "is not text in quotes"),
        ("offline = 1", "is not true or false"),
        ('offline = "yes"', "is not true or false"),
        ('stop = "END"', "is not a list of texts"),
        ('stop = ["a", 3]', "is not a list of texts"),
        ('stop = [""]', "a stop string is empty"),
        ("top-k", r"config\.toml cannot be read"),
        (b"model = '\xff'", r"config\.toml cannot be read"),
        (f"top-k = {'9' * 5000}", r"config\.toml cannot be read"),
        ("model = " + "[" * 9999, r"config\.toml cannot be read"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_what_a_flag_would_not_take_is_one_line_that_names_file_and_key(
    file: Path, run: Run, text: str | bytes, says: str
) -> None:
    write(file, text)
    code, out, err = run("complete", "hi")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert re.search(says, err) and "config.toml" in err and len(err) < 700


def test_help_needs_no_good_file(file: Path, run: Run) -> None:
    expected = run("complete", "--help")
    write(file, "nonsense")
    assert run("complete", "--help") == expected
    assert expected[0] == 0 and "Examples:" in expected[1]


def test_config_lists_every_flag_of_chat_with_its_source(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, 'top-k = 10\nstop = ["a", "b c"]\nmodel = "a\\u001b]0;x\\u0007b"')
    monkeypatch.setenv("LLAMACHAT_TOP_P", "0.5")
    rows = dict(line.split("\t", 1) for line in run("config")[1].splitlines())
    assert rows["top-k"] == "10\tconfig.toml" and rows["stop"] == "'a' 'b c'\tconfig.toml"
    assert rows["top-p"] == "0.5\tLLAMACHAT_TOP_P"
    assert rows["model"] == "ab\tconfig.toml", "shown safely"
    assert (rows["engine"], rows["seed"], rows["offline"]) == ("auto\tdefault", "\tdefault", "false\tdefault")
    told = {row["name"]: (row["value"], row["from"]) for row in json.loads(run("config", "--json")[1])}
    assert told.keys() == rows.keys()
    assert told["stop"] == (["a", "b c"], "config.toml") and told["seed"] == (None, "default")


def test_get_prints_the_value_alone(file: Path, run: Run) -> None:
    write(file, 'top-k = 10\nstop = ["a", "b c"]\noffline = true')
    values = [run("config", "get", name) for name in ("top-k", "stop", "offline", "seed", "engine")]
    assert values == [(0, out, "") for out in ("10\n", "a\nb c\n", "true\n", "", "auto\n")]
    write(file, 'system = "two\\nlines\\u001b[2J"')
    assert run("config", "get", "system") == (0, "two\nlines\n", "")
    code, _, err = run("config", "get", "topk")
    assert code == 2 and "did you mean top-k?" in err


def test_set_and_unset_keep_the_rest_to_the_letter(file: Path, run: Run) -> None:
    before = "# mine\n\nseed=1   # lucky\r\n  temperature = 0.50 # warm\n"
    write(file, before)
    file.chmod(0o640)
    assert run("config", "set", "temperature", "0.9") == (0, "", "")
    assert file.read_bytes().decode() == before.replace("0.50", "0.9")
    assert run("config", "set", "stop", "###", 'a"b') == (0, "", "")
    assert defaults.read(file, _chat()) == {"seed": 1, "temperature": 0.9, "stop": ["###", 'a"b']}
    assert run("config", "unset", "stop")[0] == run("config", "unset", "temperature")[0] == 0
    assert "# mine" in file.read_text() and defaults.read(file, _chat()) == {"seed": 1}
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


def _chat() -> Any:
    return defaults.chat_context(_root())


def _root() -> Any:
    group: Any = typer.main.get_command(app)
    return group.make_context("llamachat", ["chat"])


@pytest.mark.parametrize(
    ("name", "typed", "toml"),
    [
        ("top-k", "10", "top-k = 10"),
        ("temperature", "1", "temperature = 1.0"),
        ("presence-penalty", "-0.5", "presence-penalty = -0.5"),
        ("model", "smollm2-135m", 'model = "smollm2-135m"'),
        ("engine", "torch", 'engine = "torch"'),
        ("offline", "true", "offline = true"),
        ("no-history", "false", "no-history = false"),
        ("system", "über 'all'", "system = \"über 'all'\""),
    ],
)
def test_set_writes_the_flags_type(file: Path, run: Run, name: str, typed: str, toml: str) -> None:
    assert run("config", "set", name, typed) == (0, "", "")
    assert file.read_text(encoding="utf-8") == toml + "\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("top-k", "x"), 2, "top-k = 'x' is not a whole number; nothing was set"),
        (("top-p", "3"), 2, "top_p is 3.0; allowed is a number from 0 to 1; nothing was set"),
        (("top_k", "3"), 2, "did you mean top-k?"),
        (("top-k", "3", "4"), 2, "top-k takes one value, not 2; nothing was set"),
        (("top-k",), 2, "VALUE is missing"),
        (("temperature", "-1"), 2, "temperature is -1.0; allowed is a number from 0 to 100; nothing was set"),
        (("model", "nope"), 2, "no model is called 'nope'"),
        (("persona", "nope"), 2, "no persona is called 'nope'"),
    ],
)
def test_set_checks_as_the_flag_does(file: Path, run: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = run("config", "set", *arguments)
    assert (got, out, err.count("\n")) == (code, "", 1) and says in err
    assert not file.exists()


def test_a_wrong_value_can_be_corrected_and_a_wrong_key_removed(file: Path, run: Run) -> None:
    write(file, 'temperature = "x"\nwarmth = 3\n')
    assert run("config", "set", "temperature", "0.5")[0] == run("config", "unset", "warmth")[0] == 0
    assert run("config", "get", "temperature")[1] == "0.5\n"
    assert run("config", "unset", "warmth")[::2] == (
        2,
        f"error: 'warmth' is not set in {file}; nothing was changed\n",
    )


def test_what_is_no_toml_is_left_as_it_is(file: Path, run: Run) -> None:
    write(file, "temperature 0.5")
    code, _, err = run("config", "set", "top-k", "3")
    assert code == 3 and "it was not changed" in err and err.count("\n") == 1
    assert file.read_text() == "temperature 0.5"


def test_a_linked_file_stays_a_link(file: Path, run: Run, tmp_path: Path) -> None:
    file.parent.mkdir(parents=True)
    file.symlink_to(tmp_path / "dotfile")
    run("config", "set", "top-k", "3")
    assert file.is_symlink() and (tmp_path / "dotfile").read_text() == "top-k = 3\n"


def test_a_folder_that_cannot_be_written_is_one_line(file: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("in the way")
    code, _, err = run("config", "set", "top-k", "3")
    assert code == 2 and "cannot be written" in err and err.count("\n") == 1


def test_path_is_printed(file: Path, run: Run) -> None:
    assert run("config", "path") == (0, f"{file}\n", "")
