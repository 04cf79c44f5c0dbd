"""The loop: messages are answered, errors of a turn are survived, Ctrl-C stops an answer and never the chat."""

import signal
import sys
from collections.abc import Callable
from functools import partial
from io import StringIO
from threading import Event

import pytest
from fakes import FakeSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llamachat.errors import DoesNotFitError, ModelError
from llamachat.events import Evicted
from llamachat.ui import app
from llamachat.ui.app import Chat, ChatSession, answer_lines, converse, run
from llamachat.ui.prompt import Prompt
from llamachat.ui.render import Screen

CTRL_C = partial(signal.raise_signal, signal.SIGINT)


def talk(keys: str, load: Callable[[], ChatSession], wait: bool = True) -> tuple[int, list[str]]:
    """The exit code and the lines of an interactive chat in which these keys are pressed."""
    out = StringIO()
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        chat = Chat(load, Screen(out, out), "Fake-1B")
        if wait:
            chat.session()
        keyboard.send_text(keys)
        prompt = Prompt(status=chat.status, parameters=chat.parameters, failure=chat.failure)
        return converse(chat, prompt), out.getvalue().splitlines()


def pipe(lines: str, session: FakeSession) -> tuple[int, str, str]:
    """Exit code, answers and notes of a chat off a terminal."""
    out, notes = StringIO(), StringIO()
    code = answer_lines(Chat(lambda: session, Screen(out, notes)), StringIO(lines))
    return code, out.getvalue(), notes.getvalue()


def test_messages_are_answered_with_statistics() -> None:
    session = FakeSession(["Hel", "lo", "!"])
    code, lines = talk("hi\r//help\r/exit\r", lambda: session)
    assert code == 0
    assert lines == [
        "Hello!",
        "3 tokens · 40.0 tok/s · first token 0.25 s · context <1% of 8192",
        "",
        "You said: /help",
        "2 tokens · 40.0 tok/s · first token 0.25 s · context <1% of 8192",
        "",
    ]
    assert session.history[0] == ("user", "hi")


def test_a_multi_line_message_is_one_message() -> None:
    session = FakeSession()
    talk('"""a\r/b\rc"""\r\x04', lambda: session)
    assert [text for role, text in session.history if role == "user"] == ["a\n/b\nc"]


def test_ctrl_c_stops_the_answer_and_keeps_it() -> None:
    session = FakeSession(["half an ", lambda: (CTRL_C(), CTRL_C()), "answer"])
    before = signal.getsignal(signal.SIGINT)
    code, lines = talk("hi\rgo on\r\x04", lambda: session)
    assert code == 0
    assert lines[:2] == ["half an ", "stopped · 1 token · first token 0.25 s · context <1% of 8192"]
    assert session.history[:2] == [("user", "hi"), ("assistant", "half an ")]
    assert (session.interrupts, session.history[2]) == (2, ("user", "go on"))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_a_turn_is_one_line_and_the_chat_goes_on() -> None:
    session = FakeSession(["half", DoesNotFitError("the prompt is too long", "", "shorten it")])
    code, lines = talk("hi\r/nope\ragain\r\x04", lambda: session)
    assert code == 0
    assert lines[:3] == ["half", "error: the prompt is too long; shorten it", ""]
    assert lines[3].startswith("error: unknown command /nope")
    assert lines[5] == "You said: again"


def test_evictions_are_told() -> None:
    _, lines = talk("hi\r\x04", lambda: FakeSession([Evicted(1, 64), "ok"]))
    assert lines[:2] == ["no longer seen by the model: the oldest turn (64 tokens)", "ok"]


