"""--server, --key-env and --insecure: which server is asked, whose key goes there, and what is not for one."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import DONE, RESET, WAIT, WHOLE, StandIn, delta, document, event, head, standing_in

from llamachat import Llama
from llamachat.cli.main import main
from llamachat.errors import UsageError

LISTED = [document({"data": [{"id": "x"}]})]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KEY", "sk-Secret")
    for name in [name for name in os.environ if name.startswith("LLAMACHAT_")]:
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGINT)

    def go(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamachat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert "sk-Secret" not in captured.out + captured.err
        return int(exit.value.code or 0), captured.out, captured.err

    yield go
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """All that it gives is an answer, for its models too, of which it thus tells nothing."""
    with standing_in([WHOLE]) as stand_in:
        yield stand_in


def write(folder: Path, name: str, text: str) -> None:
    (folder / "llamachat").mkdir(exist_ok=True)
    (folder / "llamachat" / name).write_text(text)


def key_of(server: StandIn) -> str | None:
    return server.requests[-1].headers.get("authorization")


def ask(server: StandIn, *more: str) -> tuple[str, ...]:
    return ("complete", "hi", "--server", server.url, "-m", "one", *more)


def test_text_goes_to_stdout_alone(run: Run, server: StandIn) -> None:
    assert run(*ask(server, "-s", "Be brief.", "--temp", "0", "-n", "5")) == (0, "Hello there\n", "")
    sent = server.requests[-1].body
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("one", 0, 5)
    assert [each["role"] for each in sent["messages"]] == ["system", "user"] and key_of(server) is None


def test_plain_text_is_gone_on_with(run: Run) -> None:
    pieces = [event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in (" one", " two")]
    last = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    with standing_in(LISTED, [head(), *pieces, last, DONE]) as server:
        assert run(*ask(server, "--raw")) == (0, " one two\n", "")
        assert (
            server.requests[-1].line.startswith("POST /v1/completions") and server.requests[-1].body["prompt"] == "hi"
        )


def test_json_names_the_model_that_answers(run: Run) -> None:
    listed = [document({"data": [{"id": "the-only"}]})]
    with standing_in(listed, [WHOLE]) as server:
        code, out, err = run("complete", "hi", "--server", server.url, "--json")
    result = json.loads(out)
    assert (code, err, result["model"], result["text"]) == (0, "", "the-only", "Hello there")


def test_one_of_several_models_has_to_be_named(run: Run) -> None:
    with standing_in([document({"data": [{"id": "first"}, {"id": "second"}]})]) as server:
        code, out, err = run("complete", "hi", "--server", server.url)
    assert (code, out, err.count("\n")) == (2, "", 1) and "first, second" in err and "-m" in err


def test_a_typed_key_goes_to_a_typed_server(run: Run, server: StandIn) -> None:
    assert run(*ask(server, "--key-env", "KEY"))[0] == 0 and key_of(server) == "Bearer sk-Secret"


def test_a_configured_key_goes_to_the_configured_server_alone(
    run: Run, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "config.toml", f'server = "{server.url}"\nkey-env = "KEY"\nmodel = "of-the-server"\n')
    assert run("complete", "hi") == (0, "Hello there\n", "") and key_of(server) == "Bearer sk-Secret"
    assert server.requests[-1].body["model"] == "of-the-server"
    code, _, err = run(*ask(server))
    assert code == 0 and key_of(server) is None and "key-env is of another server" in err
    monkeypatch.setenv("LLAMACHAT_SERVER", server.url)
    monkeypatch.setenv("LLAMACHAT_MODEL", "two")
    assert run("complete", "hi")[0] == 0 and key_of(server) is None and server.requests[-1].body["model"] == "two"
    monkeypatch.setenv("LLAMACHAT_KEY_ENV", "KEY")
    assert run("complete", "hi")[0] == 0 and key_of(server) == "Bearer sk-Secret"
    code, _, err = run("complete", "hi", "--key-env", "KEY")
    assert code == 2 and "--key-env is of a --server, and none was typed" in err
    monkeypatch.delenv("LLAMACHAT_SERVER")
    code, _, err = run("complete", "hi")
    assert code == 0 and key_of(server) is None and "key-env is of another server" in err


def test_the_key_of_an_entry_goes_to_its_server_alone(run: Run, server: StandIn, tmp_path: Path) -> None:
    source = f'source = {{ server = "{server.url}", model = "big", key_env = "KEY" }}'
    write(tmp_path, "models.toml", f"[models.home]\n{source}\nsystem = 'Be brief.'\nsampling = {{ top_p = 0.5 }}\n")
    code, out, err = run("complete", "hi", "-m", "home", "--json")
    assert (code, err, json.loads(out)["model"]) == (0, "", "home") and key_of(server) == "Bearer sk-Secret"
    sent = server.requests[-1].body
    assert (sent["model"], sent["top_p"], sent["messages"][0]["content"]) == ("big", 0.5, "Be brief.")
    assert run("complete", "hi", "-m", f"server:{server.url}#big")[0] == 0 and key_of(server) is None
    assert run(*ask(server))[0] == 0 and key_of(server) is None
    write(tmp_path, "config.toml", "model = 'home'\n")
    with standing_in(LISTED, [WHOLE]) as other:
        assert run("complete", "hi", "--server", other.url)[0] == 0 and key_of(other) is None


def test_a_prompt_typed_for_a_model_here_is_not_sent_to_a_configured_server_in_silence(
    run: Run, server: StandIn, tmp_path: Path
) -> None:
    write(tmp_path, "config.toml", f'server = "{server.url}"\n')
    code, _, err = run("complete", "hi", "-m", "smollm2-135m")
    assert code == 0 and err.startswith(
        f"note: {server.url[7:]} is sent what is asked, as it is configured; --server ''"
    )
    assert run("complete", "hi", "-m", "only-there") == (0, "Hello there\n", "")


@pytest.mark.parametrize(
    ("config", "flags", "told"),
    [
        ('server = "https://far.example"', (), True),
        ('model = "far"', (), True),
        ('server = "https://near.example"', ("--server", "https://far.example"), False),
        ("", ("-m", "far"), False),
    ],
)
def test_that_another_machine_is_asked_as_it_is_configured_is_said_first(
    run: Run, tmp_path: Path, config: str, flags: tuple[str, ...], told: bool
) -> None:
    write(tmp_path, "config.toml", config + "\n")
    write(tmp_path, "models.toml", '[models.far]\nsource = { server = "https://far.example", model = "x" }\n')
    code, _, err = run("complete", "hi", "--offline", *flags)  # which forbids it before anything is sent
    assert code == 3 and ("note: far.example is sent what is asked" in err) is told


def test_an_end_within_a_thought_is_told_with_what_a_server_can_do(run: Run) -> None:
    with standing_in([head(), delta(reasoning_content="hm"), delta(reason="length"), DONE]) as server:
        code, out, err = run(*ask(server))
    assert (code, out) == (0, "\n") and "raise --max-tokens, or try --think off" in err


def test_a_configured_server_is_left_with_an_empty_one(run: Run, server: StandIn, tmp_path: Path) -> None:
    write(tmp_path, "config.toml", f'server = "{server.url}"\n')
    code, _, err = run("complete", "hi", "--server", "", "-m", "nope")
    assert code == 3 and "no model is called 'nope'" in err and not server.requests


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--lora", "x"), 2, "--lora is for a model that runs here"),
        (("--ctx-size", "99"), 2, "--ctx-size is for a model that runs here"),
        (("--kv-bits", "8"), 2, "--kv-bits is for"),
        (("--dtype", "float32"), 2, "--dtype is for"),
        (("--device", "cpu"), 2, "--device is for"),
        (("--engine", "torch"), 2, "--engine is for"),
        (("--threads", "1"), 2, "--threads is for"),
        (("--tensor-parallel", "2"), 2, "--tensor-parallel is for"),
        (("--force",), 2, "--force is for"),
        (("--think-budget", "9"), 2, "--think-budget is for"),
        (("--cache-prefix", __file__), 2, "--cache-prefix is for"),
        (("--echo",), 2, "--echo shows, only the server knows"),
        (("--key-env", "sk-abc"), 2, "is not the name of an environment variable"),
        (("--key-env", "NOT_SET_AT_ALL"), 2, "NOT_SET_AT_ALL is not set"),
        (("--server", "http://me:secret@h"), 2, "holds a user or a password"),
        (("--server", "https://h", "--insecure"), 2, "https://h is another machine"),
        (("--server", "https://h", "--offline"), 3, "--offline"),
        (("--stop", "a", "--regex", "b"), 2, "cut an answer short"),
    ],
)
def test_what_is_not_for_a_server_is_one_line(
    run: Run, server: StandIn, flags: tuple[str, ...], code: int, says: str
) -> None:
    got, out, err = run(*ask(server, *flags))
    assert (got, out, err.count("\n")) == (code, "", 1) and says in err and "secret" not in err and "sk-abc" not in err
    assert not server.requests


def test_what_is_configured_for_models_here_is_not_for_a_server(run: Run, server: StandIn, tmp_path: Path) -> None:
    write(tmp_path, "config.toml", 'ctx-size = 99\nengine = "torch"\nlora = ["x"]\nthink-budget = 9\nthreads = 1\n')
    assert run(*ask(server, "--offline")) == (0, "Hello there\n", "")


@pytest.mark.parametrize("flags", [("--key-env", "KEY"), ("--insecure",)])
def test_what_is_of_a_server_needs_one(run: Run, flags: tuple[str, ...]) -> None:
    code, out, err = run("complete", "hi", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and f"{flags[0]} is of a --server" in err


def test_a_key_in_the_config_file_is_not_shown(run: Run, tmp_path: Path) -> None:
    write(tmp_path, "config.toml", 'key-env = "sk-Oops"\n')
    code, _, err = run("complete", "hi")
    assert code == 3 and "key-env in" in err and "config.toml" in err and "sk-Oops" not in err


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "home", "-o", "out"),
        ("bench", "-m", "home"),
        ("classify", "-m", "home", "hi"),
        ("tag", "-m", "home", "hi"),
        ("extract", "-m", "home", "hi", "-f", __file__),
        ("embed", "-m", "home", "hi"),
        ("models", "pull", "home"),
        ("models", "rm", "home"),
    ],
)
def test_what_needs_a_model_here_refuses_a_servers(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    write(tmp_path, "models.toml", '[models.home]\nsource = { server = "http://127.0.0.1:9" }\n')
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1) and "home runs on the server http://127.0.0.1:9" in err
    with pytest.raises(UsageError, match="home runs on the server"):
        Llama.build("home")


def test_models_shows_a_servers_without_asking_it(run: Run, server: StandIn, tmp_path: Path) -> None:
    source = f'{{ server = "{server.url}", model = "big", key_env = "KEY" }}'
    write(tmp_path, "models.toml", f"[models.home]\nsource = {source}\ncontext = 4096\n")
    rows = [line.split("\t") for line in run("models", "list")[1].splitlines()]
    assert ["home", "-", "-", "server", "4096", "?", ""] in rows
    shown = run("models", "show", "home")[1]
    assert server.url in shown and "big" in shown and "KEY" in shown and not server.requests


def test_a_batch_keeps_order_and_tells_faults_in_place(run: Run, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(3))
    broken = [head(), delta("half"), RESET]
    (tmp_path / "in").write_text(lines)
    with standing_in(LISTED, [WHOLE], broken, [WHOLE]) as server:
        code, out, _ = run(
            "complete", "--jsonl", str(tmp_path / "in"), "--server", server.url, "-m", "x", "--parallel", "1"
        )
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and ["error" in each for each in results] == [False, True, False]


def test_a_batch_waits_where_the_server_says_so_and_can_be_gone_on_with(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    results = tmp_path / "out"
    busy = document({"error": {"message": "slow down"}}, 429, "Retry-After: 0")
    with standing_in(LISTED, [busy], [WHOLE]) as server:
        flags = (
            "--jsonl",
            str(tmp_path / "in"),
            "-o",
            str(results),
            "--server",
            server.url,
            "-m",
            "x",
            "--parallel",
            "1",
        )
        code, out, err = run("complete", *flags)
        assert (code, out, err.count("\n")) == (0, "", 1) and "busy" in err
        results.write_text(results.read_text().splitlines(keepends=True)[0])
        asked = len(server.requests)
        assert run("complete", *flags, "--resume") == (0, "", "") and len(server.requests) == asked + 2
    assert len(results.read_text().splitlines()) == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_a_fault_in_the_middle_keeps_what_came_and_is_3(run: Run, as_json: bool) -> None:
    with standing_in(LISTED, [head(), delta("half an"), RESET]) as server:
        code, out, err = run(*ask(server, *["--json"] * as_json))
    assert (code, err.count("\n")) == (3, 1)
    assert (json.loads(out)["text"] if as_json else out.rstrip("\n")) == "half an"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_keeps_what_came_and_is_130(tmp_path: Path) -> None:
    with standing_in(LISTED, [head(), delta("so far"), WAIT]) as server:
        command: list[Any] = [sys.executable, "-P", "-m", "llamachat", *ask(server)]
        environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
        with subprocess.Popen(command, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None and process.stdout.read(6) == b"so far"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"\n", b"")
