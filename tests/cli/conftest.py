"""The command line in one process: torch is imported once."""

import io
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model

from llamachat.cli.main import main
from llamachat.engines.native import build

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
