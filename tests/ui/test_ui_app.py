"""The chat: messages are answered, errors of a turn are survived, Ctrl-C stops an answer and never the chat."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Event
from typing import NoReturn

import pyte
import pytest
from fakes import UNTIL_INTERRUPT, FakeSession
from leaving import EXIT, leaving, press
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from llamachat.chat.session import Session
from llamachat.errors import DoesNotFitError, ModelError
from llamachat.events import Evicted, SavedDialog
from llamachat.ui import app, commands
from llamachat.ui.app import Chat, PlainChat, Watch, answer_all, converse, run
from llamachat.ui.conversation import Conversation
from llamachat.ui.render import Screen
from llamachat.ui.theme import load as load_theme

CTRL_C = partial(signal.raise_signal, signal.SIGINT)
BANNER = ["llamachat · Fake-1B · /help for commands, Ctrl-D to leave", ""]
LEFT = ["❯ /exit"]


def said(session: FakeSession) -> list[str]:
    return [text for role, text in session.said if role == "user"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def talk(keys: str, load: Callable[[], Session], wait: bool = True, **options: bool) -> tuple[int, list[str]]:
    """The exit code of a conversation in which these keys are pressed (/exit at their end once all else is done), and what is
    on the screen afterwards."""
    written = StringIO()
    output = Vt100_Output(written, lambda: Size(60, 80), term="xterm", enable_cpr=False)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        chat = Chat(load, "Fake-1B")
        if wait:
            chat.loading.exception()
        conversation = Conversation(chat, load_theme("none"), output=output, **options)
        press(conversation, keyboard, keys)
        code = conversation.run()
    screen = pyte.Screen(80, 60)
    pyte.Stream(screen).feed(written.getvalue().replace("\n", "\r\n"))
    lines = "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")
    assert lines[:2] == BANNER
    return code, lines[2:]


def pipe(lines: str, session: FakeSession) -> tuple[int, str, str]:
    """Exit code, answers and notes of a chat off a terminal."""
    out, notes = StringIO(), StringIO()
    code = answer_all(PlainChat(lambda: session, Screen(out, notes)), commands.messages(StringIO(lines)))
    return code, out.getvalue(), notes.getvalue()


# ---- at a terminal ----


def test_messages_are_answered_without_more_words() -> None:
    session = FakeSession(["Hel", "lo", "!"])
    code, lines = talk("hi\r//help\r/exit\r", lambda: session)
    assert code == 0
    assert lines == [
        "❯ hi",
        "Hello!",
        "",
        "❯ //help",
        "You said: /help",
        "",
        *LEFT,
    ]
    assert said(session) == ["hi", "/help"]


def test_a_multi_line_message_is_one_message() -> None:
    session = FakeSession()
    _, lines = talk('"""a\r/b\rc"""\r/exit\r', lambda: session)
    assert said(session) == ["a\n/b\nc"]
    assert lines[:3] == ['❯ """a', "  /b", '  c"""']


def test_ctrl_c_stops_the_answer_and_keeps_it() -> None:
    session = FakeSession(["half an ", lambda: (CTRL_C(), CTRL_C()), UNTIL_INTERRUPT, "answer"])
    before = signal.getsignal(signal.SIGINT)
    code, lines = talk("hi\rgo on\r/exit\r", lambda: session)
    assert code == 0
    assert lines[1:3] == ["half an", "stopped"]
    assert session.said[:3] == [("user", "hi"), ("assistant", "half an "), ("user", "go on")]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_a_turn_is_one_line_and_the_chat_goes_on() -> None:
    session = FakeSession(["half", DoesNotFitError("the prompt is too long", "", "shorten it")])
    code, lines = talk("hi\r/nope\ragain\r/exit\r", lambda: session)
    assert code == 0
    assert lines[:5] == ["❯ hi", "half", "error: the prompt is too long; shorten it", "", "❯ /nope"]
    assert lines[5].startswith("error: unknown command /nope")
    assert "You said: again" in lines


def test_evictions_and_notices_are_told() -> None:
    session = FakeSession([Evicted(1, 64), "ok", lambda: session.pending_notices.append("the disk is full")])
    session.pending_notices.append("resumed from disk")
    _, lines = talk("hi\r/exit\r", lambda: session)
    assert lines[:4] == ["resumed from disk", "❯ hi", "ok", "no longer seen by the model: the oldest turn (64 tokens)"]
    assert lines[4] == "the disk is full"


def test_a_message_waits_for_loading() -> None:
    go_on = Event()
    session = FakeSession()

    def load() -> Session:
        assert go_on.wait(60)
        return session

    threading.Timer(0.3, go_on.set).start()
    _, lines = talk("hi\r/exit\r", load, wait=False)
    assert lines[:2] == ["❯ hi", "You said: hi"]


def test_ctrl_c_while_waiting_for_loading_gives_the_text_back() -> None:
    go_on = Event()
    session = FakeSession()

    def load() -> Session:
        assert go_on.wait(60)
        return session

    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        talk = Conversation(Chat(load), load_theme("none"), output=DummyOutput())
        keys = iter(["\x03", " there\r", "/exit\r"])

        def press(app: object) -> None:
            """One after the other, as soon as each makes sense."""
            done = (talk.busy, talk.prompt.text == "hi", bool(session.said) and not talk.busy)
            if len(pressed) < 3 and done[len(pressed)]:
                pressed.append(next(keys))
                keyboard.send_text(pressed[-1])
                if len(pressed) == 2:
                    go_on.set()

        pressed: list[str] = []
        talk.prompt.app.after_render += press
        keyboard.send_text("hi\r")
        assert talk.run() == 0
    assert said(session) == ["hi there"]


def test_the_status_tells_what_loading_is_at() -> None:
    never, watch = Event(), Watch()
    chat = Chat(lambda: never.wait() and FakeSession(), "Fake-1B", watch)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        talk = Conversation(chat, load_theme("none"), output=DummyOutput())
        assert talk.status()[0].endswith("loading Fake-1B …")
        watch.plan = "1 GB of memory"
        assert talk.status()[0].endswith("loading Fake-1B: 1 GB of memory")
        watch.progress("downloading Fake-1B", 25, 100)
        assert talk.status()[0].endswith("downloading Fake-1B ███░░░░░░░ 25%")
        watch.progress("fetching a/b", 25_000_000, 100_000_000)
        assert talk.status()[0].endswith("fetching ██░░░░ 25% · 25/100 MB · a/b")
    never.set()


def test_what_is_pasted_large_is_shown_by_its_size() -> None:
    session = FakeSession(["ok"])
    _, lines = talk(f"see \x1b[200~{'x' * 30_000}\x1b[201~\r/exit\r", lambda: session)
    assert lines[:2] == ["❯ see [pasted 30,000 characters]", "ok"]
    assert said(session) == ["see " + "x" * 30_000]


def test_an_answer_command_streams_like_a_message() -> None:
    session = FakeSession(["**one**"], ["two"])
    _, lines = talk("hi\r/regen\r/exit\r", lambda: session)
    assert [line for line in lines if line in ("❯ /regen", "two")] == ["❯ /regen", "two"]


def test_plain_shows_markdown_as_it_is() -> None:
    _, lines = talk("hi\r/exit\r", lambda: FakeSession(["# a *b*\n", "- ", "c " * 50]), plain=True)
    assert lines[1:5] == ["# a *b*", "- " + " ".join("c" * 39), " ".join("c" * 11), lines[4]]


def test_a_bug_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        talk("hi\r", lambda: FakeSession([ZeroDivisionError()]))


@pytest.mark.parametrize("wait", [True, False])
def test_a_model_that_does_not_load_ends_the_chat(wait: bool) -> None:
    def load() -> Session:
        raise ModelError("no such file")

    with pytest.raises(ModelError, match="no such file"):
        talk("hi\r", load, wait)


def test_leaving_does_not_wait_for_loading() -> None:
    never = Event()
    assert talk("/help\r/exit\r", lambda: never.wait() and FakeSession(), wait=False)[0] == 0
    never.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_chat_after_the_answer_is_stopped(number: signal.Signals) -> None:
    session = FakeSession(["half", lambda: os.kill(os.getpid(), number), UNTIL_INTERRUPT])
    code, lines = talk("hi\r", lambda: session)
    assert (code, session.said) == (128 + number, [("user", "hi"), ("assistant", "half")])
    assert lines[1:3] == ["half", "stopped"]


@pytest.mark.parametrize(("command", "stays"), [("/heat", ""), ("/model Fake-7B", "; Fake-1B stays")])
def test_ctrl_c_stops_a_slow_command_and_says_so(command: str, stays: str) -> None:
    session = FakeSession(["one"], ["two"])
    session.script.at_work = lambda: (CTRL_C(), wait_for(lambda: session.interrupts > 0))
    _, lines = talk(f"hi\r{command}\rthere\r/exit\r", lambda: session)
    assert lines[lines.index(f"❯ {command}") + 1] == f"error: stopped{stays}"
    assert (session.describe()["model"], said(session)) == ("Fake-1B", ["hi", "there"])
    assert "two" in lines, "nothing of it stops the next answer"


def test_ctrl_c_is_acknowledged_in_the_status_until_what_is_slow_has_ended() -> None:
    told: list[str] = []
    session = FakeSession()
    output = DummyOutput()
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        talk = Conversation(Chat(lambda: session, "Fake-1B"), load_theme("none"), output=output)

        def saved() -> list[SavedDialog]:
            CTRL_C()
            wait_for(lambda: session.interrupts > 0)
            told.extend(talk.status())
            return []

        session.saved = saved  # type: ignore[method-assign]
        press(talk, keyboard, "/sessions\r/exit\r")
        assert talk.run() == 0
    assert told[-1].endswith("stopping as soon as that can be")


def test_a_fault_of_the_machine_is_not_taken_for_a_terminal_that_is_gone() -> None:
    fault = OSError(28, "No space left on device")
    session = FakeSession(["fine"], [fault])
    session.saved = partial(fail, fault)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        talk("/sessions\rhi\rhi\r", lambda: session)
    assert said(session) == ["hi", "hi"]  # a command that fails ends nothing


def fail(error: Exception) -> NoReturn:
    raise error


# ---- at a terminal that can do nothing ----


def test_a_dumb_terminal_gets_one_line_after_the_other() -> None:
    keys = iter(["", "hi", '"""a', 'b"""', "/nope", KeyboardInterrupt(), EOFError()])

    def read(prompt: str) -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    out, session = StringIO(), FakeSession()
    assert converse(PlainChat(lambda: session, Screen(out, out), "Fake-1B"), read=read) == 0
    assert said(session) == ["hi", "a\nb"]
    assert out.getvalue().splitlines()[:4] == [*BANNER, "You said: hi", ""]


def test_a_dumb_terminal_shows_the_old_question_and_stops_a_slow_command() -> None:
    keys, out, session = iter(["hi", "/edit 1", "/heat", "more", EOFError()]), StringIO(), FakeSession()
    session.script.at_work = CTRL_C

    def read(prompt: str) -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    assert converse(PlainChat(lambda: session, Screen(out, out)), read=read) == 0
    lines = out.getvalue().splitlines()
    assert "/edit 1 hi" in lines and "error: stopped" in lines
    assert said(session) == ["hi", "more"]


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (['"""one', "two", EOFError()], '"""one\ntwo'),
        (["hi", '"""one', app.SignalledError(signal.SIGTERM)], '"""one'),
        (['"""one', KeyboardInterrupt(), EOFError()], ""),
        (['"""one', 'two"""', EOFError()], ""),
        (["hi", EOFError()], ""),
    ],
)
def test_a_dumb_terminal_keeps_a_block_that_was_not_closed(
    tmp_path: Path, keys: list[str | BaseException], kept: str
) -> None:
    coming, out, session = iter(keys), StringIO(), FakeSession()

    def read(prompt: str) -> str:
        key = next(coming)
        if isinstance(key, BaseException):
            raise key
        return key

    chat = PlainChat(lambda: session, Screen(out, out))
    wait_for(lambda: chat.ready() is not None)
    with suppress(app.SignalledError):
        converse(chat, read=read, folder=tmp_path)
    assert "".join(file.read_text() for file in tmp_path.glob("unsent-*")) == kept
    assert ("what you had not sent is in" in out.getvalue()) == bool(kept)
    assert kept not in said(session)


