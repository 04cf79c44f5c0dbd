"""`llamachat chat` with saved dialogs: what it leaves on disk, and how it goes on from there."""

import json
import re
from pathlib import Path

import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model
from test_cli import Run, compiled, run

__all__ = ["compiled", "run"]

TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{{ eos_token }}{% endfor %}{{ bos_token }}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, compiled: Path | None) -> str:
    """A tiny random model that can chat."""
    folder = save_hf(tiny_model(), tmp_path_factory.mktemp("chatting"))
    save_tokenizer(folder)
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


CHAT = ("-m", "TINY", "-n", "6", "--temp", "0")


def sessions(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "DATA/llamachat/sessions").glob("*.jsonl"))


def snapshots(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "CACHE/llamachat/snapshots").glob("*"))


def test_a_chat_is_saved_and_continued_with_its_model_and_settings(run: Run, tmp_path: Path) -> None:
    code, first, err = run("chat", *CHAT, "-s", "Be brief.", stdin="one\n")
    assert code == 0 and first, err
    (path,) = sessions(tmp_path)
    (kept,) = snapshots(tmp_path)
    code, second, err = run("chat", "--continue", stdin="two\n")
    assert code == 0 and second, err
    whole = run("chat", *CHAT, "-s", "Be brief.", "--no-history", stdin="one\ntwo\n")[1]
    assert whole == first + second, "as if it had never been left"
    assert sessions(tmp_path) == [path] and snapshots(tmp_path) == [kept]
    assert not (tmp_path / "STATE/llamachat/first-starts").exists(), "nobody was there to be told"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["text"] for each in records if each.get("role") == "user"] == ["one", "two"]
    assert [each["values"]["max_tokens"] for each in records if each["type"] == "parameters"][-1] == 6


def test_a_model_given_by_a_relative_path_is_found_from_another_folder(
    run: Run, tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny).parent)
    code, _, err = run("chat", "-m", f"./{Path(tiny).name}", *CHAT[2:], stdin="one\n")
    assert code == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("chat", "--continue", stdin="two\n")[0] == 0


def test_a_persona_is_not_put_on_a_dialog_that_goes_on(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "CONFIG/llamachat/personas"
    folder.mkdir(parents=True)
    (folder / "pirate.toml").write_text('system = "Talk like a pirate."')
    assert run("chat", *CHAT, "--session", "sea", "--persona", "pirate", stdin="one\n")[0] == 0
    code, _, err = run("chat", "--session", "sea", "--persona", "pirate", stdin="two\n")
    assert code == 2 and "a persona begins a dialog" in err


def test_what_is_typed_goes_before_what_was_saved(run: Run, tmp_path: Path) -> None:
    run("chat", *CHAT, stdin="one\n")
    run("chat", "--continue", "-m", "TINY", "--temp", "0.5", "-s", "New.", stdin="two\n")
    records = [json.loads(line) for line in sessions(tmp_path)[0].read_text().splitlines()]
    values = [each["values"] for each in records if each["type"] == "parameters"][-1]
    assert (values["temperature"], values["max_tokens"]) == (0.5, 6)
    assert [each["text"] for each in records if each["type"] == "system"][-1] == "New."


def test_whether_to_think_is_kept_with_the_dialog_and_what_no_switch_can_do_is_said(run: Run, tmp_path: Path) -> None:
    code, _, err = run("chat", *CHAT, "--think", "off", "--think-budget", "7", stdin="one\n")
    assert code == 0 and len(re.findall("has no switch for thinking", err)) == 1
    (path,) = sessions(tmp_path)
    held = [json.loads(line) for line in path.read_text().splitlines()]
    values = [each["values"] for each in held if each["type"] == "parameters"][-1]
    assert (values["think"], values["think_budget"]) == ("off", 7)
    code, _, err = run("chat", "--continue", "--think", "auto", stdin="two\n")
    assert code == 0 and "no switch" not in err
    code, _, err = run("complete", "x", *CHAT, "--think", "on")
    assert code == 0 and "has no switch for thinking" in err and err.count("\n") == 1
    assert run("complete", "x", *CHAT, "--think", "maybe")[0] == 2
    assert run("complete", "x", *CHAT, "--raw", "--think", "on")[::2] == (0, "")


def test_a_named_session_is_begun_and_opened_again(run: Run, tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        assert run("chat", *CHAT, "--session", "mine", stdin=text)[0] == 0
    (path,) = sessions(tmp_path)
    assert path.name == "mine.jsonl" and path.read_text().count('"role": "user"') == 2


def test_no_history_leaves_no_trace(run: Run, tmp_path: Path) -> None:
    assert run("chat", *CHAT, "--no-history", stdin="one\n")[0] == 0
    found = [path for kind in ("DATA", "STATE", "CONFIG") for path in (tmp_path / kind).rglob("*")]
    assert found == [] and snapshots(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--continue",), "no dialog to continue"),
        (("--continue", "--session", "a"), "exclude each other"),
        (("--no-history", "--continue"), "exclude each other"),
        (("--no-history", "--session", "a"), "exclude each other"),
        (("--session", "../a"), "cannot be the name"),
        (("--session", ""), "cannot be the name"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_before_anything_is_loaded(
    run: Run, flags: tuple[str, ...], says: str
) -> None:
    code, out, err = run("chat", "-m", "missing-model", *flags)
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


def test_a_damaged_session_is_one_line_and_stays(run: Run, tmp_path: Path) -> None:
    run("chat", *CHAT, "--session", "mine", stdin="one\n")
    (path,) = sessions(tmp_path)
    path.write_text("{}\n" + path.read_text())
    before = path.read_bytes()
    code, out, err = run("chat", *CHAT, "--session", "mine", stdin="two\n")
    assert code == 3 and out == "" and "mine.jsonl, line 1" in err and path.read_bytes() == before
