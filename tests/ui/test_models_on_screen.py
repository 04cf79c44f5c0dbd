"""/model on the screen: what there is, and the question before anything is fetched, in both chats."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import StringIO

import pyte
import pytest
from fakes import FakeSession
from hypothesis import given, settings
from hypothesis import strategies as st
from leaving import press
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from llamachat.errors import DoesNotFitError
from llamachat.events import ModelView
from llamachat.system.sanitise import sanitise
from llamachat.ui import commands, model_list, progress_line
from llamachat.ui.app import Chat, PlainChat
from llamachat.ui.cells import cells
from llamachat.ui.conversation import Conversation
from llamachat.ui.render import Screen
from llamachat.ui.suggestions import ChatCompleter
from llamachat.ui.theme import load as load_theme

CTRL_C = partial(signal.raise_signal, signal.SIGINT)
QUESTION = "Fake-7B is not here: fetch 7.0 GB? (y/n)"
VIEWS = [
    ModelView("Fake-1B", "1.0 GB", True, note="a small one"),
    ModelView("ollama:llama3.2:1b", "1.3 GB", True, place="ollama"),
    ModelView("lmstudio:lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M", "2.5 GB", True, place="LM Studio"),
    ModelView("hf:ada/mamba/mamba.gguf", "1 MB", None, note="mamba is no architecture that runs here", runs=False),
    ModelView("Fake-7B", "7.0 GB", True, here=False, note="a large one: \x1b[31mred"),
    ModelView("Fake-70B", "141.1 GB", False, here=False, note="too large a one", needs="150 GB of memory"),
]


class Shelf(commands.EmptyLibrary):
    """A library that has Fake-7B once it was fetched."""

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.fetched: list[str] = []
        self.during = during

    def views(self) -> Sequence[ModelView]:
        return VIEWS

    def view(self, name: str) -> ModelView | None:
        return next((view for view in VIEWS if view.name == name and name not in self.fetched), None)

    def better(self) -> ModelView | None:
        return VIEWS[1]

    def fetch(self, name: str, progress: Callable[[str, int, int | None], None]) -> None:
        progress(f"fetching {name}", 1_000_000, 7_000_000_000)
        self.during()
        progress(f"fetching {name}", 3_500_000_000, 7_000_000_000)
        self.fetched.append(name)


# ---- the list ----


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_the_list_fits_any_width_and_cuts_no_name(width: int) -> None:
    lines = model_list.lines(VIEWS, "Fake-1B", width, load_theme("none"))
    assert max(map(cells, lines)) <= width
    joined = "".join(line[2:] for line in lines)
    assert all(view.name in joined for view in VIEWS)
    assert [line for line in lines if line.startswith("*")] == [next(line for line in lines if "Fake-1B" in line)]


def test_the_list_says_what_is_here_what_fits_and_what_may_be_fetched() -> None:
    assert model_list.lines(VIEWS, "ollama:llama3.2:1b", 76, load_theme("none")) == [
        "cannot run here",
        "  hf:ada/mamba/mamba.gguf      1 MB  mamba is no architecture that runs here",
        "too large for the memory that is free",
        "  Fake-70B                 141.1 GB  too large a one",
        "to be fetched",
        "  Fake-7B                    7.0 GB  a large one: red",
        "here",
        "  Fake-1B                    1.0 GB  a small one",
        "* ollama:llama3.2:1b         1.3 GB  from ollama",
        "  lmstudio:lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M",
        "                             2.5 GB  from LM Studio",
    ]


@settings(max_examples=40)
@given(
    st.lists(st.builds(ModelView, st.text(max_size=80), st.text("0123456789 GB", max_size=8), note=st.text())),
    st.integers(24, 130),
)
def test_no_model_can_drive_the_terminal_or_break_the_page(views: list[ModelView], width: int) -> None:
    lines = model_list.lines(views, "", width, load_theme("none"))
    assert all(cells(line) <= width and line == sanitise(line) for line in lines)


# ---- the question, at a prompt that stays ----


@contextmanager
def conversing(library: Shelf, session: FakeSession) -> Iterator[tuple[Conversation, PipeInput, StringIO]]:
    """A conversation, its keyboard and what it writes to its terminal."""
    written = StringIO()
    output = Vt100_Output(written, lambda: Size(60, 80), term="xterm", enable_cpr=False)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        chat = Chat(lambda: session, "Fake-1B")
        chat.loading.result()
        conversation = Conversation(chat, load_theme("none"), output=output, library=library)
        yield conversation, keyboard, written


def talk(library: Shelf, session: FakeSession, keys: str, *later: tuple[str, str]) -> list[str]:
    """The screen after a conversation: `keys`, then each further key once the status line begins as said."""
    with conversing(library, session) as (conversation, keyboard, written):

        def press_later() -> None:
            for status, text in later:
                end = time.monotonic() + 60
                while not conversation.status()[-1].startswith(status) and time.monotonic() < end:
                    time.sleep(0.005)
                press(conversation, keyboard, text)

        threading.Thread(target=press_later, daemon=True).start()
        keyboard.send_text(keys)
        assert conversation.run() == 0
    screen = pyte.Screen(80, 60)
    pyte.Stream(screen).feed(written.getvalue().replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")[2:]


ASKED, IDLE = "y or n", "Fake-"


def model(session: FakeSession) -> str:
    return session.describe()["model"]


def test_yes_fetches_and_goes_on_with_the_dialog() -> None:
    library, session = Shelf(), FakeSession()
    lines = talk(library, session, "hi\r/model Fake-7B\r", (ASKED, "y\r/exit\r"))
    assert lines[lines.index(QUESTION) :][:3] == [QUESTION, "❯ y", "Fake-7B goes on with the dialog"]
    assert (model(session), library.fetched, session.said[0][1]) == ("Fake-7B", ["Fake-7B"], "hi")


@pytest.mark.parametrize("reply", ["n\r", "No\r", "\x03"])
def test_no_and_ctrl_c_leave_all_as_it_was(reply: str) -> None:
    library, session = Shelf(), FakeSession()
    lines = talk(library, session, "/model Fake-7B\r", (ASKED, reply), (IDLE, "hi\r/exit\r"))
    assert "not fetched; Fake-1B stays" in lines and "You said: hi" in lines
    assert (model(session), library.fetched) == ("Fake-1B", [])


def test_one_may_leave_at_the_question() -> None:
    library, session = Shelf(), FakeSession()
    lines = talk(library, session, "/model Fake-7B\r", (ASKED, "\x04"))
    assert (model(session), library.fetched) == ("Fake-1B", []) and QUESTION in lines


def test_what_is_typed_ahead_or_at_the_question_waits_and_is_no_reply() -> None:
    library, session = Shelf(), FakeSession()
    lines = talk(library, session, "/model Fake-7B\rtyped ahead\r", (ASKED, "yes, but why?\ry\r/exit\r"))
    assert model(session) == "Fake-7B"
    assert [line for line in lines if line.startswith("You said")] == [
        "You said: typed ahead",
        "You said: yes, but why?",
    ]


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.005)


def until(conversation: Conversation, text: str) -> str:
    """The status, once it holds this."""
    wait_for(lambda: text in conversation.status()[-1])
    return conversation.status()[-1]


def test_progress_is_in_the_status_line_and_ctrl_c_ends_it() -> None:
    seen: list[str] = []
    going = threading.Event()
    library, session = Shelf(during=lambda: going.wait(10)), FakeSession()

    with conversing(library, session) as (conversation, keyboard, written):

        def press_later() -> None:
            until(conversation, "y or n")
            keyboard.send_text("y\r")
            seen.append(until(conversation, "fetching"))
            keyboard.send_text("\x03")
            until(conversation, "stopping")
            going.set()
            until(conversation, "Fake-1B")
            keyboard.send_text("/exit\r")

        threading.Thread(target=press_later, daemon=True).start()
        keyboard.send_text("/model Fake-7B\r")
        assert conversation.run() == 0
    assert "fetching █" in seen[0] and "/7.0 GB" in seen[0]
    assert "error: stopped; Fake-1B stays; what has come is kept" in written.getvalue()
    assert (model(session), library.fetched) == ("Fake-1B", [])


@pytest.mark.parametrize("ends", ["", "\x03"])
def test_loading_that_takes_a_second_shows_how_far_it_is_and_ctrl_c_goes_back(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_line, "LATE", -1)
    going, seen = threading.Event(), list[str]()
    library, session = Shelf(), FakeSession()
    library.fetched.append("Fake-7B")
    session.script.at_work = lambda: going.wait(10)
    with conversing(library, session) as (conversation, keyboard, written):

        def press_later() -> None:
            seen.append(until(conversation, "packing"))
            if ends:
                keyboard.send_text(ends)
                until(conversation, "stopping")
            going.set()
            until(conversation, "Fake-1B int4" if ends else "Fake-7B int4")
            keyboard.send_text("and now?\r")
            wait_for(lambda: session.said[-1] == ("assistant", "You said: and now?") and not conversation.busy)
            keyboard.send_text("/exit\r")

        threading.Thread(target=press_later, daemon=True).start()
        keyboard.send_text("hi\r/model Fake-7B\r")
        assert conversation.run() == 0
    assert "packing ███░░░░░░░ 25%" in seen[0]
    assert ("error: stopped; Fake-1B stays" in written.getvalue()) == bool(ends)
    assert model(session) == ("Fake-1B" if ends else "Fake-7B")
    assert [text for role, text in session.said if role == "user"] == ["hi", "and now?"]


def test_loading_that_is_quick_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, session, screen = list[str](), FakeSession(), Screen(StringIO(), StringIO())

    @contextmanager
    def waiting(line: str) -> Iterator[Callable[[str], None]]:
        shown.append(line)
        yield shown.append

    monkeypatch.setattr(screen, "waiting", waiting)
    context = commands.Context(lambda: session, lambda: session, screen, send=print)
    commands.respond(context, "/model Fake-7B")
    assert shown == ["looking for Fake-7B …", "loading Fake-7B …"] and model(session) == "Fake-7B"
    monkeypatch.setattr(progress_line, "LATE", -1)
    commands.respond(context, "/model Fake-1B")
    assert shown[4:] == ["packing ███░░░░░░░ 25%", "packing ████████░░ 75%"]


def test_what_does_not_fit_is_said_before_anything_is_fetched() -> None:
    library, session = Shelf(), FakeSession()
    lines = talk(library, session, "/model Fake-70B\r/exit\r")
    assert (
        "\n".join(lines)
        .replace("\n", " ")
        .count("error: Fake-70B needs 150 GB of memory; nothing was fetched; /model ollama:llama3.2:1b would fit")
    )
    assert QUESTION not in lines and library.fetched == []


# ---- the question, where nothing can be redrawn ----


def plain(
    library: Shelf, session: FakeSession, replies: Iterable[Callable[[], str]], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What a chat without a prompt that stays shows of /model Fake-7B, where the replies are typed so."""
    typed = iter(replies)
    asked: list[str] = []

    def read(question: str) -> str:
        asked.append(question)
        return next(typed)()

    monkeypatch.setattr("builtins.input", read)
    out = StringIO()
    chat = PlainChat(lambda: session, Screen(out, out), "Fake-1B", library, send=out.write)
    chat.handle("/model Fake-7B")
    assert set(asked) == {QUESTION + " "}
    return out.getvalue().splitlines()


