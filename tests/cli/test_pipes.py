"""`llamachat complete` among other programs: real processes, pipes and signals, with the real model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("signals and shells are POSIX's", allow_module_level=True)

PROMPTS = [json.dumps({"prompt": f"Tell me about the number {i}."}) for i in range(10)]
Process = subprocess.Popen[bytes]
PIPE = 4096  # bytes that lie in a pipe unread: nothing that says more is done before its reader has been there
ENDLESS = ("the mill, the mill, the mill,", "--raw", "--allow-loops", "--ctx-size", "3000")  # says 9,974 bytes


@pytest.fixture
def start(smollm2_gguf: Path) -> Iterator[Any]:
    """Start `llamachat complete` with the real model; what still runs at the end is killed."""
    processes = list[Process]()

    def go(*arguments: str, shell: str = "", environment: dict[str, str] | None = None, **streams: Any) -> Process:
        model = ("-m", str(smollm2_gguf), "--temp", "0")
        command = [sys.executable, "-P", "-m", "llamachat", "complete", *model, *arguments]
        if shell:
            command = ["sh", "-c", shell, "sh", *command]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, pipesize=PIPE, **{**pipes, **streams}))
        return processes[-1]

    yield go
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: Process) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def tokens(results: bytes) -> list[list[int]]:
    return [json.loads(line)["tokens"] for line in results.splitlines()]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    (tmp_path / "requests").write_text("\n".join(PROMPTS))
    return tmp_path / "requests"


def test_text_comes_while_it_is_made_and_ctrl_c_ends_it_with_130(start: Any) -> None:
    process = start(*ENDLESS)
    assert process.stdout.read(20)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, rest, err = ended(process)
    assert (code, rest[-1:], err) == (130, b"\n", b"")


@pytest.mark.parametrize("how", [[], ["--jsonl"]])
def test_a_reader_that_leaves_ends_it_with_141_and_no_word(start: Any, requests: Path, how: list[str]) -> None:
    process = start(*([*how, str(requests), "--parallel", "1", "-n", "40"] if how else ENDLESS))
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(120), process.stderr.read()) == (141, b"")


def test_a_shell_pipeline_gets_its_line_and_the_code(start: Any) -> None:
    shell = '{ "$@"; echo $? >&2; } | head -c 5 | wc -c'
    code, out, err = ended(start(*ENDLESS, shell=shell))
    assert (code, out.strip(), err) == (0, b"5", b"141\n")


def test_a_batch_answers_each_line_before_the_next_is_there(start: Any) -> None:
    process = start("--jsonl", "-", "-n", "3", stdin=subprocess.PIPE)
    for prompt in PROMPTS[:3]:
        process.stdin.write(prompt.encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["usage"]["completion_tokens"] == 3
    assert process.poll() is None
    process.stdin.close()
    process.stdin = None
    assert ended(process) == (0, b"", b"")


def test_a_batch_broken_twice_goes_on_to_what_an_unbroken_one_gives(start: Any, requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    arguments = ("-n", "16", "--parallel", "2", "--jsonl")
    code, unbroken, _ = ended(start(*arguments, str(requests)))
    assert code == 0

    def broken(how: signal.Signals, given: int, *resume: str) -> tuple[int, bytes]:
        """It cannot be done before: of the prompts only so many are given."""
        before = tokens(output.read_bytes()) if resume else []
        process = start(*arguments, "-", "-o", str(output), *resume, stdin=subprocess.PIPE)
        process.stdin.write("".join(f"{prompt}\n" for prompt in PROMPTS[:given]).encode())
        process.stdin.flush()
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") > len(before)):
            time.sleep(0.01)
        process.send_signal(how)
        code, _, err = ended(process)
        assert len(before) < len(tokens(output.read_bytes())) <= given
        return code, err

    assert broken(signal.SIGINT, 4) == (130, b"")
    assert broken(signal.SIGKILL, 8, "--resume") == (-signal.SIGKILL, b"")
    with output.open("ab") as torn:
        torn.write(b'{"model": "to')
    assert ended(start(*arguments, str(requests), "-o", str(output), "--resume")) == (0, b"", b"")
    assert tokens(output.read_bytes()) == tokens(unbroken)


def test_it_needs_no_home_no_terminal_and_no_streams(start: Any, smollm2_gguf: Path) -> None:
    bare = {"PATH": os.environ["PATH"]}
    code, out, err = ended(start("hi", "-n", "2", environment=bare, start_new_session=True))
    assert (code, bool(out.strip()), err) == (0, True, b"")
    assert ended(start("hi", "-n", "1", shell='exec "$@" 0<&- 1>&- 2>&-'))[0] == 0


def test_a_schema_is_followed_in_a_pipe(start: Any) -> None:
    capital = {"capital": {"type": "string", "maxLength": 20}}
    schema = {"type": "object", "properties": capital, "required": ["capital"], "additionalProperties": False}
    asking = 'echo "The capital of France?" | "$@"'
    code, out, err = ended(start("--schema", json.dumps(schema), stdin=subprocess.PIPE, shell=asking))
    assert (code, err, list(json.loads(out))) == (0, b"", ["capital"])
    code, out, err = ended(start("hi", "--schema", "{"))
    assert (code, out) == (2, b"") and err.startswith(b"error: the JSON schema cannot be used: Expecting")
