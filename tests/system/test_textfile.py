"""textfile.py: what a person named is read whole or refused in one line, whatever it is and however much it holds."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llamachat.chat import persona
from llamachat.cli import defaults
from llamachat.errors import ConfigError, DoesNotFitError, UsageError
from llamachat.generation.prompts import open_lines, read_format, read_text
from llamachat.models import catalog
from llamachat.system import textfile
from llamachat.system.metadata import read_json
from llamachat.system.textfile import TooLargeError, read
from llamachat.ui.attach import LIMIT
from llamachat.ui.commands import messages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's devices")
ENDLESS = [
    "/dev/zero",
    "/dev/full",
    "/dev/null",
    "/dev/urandom",
    "/proc/version",
    "/proc/self/environ",
    "/sys/power/state",
]
READERS: dict[str, Callable[[Path], object]] = {
    "text": read_text,
    "lines": open_lines,
    "schema": lambda path: read_format(str(path), None, None),
    "grammar": lambda path: read_format(None, None, str(path)),
}


@pytest.mark.parametrize("name", [name for name in ENDLESS if Path(name).exists()])
@pytest.mark.parametrize("reader", READERS)
def test_devices_and_what_the_kernel_makes_up_are_refused_at_once(reader: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(name)
    for path in (Path(name), tmp_path / "link"):
        with pytest.raises(
            UsageError, match=r"cannot be read: it is (a device|no file, but something of the system's)"
        ):
            READERS[reader](path)


def test_a_named_pipe_is_waited_for_where_a_text_may_come_from_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("from a pipe\n"))
    writer.start()
    assert read_text(tmp_path / "pipe") == "from a pipe"
    writer.join()


def test_process_substitution_and_dev_stdin_may_be_named() -> None:
    code = (
        "import sys; from pathlib import Path; from llamachat.generation.prompts import read_text; "
        "print(read_text(Path(sys.argv[1])))"
    )
    read = f"{sys.executable} -c '{code}'"
    for line, said in ((f"{read} <(echo one)", "one\n"), (f"echo two | {read} /dev/stdin", "two\n")):
        assert subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout == said


def test_what_is_read_of_an_endless_stream_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1001)
    assert len(read(tmp_path / "f", 1001)) == 1001
    with pytest.raises(TooLargeError, match="it is larger than 1,000 bytes"):
        read(tmp_path / "f", 1000)
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(TooLargeError):
        textfile.read_all(zeros, 3_000_000)
    monkeypatch.setattr(textfile.read, "__defaults__", (1000, False))
    with pytest.raises(
        DoesNotFitError, match="f cannot be read: it is larger than 1,000 bytes; it was not sent; give a"
    ):
        read_text(tmp_path / "f")


@pytest.mark.parametrize("kind", ["device", "proc", "pipe", "folder"])
def test_settings_are_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> Path:
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to({"device": "/dev/zero", "proc": "/proc/self/environ"}[kind])
        return path

    for read_it in (catalog.load_catalog, lambda path: defaults.read(path, None), read_json):
        with pytest.raises(ConfigError, match="it is"):
            read_it(made(f"{len(list(tmp_path.iterdir()))}.toml"))
    made("personas/one.toml")
    with pytest.raises((ConfigError, UsageError), match=r"cannot be read|no persona"):
        persona.load("one", tmp_path / "personas")


def test_a_message_of_a_chat_is_bounded_line_by_line_and_in_a_block() -> None:
    assert list(messages(["a\n", "\n", '"""\n', "b\n", '"""\n', "c"])) == ["a", '"""\nb\n"""', "c"]
    for lines in (["x" * (LIMIT + 1)], ['"""\n', *["x" * 999 + "\n"] * 2000]):
        with pytest.raises(UsageError, match="a message has more than 1,000,000 characters"):
            list(messages(lines))


PEAK = """
import json, resource, sys
from llamachat.system import textfile
from llamachat.generation.prompts import read_given
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = read_given(lambda: textfile.read_all(sys.stdin.buffer), "standard input")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(text.encode()), (after - before) * 1024]))
"""


@pytest.mark.parametrize("unit", ["x", "aaaaaaaaa\U0001f600", "漢字"])
def test_reading_takes_a_few_bytes_a_byte(unit: str) -> None:
    data = (unit * (20_000_000 // len(unit.encode()))).encode()
    done = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True)
    read_bytes, taken = json.loads(done.stdout)
    assert read_bytes == len(data) and taken < 12 * read_bytes