def test_a_plain_chat_asks_until_there_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    library, session = Shelf(), FakeSession()
    replies = [lambda: "what?", lambda: "", lambda: " Y "]
    assert plain(library, session, replies, monkeypatch) == ["Fake-7B goes on with the dialog"]
    assert (model(session), library.fetched) == ("Fake-7B", ["Fake-7B"])


def _no() -> str:
    return "n"


def _ctrl_c() -> str:
    CTRL_C()
    return "y"


def _ctrl_d() -> str:
    raise EOFError


@pytest.mark.parametrize("reply", [_no, _ctrl_c, _ctrl_d])
def test_no_ctrl_c_and_ctrl_d_leave_a_plain_chat_as_it_was(
    reply: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, session = Shelf(), FakeSession()
    before = signal.getsignal(signal.SIGINT)
    assert plain(library, session, [reply], monkeypatch) == ["not fetched; Fake-1B stays"]
    assert (model(session), library.fetched, signal.getsignal(signal.SIGINT)) == ("Fake-1B", [], before)


def test_ctrl_c_ends_what_a_plain_chat_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    library, session = Shelf(during=CTRL_C), FakeSession()
    with pytest.raises(KeyboardInterrupt):
        plain(library, session, [lambda: "y"], monkeypatch)
    assert (model(session), library.fetched) == ("Fake-1B", [])


def test_ctrl_c_ends_what_a_plain_chat_loads() -> None:
    library, session, out = Shelf(), FakeSession(), StringIO()
    library.fetched.append("Fake-7B")
    session.script.at_work = CTRL_C
    chat = PlainChat(lambda: session, Screen(out, out), "Fake-1B", library, send=out.write)
    with pytest.raises(KeyboardInterrupt):
        chat.handle("/model Fake-7B")
    assert model(session) == "Fake-1B" and out.getvalue() == "error: stopped; Fake-1B stays\n"


def test_off_a_terminal_nothing_is_asked_and_nothing_fetched() -> None:
    out = StringIO()
    chat = PlainChat(lambda: FakeSession(), Screen(out, out), "Fake-1B", Shelf())
    assert not chat.context.confirm("Really?")


def test_a_persona_whose_model_is_not_fetched_changes_nothing() -> None:
    class Personas(Shelf):
        def persona(self, name: str) -> commands.Persona:
            from llamachat.chat.persona import Persona

            return Persona(name, "Arr.", model="Fake-7B")

    session, out = FakeSession(), StringIO()
    context = commands.Context(lambda: session, lambda: session, Screen(out, out), library=Personas())
    assert commands.respond(context, "/persona pirate") is None
    assert (model(session), session.system) == ("Fake-1B", "Be brief.")
    assert out.getvalue() == "not fetched; Fake-1B stays\n"


def test_the_error_says_what_else_to_do_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    library, session, out = Shelf(), FakeSession(), StringIO()
    monkeypatch.setattr(library, "better", lambda: None)
    context = commands.Context(lambda: session, lambda: session, Screen(out, out), send=out.write, library=library)
    with pytest.raises(DoesNotFitError, match=r"nothing was fetched; close other programs$"):
        commands.respond(context, "/model Fake-70B")


def test_the_menu_shows_whole_names_and_of_a_path_its_end() -> None:
    class Named(Shelf):
        def models(self) -> Iterable[tuple[str, str]]:
            return [("ollama:ada/tiny", "here, in ollama"), ("a/path.gguf", "")]

    session, out = FakeSession(), StringIO()
    context = commands.Context(lambda: session, lambda: session, Screen(out, out), library=Named())
    found = ChatCompleter(context).get_completions(Document("/model "), CompleteEvent())
    assert [each.display_text for each in found] == ["ollama:ada/tiny", "path.gguf"]