def test_a_message_waits_for_loading() -> None:
    typed = Event()

    def load() -> ChatSession:
        assert typed.wait(10)
        return FakeSession()

    class Hasty(Screen):
        def waiting(self, line: str) -> object:
            self.note(line)
            typed.set()
            return super().waiting(line)

    out = StringIO()
    chat = Chat(load, Hasty(out, out), "Fake-1B")
    assert chat.status() == "loading Fake-1B …"
    chat.handle("hi")
    assert out.getvalue().splitlines() == ["loading Fake-1B …", "You said: hi"]
    assert chat.status() == "Fake-1B · 40.0 tok/s · context █░░░░░░░░░ <1% of 8192"


def test_ctrl_c_while_waiting_for_loading_gives_the_text_back() -> None:
    go_on = Event()

    def load() -> ChatSession:
        assert go_on.wait(10)
        return FakeSession()

    class Impatient(Screen):
        def waiting(self, line: str) -> object:
            if not go_on.is_set():
                go_on.set()
                CTRL_C()
            return super().waiting(line)

    out = StringIO()
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("hi\r there\r\x04")
        assert converse(Chat(load, Impatient(out, out)), Prompt(status=str)) == 0
    assert out.getvalue().splitlines()[:3] == ["still loading; your text is kept", "", "You said: hi there"]


def test_a_bug_of_ours_is_not_taken_for_leaving() -> None:
    with pytest.raises(EOFError):
        talk("hi\r", lambda: FakeSession([EOFError()]))


@pytest.mark.parametrize("wait", [True, False])
def test_a_model_that_does_not_load_ends_the_chat(wait: bool) -> None:
    def load() -> ChatSession:
        raise ModelError("no such file")

    with pytest.raises(ModelError, match="no such file"):
        talk("hi\r", load, wait)


def test_leaving_does_not_wait_for_loading() -> None:
    never = Event()
    assert talk("/help\r/exit\r", lambda: never.wait() and FakeSession(), wait=False)[0] == 0
    never.set()


def test_off_a_terminal_each_line_is_answered_and_nothing_else_goes_out() -> None:
    session = FakeSession([Evicted(1, 9), "ab"], ["c\n"])
    assert pipe("one\n\ntwo\n", session) == (0, "ab\nc\n", "no longer seen by the model: the oldest turn (9 tokens)\n")


def test_off_a_terminal_commands_work_and_exit_ends() -> None:
    session = FakeSession()
    code, out, notes = pipe("/system Be long.\nhi\n/exit\nnever\n", session)
    assert (code, out, notes, session.system) == (0, "You said: hi\n", "system prompt set\n", "Be long.")


def test_off_a_terminal_the_first_failure_gives_the_exit_code() -> None:
    session = FakeSession([DoesNotFitError("too long")])
    code, out, notes = pipe("one\n/nope\ntwo\n", session)
    assert (code, out) == (4, "You said: two\n")
    assert notes.splitlines()[0] == "error: too long"


def test_off_a_terminal_ctrl_c_ends_after_keeping_the_answer() -> None:
    session = FakeSession(["half", CTRL_C, " more"])
    assert pipe("one\ntwo\n", session) == (130, "half\n", "")
    assert session.history == [("user", "one"), ("assistant", "half")]


def test_run_off_a_terminal_uses_the_standard_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    assert run(FakeSession) == 0
    assert capsys.readouterr() == ("You said: hi\n", "")


def test_run_turns_a_failed_load_into_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> ChatSession:
        raise DoesNotFitError("the weights need 9 GB", "there are 4", "take a smaller model")

    monkeypatch.setattr(sys, "stdin", StringIO(""))
    assert run(load) == 4
    assert capsys.readouterr() == ("", "error: the weights need 9 GB; there are 4; take a smaller model\n")


def test_off_a_terminal_ctrl_c_while_loading_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not through the interpreter's shutdown, which a thread deep in native code would crash."""
    never, left = Event(), list[int]()
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    monkeypatch.setattr(app, "_leave_now", left.append)
    monkeypatch.setattr(Screen, "waiting", lambda self, line: CTRL_C())
    run(lambda: never.wait() and FakeSession())
    never.set()
    assert left == [130]
