"""The keys do what /help says; the history is private."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from llamachat.errors import ModelError, UsageError
from llamachat.ui.commands import LeaveError
from llamachat.ui.prompt import Prompt, open_history

ALT_ENTER, UP = "\x1b\r", "\x1b[A"
CTRL_C, CTRL_D, CTRL_J, CTRL_R, CTRL_UNDERSCORE = "\x03", "\x04", "\n", "\x12", "\x1f"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def reads(keyboard: PipeInput, keys: str, prompt: Prompt | None = None) -> str:
    keyboard.send_text(keys)
    return (prompt or Prompt(status=str)).read()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("\r \r\rhello\r", " hello"),
        (f"a{CTRL_J}b{ALT_ENTER}  c{CTRL_J}d\r", "a\nb\n  c\nd"),
        ('"""a\rb\r\rc"""\r', '"""a\nb\n\nc"""'),
        ("\x1b[200~one\r\ntwo\rthree\n\x1b[201~\r", "one\ntwo\nthree\n"),
        (f"wrong{CTRL_C}right\r", "right"),
        (f"{CTRL_C}{CTRL_C}{CTRL_C}still here\r", "still here"),
        (f"text{CTRL_D}\r", "text"),
        (f"lost{CTRL_C}{CTRL_UNDERSCORE}\r", "lost"),
    ],
)
def test_keys_make_a_text(keyboard: PipeInput, keys: str, text: str) -> None:
    assert reads(keyboard, keys) == text


def test_ctrl_d_on_an_empty_line_leaves(keyboard: PipeInput) -> None:
    with pytest.raises(LeaveError):
        reads(keyboard, CTRL_D)


def test_what_cannot_be_a_character_becomes_a_question_mark(keyboard: PipeInput) -> None:
    keyboard.send_bytes(b"a\xffb\r")
    assert Prompt(status=str).read() == "a?b"


def test_a_default_is_there_to_be_sent_or_changed(keyboard: PipeInput) -> None:
    keyboard.send_text("!\r")
    assert Prompt(status=str).read("kept") == "kept!"


def test_a_failure_ends_the_reading(keyboard: PipeInput) -> None:
    with pytest.raises(ModelError, match="gone"):
        reads(keyboard, "typed", Prompt(status=str, failure=lambda: ModelError("gone")))


def test_up_and_ctrl_r_look_back(keyboard: PipeInput, tmp_path: Path) -> None:
    history = open_history(tmp_path / "history")
    for line in ("first\nof two", "second"):
        history.append_string(line)
    assert reads(keyboard, f"{CTRL_R}fir\r\r", Prompt(status=str, history=history)) == "first\nof two"
    assert reads(keyboard, f"{UP}\r", Prompt(status=str, history=history)) == "first\nof two"


def test_the_history_is_kept_in_a_file_for_its_owner_only(keyboard: PipeInput, tmp_path: Path) -> None:
    file = tmp_path / "new" / "history"
    assert reads(keyboard, "remember\r", Prompt(status=str, history=open_history(file))) == "remember"
    assert "+remember\n" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert reads(keyboard, f"{UP}\r", Prompt(status=str, history=open_history(file))) == "remember"


def test_a_history_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.touch(mode=0o644)
    open_history(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_opened_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"history file .* cannot be opened \(Is a directory\); what you type is not"):
        open_history(tmp_path)


def test_a_full_disk_costs_the_history_and_not_the_chat(keyboard: PipeInput, tmp_path: Path) -> None:
    file = tmp_path / "history"
    history = open_history(file)
    file.unlink()
    file.mkdir()
    assert reads(keyboard, "hello\r", Prompt(status=str, history=history)) == "hello"
    assert history.trouble == "your history is no longer saved: Is a directory"
