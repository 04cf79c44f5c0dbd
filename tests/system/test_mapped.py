"""mapped.py: a mapped file that is cut short ends the process with one line, wherever it is touched and whoever touches it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pexpect
import pytest
from checkpoints import save_gguf, save_hf, save_tokenizer, tiny_model

from llamachat.engines.native.build import compiler
from llamachat.models import packed_copy
from llamachat.models.load import load

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="no such signal")
NEEDS_COMPILER = pytest.mark.skipif(compiler() is None, reason="no C compiler")
LINE = (
    r"error: {} was cut short, or can no longer be read, while it was in use; llamachat ends here; .*; start it again"
)


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def ends_in_one_line(done: subprocess.CompletedProcess[str], file: Path | str) -> None:
    assert re.fullmatch(LINE.format(re.escape(repr(str(file)))) + "\n", done.stderr), done.stderr
    assert (done.returncode, done.stdout) == (3, "")


@pytest.mark.parametrize("where", ["main thread", "another thread", "many threads", "C without the interpreter's lock"])
def test_whoever_touches_what_is_gone(tmp_path: Path, where: str) -> None:
    file = tmp_path / "a\x1b[2J file"
    file.write_bytes(bytes(1 << 20))
    code = """
        import hashlib, os, sys, threading, time
        import numpy as np
        from pathlib import Path
        from llamachat.system.mapped import map_file
        file, where = Path(sys.argv[1]), sys.argv[2]
        with file.open("rb") as stream:
            data = np.frombuffer(map_file(stream), np.uint8)
        data.sum()
        os.truncate(file, 4096)
        touch = lambda: hashlib.sha256(data).hexdigest() if where.startswith("C") else data.copy()
        if "thread" in where and where != "main thread":
            for _ in range(8 if where == "many threads" else 1):
                threading.Thread(target=touch).start()
            while True:
                time.sleep(0.01)
        touch()
    """
    ends_in_one_line(run(code, file, where), file)


LOADED = """
    import os, sys, threading
    from pathlib import Path
    import numpy as np
    from llamachat.core.cache import Cache
    from llamachat.core.generate import advance
    from llamachat.models import packed_copy
    from llamachat.models.load import load
    packed_copy.PAYS = 0.0
    load(sys.argv[1], engine=sys.argv[2], device="cpu", threads=2).copy.write(lambda done: None)
    model = load(sys.argv[1], engine=sys.argv[2], device="cpu", threads=2)
    cache = Cache(model.engine.slots)
    advance(model.engine, cache, [1, 2, 3], "last")
    (file,) = Path(os.environ["XDG_CACHE_HOME"]).glob("llamachat/packed/*.arena")
    os.truncate(file, 4096)
    while True:
        advance(model.engine, cache, [4], "last")
"""


@NEEDS_COMPILER
def test_packed_weights_cut_short_while_the_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hf(tiny_model(), tmp_path / "model")
    save_tokenizer(folder)
    with_library(tmp_path / "cache", monkeypatch)
    done = run(LOADED, folder, "native")
    (file,) = (tmp_path / "cache" / "llamachat" / "packed").glob("*.arena")
    ends_in_one_line(done, file)


def with_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another cache folder, with the library in it that has been compiled already."""
    from llamachat.engines.native.build import library

    built = library()
    (cache / "llamachat" / "native").mkdir(parents=True, mode=0o700)
    (cache / "llamachat").chmod(0o700)
    os.link(built, cache / "llamachat" / "native" / built.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_a_models_own_file_cut_short_while_it_is_read(tmp_path: Path, kind: str) -> None:
    """Without a compiled library: the torch engine reads the weights."""
    save = save_hf if kind == "hf" else save_gguf
    path = save(tiny_model(), tmp_path / "model")
    file = path / "model.safetensors" if kind == "hf" else path
    code = """
        import os, sys
        from pathlib import Path
        from llamachat.formats.detect import open_checkpoint
        from llamachat.engines.torch.engine import TorchEngine
        checkpoint = open_checkpoint(Path(sys.argv[1]))
        os.truncate(sys.argv[2], os.path.getsize(sys.argv[2]) // 2)
        TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=8)
    """
    ends_in_one_line(run(code, path, file), file)


@NEEDS_COMPILER
def test_in_a_chat_the_terminal_is_as_it_was_and_what_was_said_is_kept(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(packed_copy, "PAYS", 0.0)
    copy = load(str(smollm2_gguf), threads=2).copy
    assert copy is not None and copy.write(lambda done: None) is None
    chat = f"{sys.executable} -m llamachat -m {smollm2_gguf} --ctx-size 4000 -n 3900"
    script = ["-c", f"stty -a; {chat}; echo ended with $?; stty -a; echo done"]
    shell = pexpect.spawn("/bin/sh", script, encoding="utf-8", timeout=60, dimensions=(24, 400))
    before = modes(shell)
    shell.expect("0% of 4000")
    shell.send("Count from one to a thousand in words.\r")
    sessions = tmp_path / "data" / "llamachat" / "sessions"
    while not list(sessions.glob("*.jsonl")):
        shell.expect(r".+")
    (file,) = (tmp_path / "cache" / "llamachat" / "packed").glob("*.arena")
    os.truncate(file, 4096)
    shell.expect(re.escape(repr(str(file))) + " was cut short")
    shell.expect("ended with 3\r\n")
    assert modes(shell) == before
    shell.expect("done")
    (saved,) = sessions.glob("*.jsonl")
    assert "from one to a thousand" in saved.read_text()


def modes(shell: pexpect.spawn) -> str:
    """The terminal's, as stty has just shown them."""
    shell.expect("speed.*baud;")
    shell.expect("-?echoprt.*?\n")
    return str(shell.before + shell.after)


def test_signals_of_a_process_without_such_a_file_stay() -> None:
    done = run("import os, signal, llamachat.system.mapped; os.kill(os.getpid(), signal.SIGBUS)")
    assert done.returncode == -signal.SIGBUS
