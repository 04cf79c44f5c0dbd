"""An error of the interface itself costs one line; what cannot go on ends with the text saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import pyte
import pytest
from fakes import UNTIL_INTERRUPT, FakeSession
from leaving import press
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output
from pty_chat import Terminal

from llamachat.errors import LlamachatError, LostError, ModelError
from llamachat.ui.app import Chat
from llamachat.ui.commands import EmptyLibrary
from llamachat.ui.conversation import Conversation
from llamachat.ui.faults import save_unsent
from llamachat.ui.theme import load

TOLD = "the chat made a mistake (ZeroDivisionError: ours); it goes on, and your text is kept"


class Failing(EmptyLibrary):
    def models(self) -> Iterator[tuple[str, str]]:
        raise ZeroDivisionError("ours")


class Talk:
    """A conversation on a terminal that a test can look at."""

    def __init__(self, folder: Path, **options: bool) -> None:
        self._written = StringIO()
        self._output = Vt100_Output(self._written, lambda: Size(40, 100), term="xterm", enable_cpr=False)
        self._folder, self._options = folder, options
        self.session = FakeSession()

    def run(
        self,
        keys: str,
        prepare: Callable[[Conversation], None] = lambda talk: None,
        opening: Callable[[], FakeSession] | None = None,
    ) -> int:
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=self._output):
            chat = Chat(opening or (lambda: self.session), "Fake-1B")
            if not opening:
                chat.loading.result()
            history = self._folder / "history"
            talk = Conversation(chat, load("none"), history, Failing(), output=self._output, **self._options)
            prepare(talk)
            press(talk, keyboard, keys)
            return talk.run()

    def lines(self) -> list[str]:
        screen = pyte.Screen(100, 40)
        pyte.Stream(screen).feed(self._written.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display]

    def unsent(self) -> str:
        (file,) = self._folder.glob("unsent-*.txt")
        assert file.stat().st_mode & 0o777 == 0o600
        return file.read_text()


def leave_when(talk: Conversation, done: Callable[[], bool]) -> None:
    talk.prompt.app.after_render += lambda app: done() and talk.leave()


def fail(*args: object, **kwargs: object) -> None:
    raise ZeroDivisionError("ours")


def test_a_completer_that_fails_is_told_of_once(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    assert talk.run("/model x\t\t\x15hi\r/exit\r") == 0
    assert [text for role, text in talk.session.said if role == "user"] == ["hi"]
    assert talk.lines().count(TOLD) <= 1


def test_a_command_that_fails_is_told_of_and_the_next_is_obeyed(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.session.parameters = fail  # type: ignore[method-assign]
    assert talk.run("/set\r/system\r/exit\r") == 0
    assert talk.lines().count(TOLD) == 1
    assert "Be brief." in talk.lines()


@pytest.mark.parametrize("verbose", [False, True])
def test_what_fails_after_an_answer_lets_the_next_one_come(tmp_path: Path, verbose: bool) -> None:
    talk = Talk(tmp_path, verbose=verbose)
    talk.session.notices = fail  # type: ignore[method-assign,assignment]
    assert talk.run("one\rtwo\r/exit\r") == 0
    lines = talk.lines()
    assert "You said: one" in lines and "You said: two" in lines
    assert lines.count(TOLD) == 1
    assert any("Traceback" in line for line in lines) == verbose


def test_a_screen_that_cannot_be_drawn_ends_the_chat_and_saves_the_text(tmp_path: Path) -> None:
    talk, drawn = Talk(tmp_path), [0]

    def prepare(conversation: Conversation) -> None:
        def look(app: object) -> None:
            drawn[0] += 1
            if conversation.prompt.text == "half a question":
                raise ZeroDivisionError("ours")

        conversation.prompt.app.before_render += look

    with pytest.raises(
        LlamachatError, match=r"cannot draw its screen any more \(ZeroDivisionError: ours\); it has ended"
    ):
        talk.run("half a question", prepare)
    assert talk.unsent() == "half a question"
    assert drawn[0] < 20
    assert "what you had not sent is in" in "".join(talk.lines())


def test_answers_that_cannot_be_painted_end_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(tmp_path)
    talk.session.enqueue(*["piece "] * 50)
    monkeypatch.setattr("llamachat.ui.above.Flow.paint", fail)
    with pytest.raises(LlamachatError, match="cannot draw its screen"):
        talk.run("hi\rdraft")
    assert talk.unsent() == "draft"


def test_where_the_draft_is_stands_below_the_answer_that_was_stopped(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.session.enqueue("half", lambda: os.kill(os.getpid(), signal.SIGTERM), UNTIL_INTERRUPT)
    assert talk.run("hi\rnext") == 128 + signal.SIGTERM
    shown = [line for line in talk.lines() if line]
    assert shown[shown.index("half") + 1] == "stopped"
    assert shown[shown.index("stopped") + 1].startswith("what you had not sent is in")
    assert talk.unsent() == "next"


def test_one_who_leaves_keeps_what_was_not_sent(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    paste = "x\n" * 1000

    def prepare(conversation: Conversation) -> None:
        leave_when(conversation, lambda: "and so on" in conversation.prompt.text)

    assert talk.run(f"\x1b[200~{paste}\x1b[201~ and so on", prepare) == 0
    assert talk.unsent() == paste + " and so on"


def test_the_draft_before_an_older_text_was_looked_up_is_kept(tmp_path: Path) -> None:
    talk = Talk(tmp_path)

    def prepare(conversation: Conversation) -> None:
        conversation.prompt.remember("older")
        leave_when(conversation, lambda: conversation.prompt.text == "older")

    assert talk.run("my draft\x1b[A", prepare) == 0
    assert talk.unsent().split("\n\n") == ["older", "my draft"]


def test_what_was_written_in_an_editor_is_kept_where_the_chat_ends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, ended = tmp_path / "editor", tmp_path / "ended"
    editor.write_text(f'''#!/bin/sh
        kill -TERM $PPID
        until [ -e "{ended}" ]; do sleep 0.05; done
        echo edited > "$1"''')
    editor.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(editor))
    talk = Talk(tmp_path)

    def prepare(conversation: Conversation) -> None:
        leave = conversation.prompt.app.exit

        def left(result: int) -> None:
            leave(result=result)
            ended.touch()

        monkeypatch.setattr(conversation.prompt.app, "exit", left)

    assert talk.run("draft\x07", prepare) == 128 + signal.SIGTERM
    assert talk.unsent().split("\n\n") == ["edited", "draft"]


def test_an_impatient_ctrl_c_while_the_chat_ends_loses_nothing(tmp_path: Path) -> None:
    talk = Talk(tmp_path)

    def ctrl_c() -> None:
        while not talk.session.interrupts:
            threading.Event().wait(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    talk.session.enqueue("half", lambda: os.kill(os.getpid(), signal.SIGTERM), ctrl_c)
    assert talk.run("hi\rnext") == 128 + signal.SIGTERM
    assert talk.unsent() == "next"


@pytest.mark.parametrize("error", [LlamachatError("no connection", "not sent"), LostError("the others are gone")])
def test_a_message_that_could_not_be_sent_is_in_the_input_again(tmp_path: Path, error: LlamachatError) -> None:
    talk, paste = Talk(tmp_path), "x\n" * 1000
    talk.session.enqueue(error)
    lost = isinstance(error, LostError)

    def prepare(conversation: Conversation) -> None:
        leave_when(conversation, lambda: not (conversation.busy or talk.session.script.answers))

    with pytest.raises(LostError) if lost else nullcontext():
        talk.run(f"\x1b[200~{paste}\x1b[201~ and so on\r", prepare)
    assert talk.unsent() == paste + " and so on"
    assert not [text for role, text in talk.session.said if role == "user"]


def test_so_is_one_that_a_command_sends(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.session.enqueue("ok")
    talk.session.enqueue(LlamachatError("no connection"))

    def prepare(conversation: Conversation) -> None:
        leave_when(conversation, lambda: bool(talk.session.said) and not (conversation.busy or conversation.queued))

    assert talk.run("hi\r/edit 1 in other words\r", prepare) == 0
    assert talk.unsent() == "/edit 1 in other words"


def test_one_that_found_the_input_in_use_is_kept_until_it_is_sent(tmp_path: Path) -> None:
    talk, typing = Talk(tmp_path), threading.Event()
    for _ in range(2):
        talk.session.enqueue(typing.wait, LlamachatError("no connection"))  # type: ignore[arg-type]

    def prepare(conversation: Conversation) -> None:
        def look(app: object) -> None:
            if conversation.prompt.text == "draft":
                typing.set()
                if not (conversation.busy or conversation.queued):
                    conversation.leave()

        conversation.prompt.app.after_render += look

    assert talk.run("one\rtwo\rdraft", prepare) == 0
    assert talk.unsent().split("\n\n") == ["one", "two", "draft"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_waits_for_a_model_that_never_comes_is_kept(tmp_path: Path, fails: bool) -> None:
    sent, talk = threading.Event(), Talk(tmp_path)

    def opening() -> FakeSession:
        sent.wait()
        raise ModelError("it broke") if fails else AssertionError

    def prepare(conversation: Conversation) -> None:
        def look(app: object) -> None:
            if conversation.queued and not sent.is_set():
                if fails:
                    sent.set()
                else:
                    conversation.leave()

        conversation.prompt.app.after_render += look

    ending = pytest.raises(ModelError) if fails else nullcontext()
    with ending:
        assert talk.run("first\rsecond\rthird", prepare, opening) == 0
    sent.set()
    assert sorted(talk.unsent().split()) == ["first", "second", "third"]
    assert talk.unsent().startswith("first")


def test_what_may_not_be_written_down_is_shown(tmp_path: Path) -> None:
    assert save_unsent(["one", " ", "two"], None) == "what you had not sent:\none\n\ntwo"
    (tmp_path / "file").touch()
    assert save_unsent(["text"], tmp_path / "file" / "folder") == "what you had not sent:\ntext"
    assert save_unsent(["", " "], tmp_path) == ""


def test_a_signal_saves_what_was_typed(start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start(options=f", theme='none', history_file=__import__('pathlib').Path({str(tmp_path / 'history')!r})")
    terminal.prompted()
    terminal.child.send("a question")
    terminal.wait_for("❯ a question")
    terminal.child.kill(15)
    assert terminal.ended() == 128 + 15
    (file,) = tmp_path.glob("unsent-*.txt")
    assert file.read_text() == "a question"
