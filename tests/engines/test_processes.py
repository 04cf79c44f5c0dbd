"""The processes of one model as a person has them: by --tensor-parallel and by torchrun; killed, left alone and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model

from llamachat.engines.torch.workers import Workers, join
from llamachat.engines.world import launched, processes
from llamachat.errors import LostError, UsageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{{ eos_token }}{% endfor %}{{ bos_token }}"
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model that can chat, and never ends an answer by itself."""
    folder = save_hf(tiny_model(eos_token_id=None), tmp_path_factory.mktemp("tiny"))
    save_tokenizer(folder)
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def others(parent: int) -> list[int]:
    """The further processes of its model, in the order in which they were started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about, command = (folder / "stat").read_text().rpartition(")")[2].split(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if int(about[1]) == parent and b"rank_process" in command:
            found.append(int(folder.name))
    return sorted(found)


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{each}").exists() for each in processes)


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def llamachat(tmp_path: Path, *arguments: str, program: str = "llamachat") -> Iterator[subprocess.Popen[str]]:
    folders = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
    env = {**os.environ, **folders, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", program, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_chat_ends_with_a_process_that_is_killed_and_keeps_what_was_answered(tiny: str, tmp_path: Path) -> None:
    with llamachat(tmp_path, "chat", "-m", tiny, "--temp", "0", "--tensor-parallel", "2", "--session", "kept") as chat:
        assert chat.stdin and chat.stdout and chat.stderr
        chat.stdin.write("one\n")
        chat.stdin.flush()
        first = chat.stdout.read(3)
        started = others(chat.pid)
        assert len(started) == 1
        os.kill(started[0], signal.SIGKILL)
        rest, told = chat.communicate(timeout=PATIENCE)
        assert chat.returncode == 3
        assert (
            told.rstrip("\n")
            == "error: process 2 of 2 ended (signal 9); the model cannot go on without it; start again"
        ), told
        assert gone(started)
    records = [json.loads(line) for line in (tmp_path / "DATA/llamachat/sessions/kept.jsonl").read_text().splitlines()]
    answer = "".join(each["text"] for each in records if each["type"] == "piece")
    assert answer and (first + rest).startswith(answer[:3])
    assert not [*tmp_path.glob("llamachat-*")], "what lay in their folder is gone"


def test_processes_end_with_whoever_started_them(tiny: str, tmp_path: Path) -> None:
    with llamachat(tmp_path, "complete", "one", "--raw", "-m", tiny, "--tensor-parallel", "2") as first:
        assert first.stdin
        first.stdin.close()
        wait_for(lambda: others(first.pid))
        started = others(first.pid)
        first.kill()
        wait_for(lambda: gone(started))
        wait_for(lambda: not [*tmp_path.glob("llamachat-*")])


def test_a_process_that_ends_before_it_is_there_is_named_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.engines.torch.workers.PROGRAM", "llamachat.no_such_program")
    workers = Workers(2, "cpu")
    with pytest.raises(
        LostError, match=r"^process 2 of 2 ended \(exit code 1\): .*No module named llamachat\.no_such"
    ) as told:
        join(workers, "cpu")
    assert "the model was not loaded" in str(told.value)
    assert not workers.folder.exists()


def test_what_others_must_not_see_is_empty_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    workers = Workers(2, "cpu")
    (other,) = workers.processes.pids().values()
    wait_for(lambda: b"rank_process" in Path(f"/proc/{other}/cmdline").read_bytes())
    seen = Path(f"/proc/{other}/environ").read_bytes()
    workers.end()
    assert b"PATH=/" in seen and b"secret" not in seen


def test_torchruns_processes_are_the_models(tiny: str, tmp_path: Path) -> None:
    command = ("complete", "the quick", "--raw", "-n", "3", "--temp", "0", "-m", tiny, "-v")
    run = ("--nproc_per_node", "2", "-m", "llamachat", *command)
    with llamachat(tmp_path, *run, program="torch.distributed.run") as launcher:
        text, told = launcher.communicate(timeout=PATIENCE)
        assert (launcher.returncode, len(text.splitlines())) == (0, 1), told
        assert "3 tokens" in told and told.count("ignored") == 1, "rank 0 alone says something"


@pytest.fixture
def of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


def test_torchruns_number_goes_before_none_and_beside_no_other(of_torchrun: None) -> None:
    assert processes(None) == processes(2) == 2
    with pytest.raises(UsageError, match="torchrun has started 2 processes, 3 were asked for"):
        processes(3)


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "1"), ("RANK", ""), ("RANK", "x"), ("MASTER_PORT", "")])
def test_a_variable_that_happens_to_be_set_makes_no_world(
    name: str, value: str, of_torchrun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert launched() is None and processes(None) == 1 and processes(3) == 3