def test_a_dumb_terminal_keeps_what_waited_for_a_model_that_does_not_load(tmp_path: Path) -> None:
    out, asked = StringIO(), Event()

    def load() -> NoReturn:
        wait_for(asked.is_set)
        raise ModelError("it is damaged")

    def read(prompt: str) -> str:
        asked.set()
        return "a long question"

    with pytest.raises(ModelError):
        converse(PlainChat(load, Screen(out, out)), read=read, folder=tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a long question"]


# ---- while an answer streams ----


@pytest.mark.parametrize(
    ("command", "shown"),
    [("/help exit", "/exit /bye"), ("/stats", "  answer"), ("/sessions", "no saved dialogs"), ("/copy 1", "")],
)
def test_a_command_that_looks_acts_at_once_and_the_answer_goes_on_below_it(command: str, shown: str) -> None:
    more, session = Event(), FakeSession(["the first", " answer"])
    session.enqueue("one two ", lambda: wait_for(more.is_set), "three")
    session.saved = lambda: []  # type: ignore[method-assign]
    keys = iter([command + "\r"])
    with _live(session) as (talk, keyboard, screen):

        def look(app: object) -> None:
            lines = screen()
            if "one two" in lines and not more.is_set():
                keyboard.send_text(next(keys, ""))
            if f"❯ {command}" in lines:
                more.set()

        talk.prompt.app.after_render += look
        talk.prompt.app.after_render += leaving(talk, keyboard)
        keyboard.send_text("hi\rgo\r")
        assert talk.run() == 0
        lines = screen()
    assert lines.count("one two three") == 1 and "one two" not in lines
    assert lines.index(f"❯ {command}") < lines.index("one two three")
    assert any(shown in line for line in lines[lines.index(f"❯ {command}") : lines.index("one two three")])
    assert said(session) == ["hi", "go"]


def test_the_status_says_that_it_answers_from_the_first_piece_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.ui.conversation.BEAT", 1e6)
    session = FakeSession()
    with _live(session) as (talk, keyboard, screen):
        session.enqueue("one ", lambda: wait_for(lambda: any("answering · 1 " in line for line in screen())), "two")
        talk.prompt.app.after_render += leaving(talk, keyboard)
        keyboard.send_text("hi\r")
        assert talk.run() == 0
    assert "one two" in screen()


def test_exit_leaves_in_the_midst_of_an_answer_which_is_kept() -> None:
    session, keys = FakeSession(), iter([EXIT])
    session.enqueue("half", UNTIL_INTERRUPT)
    with _live(session) as (talk, keyboard, screen):

        def look(app: object) -> None:
            if "half" in screen():
                keyboard.send_text(next(keys, ""))

        talk.prompt.app.after_render += look
        keyboard.send_text("hi\r")
        assert talk.run() == 0
        lines = [line for line in screen() if line]
    assert (said(session), lines[-1]) == (["hi"], "stopped")


def test_ctrl_c_hands_back_all_that_waits_and_up_takes_the_last_out() -> None:
    session, seen = FakeSession(), list[str]()
    session.enqueue("half", UNTIL_INTERRUPT)
    with _live(session) as (talk, keyboard, _):
        steps = iter(
            [
                (lambda: talk.busy, "two\rthree\rfour\r"),
                (lambda: "3 waiting" in talk.status()[0], "\x1b[A"),
                (lambda: talk.prompt.text == "four", " and a half"),
                (lambda: talk.prompt.text == "four and a half", "\x03"),
                (lambda: talk.prompt.text.count("\n") == 2, "\x04"),
            ]
        )
        step = next(steps)

        def look(app: object) -> None:
            nonlocal step
            if step[0]():
                seen.append(talk.prompt.text)
                keyboard.send_text(step[1])
                step = next(steps, (lambda: not talk.busy, "\x15\x7f" * 3 + EXIT))

        talk.prompt.app.after_render += look
        keyboard.send_text("hi\r")
        assert talk.run() == 0
    assert seen[4] == "two\nthree\nfour and a half"
    assert said(session) == ["hi"]


@contextmanager
def _live(session: FakeSession) -> Iterator[tuple[Conversation, PipeInput, Callable[[], list[str]]]]:
    """A conversation, its keyboard and what is on its screen."""
    written = StringIO()
    output = Vt100_Output(written, lambda: Size(60, 80), term="xterm", enable_cpr=False)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        chat = Chat(lambda: session, "Fake-1B")
        chat.loading.exception()

        def screen() -> list[str]:
            shown = pyte.Screen(80, 60)
            pyte.Stream(shown).feed(written.getvalue().replace("\n", "\r\n"))
            return [line.rstrip() for line in shown.display]

        yield Conversation(chat, load_theme("none"), output=output), keyboard, screen


# ---- off a terminal ----


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
    assert session.said == [("user", "one"), ("assistant", "half")]


def test_off_a_terminal_ctrl_c_ends_a_slow_command_and_the_chat() -> None:
    session = FakeSession()
    session.script.at_work = CTRL_C
    assert pipe("one\n/heat\ntwo\n", session) == (130, "You said: one\n", "error: stopped\n")
    assert said(session) == ["one"]


def test_off_a_terminal_ctrl_c_twice_breaks_off_what_does_not_stop() -> None:
    never = Event()
    session = FakeSession()
    session.script.at_work = lambda: (CTRL_C(), CTRL_C(), never.wait())
    assert pipe("one\n/heat\ntwo\n", session) == (130, "You said: one\n", "")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """When sessions were closed."""
    times: list[float] = []
    monkeypatch.setattr(FakeSession, "close", lambda self: times.append(time.monotonic()), raising=False)
    yield times


def test_run_off_a_terminal_uses_the_standard_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: list[float]
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    assert run(FakeSession) == 0
    assert capsys.readouterr() == ("You said: hi\n", "")
    assert len(closed) == 1


def test_the_session_is_closed_after_a_bug_too(monkeypatch: pytest.MonkeyPatch, closed: list[float]) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    with pytest.raises(ZeroDivisionError):
        run(lambda: FakeSession([ZeroDivisionError()]))
    assert len(closed) == 1


def test_off_a_terminal_a_signal_keeps_the_answer_and_closes_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: list[float]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    session = FakeSession(["half", partial(signal.raise_signal, signal.SIGTERM), "never"])
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    assert run(lambda: session) == 143
    assert capsys.readouterr().out == "half\n"
    assert (len(closed), session.said) == (1, [("user", "hi"), ("assistant", "half")])
    assert signal.getsignal(signal.SIGTERM) is before


def test_off_a_terminal_a_signal_does_not_keep_the_session_from_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, session = list[str](), FakeSession()

    def close() -> None:
        signal.raise_signal(signal.SIGTERM)
        closed.append("whole")

    session.close = close  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    assert run(lambda: session) == 0 and closed == ["whole"]


def test_run_turns_a_failed_load_into_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> Session:
        raise DoesNotFitError("the weights need 9 GB", "there are 4", "take a smaller model")

    monkeypatch.setattr(sys, "stdin", StringIO(""))
    assert run(load) == 4
    assert capsys.readouterr() == ("", "error: the weights need 9 GB; there are 4; take a smaller model\n")


def test_off_a_terminal_ctrl_c_while_loading_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not through the interpreter's shutdown, which a thread deep in native code would crash."""
    never, left = Event(), list[int]()
    monkeypatch.setattr(sys, "stdin", StringIO("hi\n"))
    monkeypatch.setattr(app, "leave_now", left.append)
    monkeypatch.setattr(Screen, "waiting", lambda self, line: CTRL_C())
    run(lambda: never.wait() and FakeSession())
    never.set()
    assert left == [130]
