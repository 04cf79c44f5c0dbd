"""The keys do what /help says; the history is private."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from llamachat.errors import UsageError
from llamachat.ui.prompt import Prompt, open_history

ALT_ENTER, UP = "\x1b\r", "\x1b[A"
CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_L, CTRL_R, CTRL_UNDERSCORE = "\x03", "\x04", "\x07", "\n", "\x0c", "\x12", "\x1f"


class Listener:
    """Hears of all; leaves at Ctrl-D and after the first text sent."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.sent: list[tuple[str, str]] = []
        self.busy = 0
        self.waiting: list[str] = []
        self.prompt: Prompt

    def send(self, text: str, shown: str) -> None:
        self.sent.append((text, shown))
        self.prompt.app.exit(result=0)

    def stop(self) -> bool:
        self.busy -= 1
        return self.busy >= 0

    def leave(self) -> None:
        self.heard.append("leave")
        self.prompt.app.exit(result=0)

    @property
    def queued(self) -> bool:
        return bool(self.waiting)

    def take_back(self) -> str:
        return self.waiting.pop()

    def status(self) -> Sequence[str]:
        return ["status"]

    def hidden(self) -> None:
        self.heard.append("hidden")

    def cleared(self) -> None:
        self.heard.append("cleared")

    def mistake(self, error: Exception) -> None:
        self.heard.append(error)


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def typed(
    keyboard: PipeInput, keys: str, listener: Listener | None = None, until: str = "", **options: object
) -> Listener:
    """What is heard of these keys, and of Enter once the text is `until`."""
    listener = listener or Listener()
    listener.prompt = prompt = Prompt(listener, **options)  # type: ignore[arg-type]
    prompt.app.after_render += lambda app: keyboard.send_text("\r") if until and prompt.text == until else None
    keyboard.send_text(keys)
    listener.prompt.app.run()
    return listener


def reads(keyboard: PipeInput, keys: str, **options: object) -> str:
    return typed(keyboard, keys, **options).sent[0][0]


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
    assert typed(keyboard, CTRL_D).heard == ["leave"]


def test_ctrl_c_stops_before_it_clears(keyboard: PipeInput) -> None:
    listener = Listener()
    listener.busy = 1
    assert typed(keyboard, f"a{CTRL_C}b{CTRL_C}c\r", listener).sent == [("c", "c")]
    listener = Listener()
    listener.busy = 1
    assert typed(keyboard, f"a{CTRL_C}b\r", listener).sent == [("ab", "ab")]


def test_ctrl_l_keeps_what_is_typed(keyboard: PipeInput) -> None:
    listener = typed(keyboard, f"a{CTRL_L}b\r")
    assert (listener.heard, listener.sent) == (["cleared"], [("ab", "ab")])


def test_what_cannot_be_a_character_becomes_a_question_mark(keyboard: PipeInput) -> None:
    keyboard.send_bytes(b"a\xffb")
    assert reads(keyboard, "\r") == "a?b"


def test_a_large_paste_is_shown_by_its_size_and_sent_whole(keyboard: PipeInput) -> None:
    one, other = "x\n" * 10_000, "y" * 1001
    pastes = "".join(f"\x1b[200~{text}\x1b[201~ and " for text in (one, other, one))
    listener = typed(keyboard, f"{pastes}this\r")
    assert listener.sent == [
        (
            f"{one} and {other} and {one} and this",
            "[pasted 20,000 characters] and [pasted 1,001 characters #2] and [pasted 20,000 characters] and this",
        )
    ]


def test_a_block_that_is_pasted_is_open_or_closed_as_a_whole(keyboard: PipeInput) -> None:
    listener = typed(keyboard, '\x1b[200~"""' + "x\n" * 1000 + '\x1b[201~\ry"""\r')
    assert listener.sent[0][0].endswith('x\n\ny"""')


def test_up_and_ctrl_r_look_back(keyboard: PipeInput, tmp_path: Path) -> None:
    history = open_history(tmp_path / "history")
    for line in ("first\nof two", "second"):
        history.append_string(line)
    assert reads(keyboard, f"{CTRL_R}fir\r\r", history=history) == "first\nof two"
    assert reads(keyboard, f"{UP}\r", history=history) == "first\nof two"


def test_the_history_is_kept_in_a_file_for_its_owner_only(keyboard: PipeInput, tmp_path: Path) -> None:
    file = tmp_path / "new" / "history"
    assert reads(keyboard, "remember\r", history=open_history(file)) == "remember"
    assert "+remember\n" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert reads(keyboard, f"{UP}\r", history=open_history(file)) == "remember"


def test_a_large_paste_stays_out_of_the_file(keyboard: PipeInput, tmp_path: Path) -> None:
    file = tmp_path / "history"
    assert len(reads(keyboard, f"\x1b[200~{'x' * 5000}\x1b[201~\r", history=open_history(file))) == 5000
    assert not file.exists(), "nor is an empty one made"


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
    file.mkdir()
    assert reads(keyboard, "hello\r", history=history) == "hello"
    assert history.trouble == "your history is no longer saved: Is a directory"


def test_tab_completes(keyboard: PipeInput) -> None:
    completer = WordCompleter(["/clear"], sentence=True)
    assert reads(keyboard, "/cl\t", until="/clear", completer=completer) == "/clear"


def test_vi_keys_move_where_they_are_wanted(keyboard: PipeInput) -> None:
    assert reads(keyboard, "ello\x1b0ih\r", vi=True) == "hello"


def test_ctrl_g_opens_the_editor_with_what_is_typed(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "more: $(cat "$1")" > "$1"\n')
    editor.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(editor))
    listener = typed(keyboard, f"typed{CTRL_G}", until="more: typed")
    assert (listener.heard, listener.sent[0][0]) == (["hidden"], "more: typed")


@pytest.mark.parametrize(
    ("editor", "text", "hint"),
    [
        ('printf "caf\\351" > "$1"', "caf\ufffd", "status"),
        ('rm "$1"', "typed", "the editor failed: No such file or directory; your text is kept"),
        ("exit 1", "typed", "status"),
        (None, "typed", "the editor failed: No closing quotation; your text is kept"),
    ],
)
def test_an_editor_that_fails_costs_neither_text_nor_chat(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editor: str | None, text: str, hint: str
) -> None:
    file = tmp_path / "editor"
    file.write_text(f"#!/bin/sh\n{editor}\n")
    file.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(file) if editor else "vi 'x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    listener = Listener()
    listener.prompt = prompt = Prompt(listener)
    hints: list[str] = []

    def look(app: object) -> None:
        if listener.heard and not prompt.hidden and prompt.text == text and not hints:
            hints.append(prompt.status()[0][1])
            keyboard.send_text("\r")

    prompt.app.after_render += look
    keyboard.send_text(f"typed{CTRL_G}")
    prompt.app.run()
    assert (listener.sent, hints) == ([(text, text)], [hint])
    assert list(tmp_path.glob("llamachat-*")) == []


def test_a_text_is_offered_only_to_an_empty_line(keyboard: PipeInput) -> None:
    listener = Listener()
    listener.prompt = Prompt(listener)
    listener.prompt.offer("kept")
    listener.prompt.offer("other")
    assert listener.prompt.text == "kept"
