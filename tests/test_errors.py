"""errors.py: whatever goes wrong in a reader is one line that names what was read; whatever else does, is a bug's traceback."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamachat.errors import (
    ConfigError,
    DoesNotFitError,
    FormatError,
    LlamachatError,
    UsageError,
    lacking,
    reader,
    reading,
    trace,
)


class PanicException(BaseException):
    """What Rust raises through Python."""


def nested() -> None:
    nested()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("x"), "KeyError 'x'"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (OSError(28, "No space left on device", "name"), "No space left on device"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (OverflowError("x" * 999), "OverflowError " + "x" * 186),
        (PanicException("index out of bounds"), "PanicException index out of bounds"),
        (AssertionError(), "AssertionError"),
    ],
    ids=repr,
)
def test_what_nobody_foresaw_is_one_line_that_names_the_file(error: BaseException, says: str) -> None:
    with pytest.raises(ConfigError) as caught, reading("a.json", ConfigError, "it is not used", "mend it"):
        raise error
    assert str(caught.value) == f"a.json: {says}; it is not used; mend it"
    assert caught.value.__cause__ is error and type(error).__name__ in trace(caught.value)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), UsageError("ours"), ImportError("x"), EOFError()],
    ids=repr,
)
def test_what_is_not_the_files_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("a.json", passing=(EOFError,)):
        raise error
    assert caught.value is error


def test_too_little_memory_is_told_as_that() -> None:
    with pytest.raises(DoesNotFitError, match=r"too little memory for a\.gguf; it was not loaded"), reading("a.gguf"):
        raise MemoryError


def test_depth_without_end_is_told_too() -> None:
    with pytest.raises(FormatError, match="nested too deeply"), reading("x"):
        nested()


def test_a_reader_names_its_first_argument_and_keeps_its_own() -> None:
    @reader
    def read(path: Path, value: int, *, scale: int = 1) -> int:
        """It reads."""
        return int({1: 2}[value]) * scale

    assert (read(Path("a"), 1, scale=3), read.__doc__) == (6, "It reads.")
    with pytest.raises(FormatError, match=r"^a: KeyError 5; it is not read$"):
        read(Path("a"), 5)


def test_what_the_machine_lacks_is_no_bug_and_a_bug_is_none_of_that() -> None:
    codes = {MemoryError(): 4, OSError(24, "Too many open files"): 3, RuntimeError("can't start new thread"): 3}
    for error, code in codes.items():
        assert (told := lacking(error)) is not None and told.exit_code == code and "\n" not in str(told)
    missing = ImportError("libx.so: failed to map segment\nfrom shared object", name="torch._C")
    assert "libx.so: failed to map segment from shared object" in str(lacking(missing))
    for bug in (ImportError("x", name="llamachat.ui"), RuntimeError("x"), KeyError("x"), AssertionError()):
        assert lacking(bug) is None


def test_errors_of_our_own_have_no_traceback() -> None:
    assert trace(LlamachatError("x")) == ""
    with pytest.raises(ConfigError) as caught:
        try:
            raise UsageError("inner")
        except UsageError as error:
            raise ConfigError("outer") from error
    assert trace(caught.value) == ""


LIMITS = [
    *((resource.RLIMIT_NOFILE, number) for number in (4, 5, 6, 8, 12)),
    *((resource.RLIMIT_AS, size << 20) for size in (350, 600, 1000)),
]


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_little_memory_and_few_files_give_an_answer_or_one_line(
    smollm2_gguf: Path, kind: int, limit: int, tmp_path: Path
) -> None:
    """Where a C library has the last word, it is one of its own; never is it a traceback."""
    code = "import resource, sys; resource.setrlimit({0}, ({1}, {1})); from llamachat.__main__ import main; main()"
    arguments = (
        "complete",
        "-m",
        str(smollm2_gguf),
        "hi",
        "-n",
        "2",
        "--offline",
        "--threads",
        "1",
        "--engine",
        "native",
    )
    folders = {f"XDG_{kind}_HOME": str(tmp_path) for kind in ("CONFIG", "DATA", "STATE")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code.format(kind, limit), *arguments],
        capture_output=True,
        env={**os.environ, **folders, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    said = done.stderr.decode().strip().splitlines()
    assert "Traceback" not in done.stderr.decode()
    assert (done.returncode == 0) == bool(done.stdout) and len(said) <= 1
    assert done.returncode == 0 or said


@given(st.text(), st.text(), st.text())
@example("unknown key de\x0cault", "", "")
@example("sampli\ng", "a\u2028b", "c\x85d")
def test_an_error_is_one_line_whatever_a_file_put_into_it(cause: str, consequence: str, remedy: str) -> None:
    text = str(LlamachatError(cause, consequence, remedy))
    assert len(text.splitlines()) <= 1
    assert ("de\\x0cault" in text) == ("de\x0cault" in cause)
