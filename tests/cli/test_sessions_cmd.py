"""`llamachat sessions`: what lies on disk is listed, shown, searched, renamed, exported and deleted outside a chat."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeSession

from llamachat.chat.store import Archive
from llamachat.cli.main import main

Command = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Two dialogs, "work" the latest."""
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    archive = Archive(tmp_path / "llamachat/sessions")
    for name, question, answer in (("old", "What is bread?", "*Flour*.\n\nAnd water."), ("work", "Hello", "Bread?")):
        session = FakeSession((answer,), archive=archive)
        list(session.ask(question))
        session.save(name)
        session.close()
    return archive


@pytest.fixture
def command(archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `llamachat sessions …`; returns exit code, lines of stdout, stderr."""

    def run(*words: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["llamachat", "sessions", *words])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out.splitlines(), captured.err

    return run


def test_dialogs_are_listed_the_latest_first(command: Command, archive: Archive) -> None:
    code, lines, err = command("list")
    rows = [line.split("\t") for line in lines]
    assert (code, err) == (0, "") and [(row[0], *row[2:]) for row in rows] == [
        ("work", "1", "Fake-1B", "Hello"),
        ("old", "1", "Fake-1B", "What is bread?"),
    ]
    listed = json.loads("\n".join(command("list", "--json")[1]))
    assert [sorted(each) for each in listed] == [["model", "modified", "name", "questions", "title"]] * 2
    assert listed[1]["title"] == "What is bread?"


def test_a_dialog_is_shown(command: Command) -> None:
    assert command("show", "old") == (0, ["> What is bread?", "*Flour*.", "", "And water."], "")
    assert command("show", "old", "-n", "0")[2].startswith("error: -n cannot be '0'; nothing was done; give a whole")
    code, lines, err = command("show", "wrok")
    assert (code, lines) == (2, []) and "did you mean work?" in err and err.count("\n") == 1


def test_a_search_goes_through_all(command: Command) -> None:
    found = ["work\tanswer\tBread?", "old\tquestion\tWhat is bread?"]
    assert command("search", "bREad?") == (0, found, "")
    assert command("search", "and", "water") == (0, ["old\tanswer\tAnd water."], "")
    code, lines, err = command("search", "cake")
    assert (code, lines) == (0, []) and "'cake'" in err
    assert command("search", " ")[0] == 2


def test_a_dialog_is_renamed_and_exported(command: Command, archive: Archive, tmp_path: Path) -> None:
    assert command("rename", "old", "bread")[0] == 0
    assert command("export", "bread", str(tmp_path / "a.json"))[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["messages"][-1]["content"] == "*Flour*.\n\nAnd water."
    for words in (("export", "bread", str(tmp_path / "a.json")), ("rename", "bread", "work"), ("rename", "old", "x")):
        code, _, err = command(*words)
        assert code == 2 and err.count("\n") == 1
    assert {each.name for each in archive.saved()} == {"bread", "work"}


def test_deleting_wants_a_yes_and_takes_all_or_nothing(command: Command, archive: Archive) -> None:
    for words, says in (
        (("work",), "say --yes"),
        (("work", "nope", "--yes"), "no dialog called nope"),
        (("--yes",), "NAME is missing"),
    ):
        code, _, err = command("rm", *words)
        assert code == 2 and says in err and len(archive.saved()) == 2
    held = archive.hold("work")
    assert held and "another chat has work open" in command("rm", "old", "work", "--yes")[2]
    held.release()
    assert len(archive.saved()) == 2
    code, _, err = command("rm", "old", "work", "old", "--yes")
    assert (code, err) == (0, "deleted old\ndeleted work\n") and archive.saved() == []


def test_what_could_not_be_deleted_is_said_not_that_nothing_was(
    command: Command, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, questions: object) -> int:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("llamachat.chat.input_history.forget", refuse)
    code, _, err = command("rm", "old", "--yes")
    assert code == 2 and "history: No space left on device; something of old is still there; delete it yourself" in err
    assert [each.name for each in archive.saved()] == ["work"]


def test_a_damaged_dialog_is_one_line_and_can_be_deleted(command: Command, archive: Archive) -> None:
    (archive.folder / "odd.jsonl").write_text("nonsense\n")
    code, _, err = command("show", "odd")
    assert code == 3 and "odd.jsonl, line 1" in err and err.count("\n") == 1
    assert command("rm", "odd", "-y")[0] == 0
    assert command("list")[0] == 0


def test_hundreds_of_dialogs_are_listed_and_searched_without_a_model(
    command: Command, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (archive.folder / "old.jsonl").read_bytes()
    for number in range(300):
        (archive.folder / f"n{number}.jsonl").write_bytes(data)
    assert len(command("list")[1]) == 302
    assert len(command("search", "and water")[1]) == 301
