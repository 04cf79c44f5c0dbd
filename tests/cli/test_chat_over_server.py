"""`llamachat chat --server`: from its flags to a dialog, and on with it another time."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in import WHOLE, StandIn, delta, document, head, standing_in

from llamachat.cli.main import main

ONE = [document({"data": [{"id": "one", "max_model_len": 400}]})]
SEVERAL = [document({"data": [{"id": "one"}, {"id": "two"}, {"id": "three"}]})]
BROKEN = [b"".join([head(), delta("Half")])]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Chats with these lines of stdin."""
    for kind in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))
    monkeypatch.setenv("KEY", "sk-Secret")
    for name in [name for name in os.environ if name.startswith("LLAMACHAT_")]:
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGINT)

    def go(said: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamachat", "chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    yield go
    signal.signal(signal.SIGINT, before)


def key_of(server: StandIn) -> str | None:
    return server.requests[-1].headers.get("authorization")


def sent(server: StandIn) -> list[str]:
    return [each["content"] for each in server.requests[-1].body["messages"]]


def test_a_dialog_is_gone_on_with_where_it_was_held_without_its_key(run: Run, tmp_path: Path) -> None:
    with standing_in(ONE, [WHOLE], ONE, [WHOLE], ONE, [WHOLE]) as server:
        assert run("Is it?\n", "--server", server.url, "--key-env", "KEY", "--temp", "0") == (0, "Hello there\n", "")
        assert (sent(server), server.requests[-1].body["model"]) == (["Is it?"], "one")
        assert key_of(server) == "Bearer sk-Secret"
        assert run("Sure?\n", "--continue")[:2] == (0, "Hello there\n")
        assert sent(server) == ["Is it?", "Hello there", "Sure?"] and key_of(server) is None
        assert run("And?\n", "--continue", "--server", server.url, "--key-env", "KEY")[0] == 0
        assert len(sent(server)) == 5 and key_of(server) == "Bearer sk-Secret"
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"Is it?" in kept and b"sk-Secret" not in kept and b"KEY" not in kept


def test_which_of_several_models_is_meant_has_to_be_said_off_a_terminal(run: Run) -> None:
    with standing_in(SEVERAL, SEVERAL, [WHOLE]) as server:
        code, out, err = run("Is it?\nSure?\n", "--server", server.url)
        host = server.url.removeprefix("http://")
        line = f"{host} has 3 models: one, two, three; nothing was asked; choose one with -m NAME"
        assert (code, out, err) == (2, "", f"error: {line}\n")
        assert run("Is it?\n", "--server", server.url, "-m", "two")[:2] == (0, "Hello there\n")
        assert server.requests[-1].body["model"] == "two"


def test_what_came_before_a_fault_is_kept_and_the_next_question_asked(run: Run) -> None:
    with standing_in(ONE, BROKEN, [WHOLE]) as server:
        code, out, err = run("Is it?\nSure?\n", "--server", server.url)
        assert (code, out) == (3, "Half\nHello there\n") and "broke off in the middle" in err and err.count("\n") == 1
        assert sent(server) == ["Is it?", "Half", "Sure?"]


def test_an_entry_of_the_catalog_may_be_a_servers(run: Run, tmp_path: Path) -> None:
    with standing_in(ONE, [WHOLE], ONE, [WHOLE]) as server:
        (tmp_path / "llamachat").mkdir()
        entry = f'[models.far]\nsource = {{ server = "{server.url}", key_env = "KEY" }}\nsystem = "Be brief."\n'
        (tmp_path / "llamachat" / "models.toml").write_text(entry)
        assert run("Is it?\n", "-m", "far")[:2] == (0, "Hello there\n")
        assert sent(server) == ["Be brief.", "Is it?"] and key_of(server) == "Bearer sk-Secret"
        assert run("Sure?\n", "--continue")[0] == 0
        assert len(sent(server)) == 4 and key_of(server) == "Bearer sk-Secret"


def test_a_server_that_is_not_there_is_one_line(run: Run) -> None:
    code, out, err = run("Is it?\n", "--server", "http://127.0.0.1:9")
    assert (
        (code, out) == (3, "")
        and err.startswith("error: http://127.0.0.1:9 refuses the connection; ")
        and err.count("\n") == 1
    )
