"""A question on the command line, ollama's command names, and words that are neither: dispatch alone, no model is loaded."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from llamachat.cli.main import app, main

ROOT: Any = typer.main.get_command(app)
Run = Callable[..., tuple[int, str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command line whose chat is not held -> exit code, stderr, and what the chat would have got: question and model."""
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    monkeypatch.setattr("llamachat.cli.main.app", ROOT)  # made once
    chats: list[dict[str, Any]] = []

    def hold(start: Any, **given: Any) -> int:
        chats.append(given | {"options": start.__self__.options, "name": start.__self__.name})
        return 0

    monkeypatch.setattr("llamachat.ui.app.run", hold)
    monkeypatch.setattr("llamachat.cli.chat.obtain", lambda options, entry: None)

    def go(*arguments: str, stdin: str = "") -> tuple[int, str, Any]:
        chats.clear()
        monkeypatch.setattr(sys, "argv", ["llamachat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        return int(exit.value.code or 0), capsys.readouterr().err, chats[0] if chats else None

    return go


@pytest.mark.parametrize(
    "arguments",
    [
        ("two words", "--temp", "0"),
        ("--temp", "0", "two words"),
        ("chat", "two words", "--temp", "0"),
        ("chat", "--temp", "0", "two words"),
        ("run", "smollm2-135m", "two", "words", "--temp", "0"),
        ("run", "--temp", "0", "smollm2-135m", "two words"),
    ],
)
def test_a_question_begins_a_chat_with_flags_before_or_behind_it(run: Run, arguments: tuple[str, ...]) -> None:
    code, err, chat = run(*arguments)
    assert (code, err, chat["question"], chat["options"].temperature) == (0, "", "two words", 0)
    assert chat["options"].model == ("smollm2-135m" if arguments[0] == "run" else None)


def test_what_is_piped_follows_the_question(run: Run) -> None:
    assert run("what changed?", stdin="a\nb\n")[2]["question"] == "what changed?\n\na\nb"
    assert run("chat", "Hi", stdin="")[2]["question"] == "Hi"
    assert run(stdin="one\ntwo\n")[2]["question"] is None, "each line is a message"
    assert run("run", "smollm2-135m", stdin="one\ntwo\n")[2]["question"] == "one\ntwo", "as ollama does it"


@pytest.mark.parametrize("word", ["hi", "What", "Hello!", "/etc/hosts-or-what", "/help", "42", "warum?", "-"])
def test_one_word_is_a_question_when_it_is_like_nothing_else(run: Run, word: str) -> None:
    assert run(word)[2]["question"] == word


def test_c_goes_on_with_the_latest_dialog(run: Run, tmp_path: Path) -> None:
    assert run("-c")[:2] == (2, "error: there is no dialog to continue; start one without --continue\n")
    (tmp_path / "llamachat/sessions").mkdir(parents=True)
    for age, name in enumerate(("second", "first")):
        file = tmp_path / f"llamachat/sessions/{name}.jsonl"
        file.touch()
        os.utime(file, (10**9 - age, 10**9 - age))
    assert run("-c", "and then?")[2]["name"] == run("--continue")[2]["name"] == "second"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("modles",), "there is no command modles; nothing was started; did you mean models? `llamachat chat \"modles\"`"),
        (("complte", "x"), "did you mean complete? `llamachat \"complte x\"` asks that"),
        (("List", "three", "fruits", "-n", "9"), "did you mean list? `llamachat \"List three fruits\"` asks that"),
        (("create", "a", "poem"), "models.toml keeps models; `llamachat \"create a poem\"` asks that"),
        (("What", "is", "this"), "'is' is one argument too many; nothing was started; put a question of several words in "
            "quotes: `llamachat \"What is this\"`"),
        (("What", "costs", "$5?"), "in quotes: `llamachat 'What costs $5?'`"),
        (("hcat",), "did you mean chat?"),
        (("Chat",), "did you mean chat?"),
        (("llama-3.2-1b",), "`llamachat -m llama-3.2-1b` chats with a model"),
        (("llama3.2",), "`llamachat -m llama3.2` chats with a model"),
        (("hf:owner/repo:Q4_K_M",), "`llamachat -m hf:owner/repo:Q4_K_M` chats"),
        (("missing.gguf",), "missing.gguf alone is no question"),
        (("--temp", "0", "complete", "hi"), "complete stands behind flags; nothing was started; write `llamachat complete`"),
        (("--temp", "0", "complte"), "did you mean complete?"),
        (("why", "is", "it"), "nothing was started; put a question of several words in quotes: `llamachat \"why is it\"`"),
        (("chat", "why", "is"), "put a question of several words in quotes"),
        (("",), "the question is empty"),
        (("chat", " \n"), "the question is empty"),
        (("serve",), "--server URL asks one that runs"),
        (("push", "x"), "nothing is ever uploaded"),
        (("create", "x", "-f", "y"), "a persona keeps"),
        (("cp", "a", "b"), "models.toml"),
        (("stop", "x"), "no model stays loaded"),
        (("ps",), "no model stays loaded"),
        (("run",), "MODEL is missing"),
        (("run", "smollm2-135m"), "there is no prompt"),
    ],
)  # fmt: skip
def test_what_is_meant_otherwise_gets_the_hint_that_fits(run: Run, arguments: tuple[str, ...], says: str) -> None:
    code, err, chat = run(*arguments)
    assert (code, chat, err.count("\n")) == (2, None, 1) and err.startswith("error: ") and says in err


def test_a_path_that_is_there_is_a_model_and_its_name_may_be_sent(run: Run, tmp_path: Path) -> None:
    assert "alone is no question" in run(str(tmp_path))[1]
    assert run("chat", str(tmp_path))[2]["question"] == str(tmp_path)


def test_ollamas_names_are_our_commands_that_help_names_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ROOT.commands["models"].commands
    for name, meant in {"pull": "pull", "ls": "list", "list": "list", "show": "show", "rm": "rm"}.items():
        command = ROOT.commands[name]
        assert command.hidden and command.callback.__wrapped__ is ours[meant].callback.__wrapped__
    monkeypatch.setattr("llamachat.cli.main.app", ROOT)
    told = list[str]()
    for arguments in (["help"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["llamachat", *arguments])
        with pytest.raises(SystemExit):
            main()
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "run, pull, ls, list, show and rm do what ollama's do" in told[0]
