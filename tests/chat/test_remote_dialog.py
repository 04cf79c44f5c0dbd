"""remote.py: a dialog over a server is the same dialog, and what a server cannot do, or does not, is one line."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from dialogs import quick_session
from hash_engine import hash_model
from servers import URL, TellingServer, ended_after, remote

from llamachat.chat import recording
from llamachat.chat import remote as far
from llamachat.chat.backend import Backend, Wanted, opened
from llamachat.chat.local import LocalBackend
from llamachat.chat.remote import RemoteBackend
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.core.sampling import SamplingParams
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import Event, Evicted, Progress, TextDelta, TextSize, TurnDone
from llamachat.models.catalog import ModelEntry, on_server, resolve
from llamachat.models.sources import LocalPath, ServerSource
from llamachat.remote.asking import (
    NO_LOGPROBS,
    Address,
    Alternative,
    Piece,
    ScoredToken,
    ServedModel,
    ServerError,
    TooLongError,
)

SETTINGS = Settings(SamplingParams(temperature=0, seed=5), max_tokens=9, stop=("END",))
THOUGHT = Piece("hm", thinking=True)
LEFT = ServerError("the server left")
TWO = (ServedModel("one", 100), ServedModel("two"))


def chat_with(
    server: TellingServer, archive: Archive | None = None, model: str | None = None, **wanted: object
) -> Session:
    def another(name: str, progress: Progress) -> Backend:
        return remote(server) if name == "there" else LocalBackend(hash_model(300))

    return Session(remote(server, model, **wanted), SETTINGS, "Be brief.", archive=archive, another=another)


def said(chat: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in chat.turns()][1:]


def end(events: Iterator[Event]) -> TurnDone:
    *_, done = events
    assert isinstance(done, TurnDone)
    return done


# ---- the same dialog ----


def stopped(chat: Session, events: Iterator[Event], after: int) -> list[str]:
    """The pieces of an answer that is stopped behind so many."""
    pieces = []
    for event in events:
        pieces += [event.text] if isinstance(event, TextDelta) else []
        if len(pieces) == after:
            chat.interrupt()
    return pieces


SCRIPT: Sequence[Callable[[Session], Iterator[Event] | None]] = (
    lambda chat: chat.ask("first"),
    lambda chat: chat.ask("second"),
    lambda chat: chat.regenerate(),
    lambda chat: chat.undo() and None,
    lambda chat: chat.ask("third"),
    lambda chat: chat.fork() and None,
    lambda chat: chat.edit(1, "first, otherwise"),
    lambda chat: chat.set_system("Be kind."),
    lambda chat: chat.switch(chat.branches()[0].id),
    lambda chat: chat.ask("fourth"),
    lambda chat: chat.clear(),
    lambda chat: chat.ask("last"),
)


def played(chat: Session) -> list[list[str]]:
    """The pieces of each answer; every third is stopped."""
    answers = list[list[str]]()
    for act in SCRIPT:
        if events := act(chat):
            answers.append(stopped(chat, events, 2 if len(answers) % 3 == 2 else -1))
    return answers


def tree(chat: Session) -> object:
    found = chat.history.tree
    nodes = [(node.id, node.parent and node.parent.id, node.role, node.text, node.reason) for node in found]
    return nodes, found.active.id, found.forks, [(b.id, b.turns, b.last, b.forked_at) for b in chat.branches()]


def test_the_same_script_gives_the_same_tree_here_and_over_a_server(tmp_path: Path) -> None:
    here = quick_session(400, "Be brief.", "roll", Archive(tmp_path / "here"))
    answers = played(here)
    server = TellingServer(*answers)
    there = Session(remote(server), SETTINGS, "Be brief.", archive=Archive(tmp_path / "there"))
    reasons = [node.reason for node in here.history.tree if node.role == "assistant"]
    server.answers = [[*a, replace(ended_after(9, 9), reason=r)] for a, r in zip(answers, reasons, strict=True)]
    assert played(there) == answers
    assert tree(there) == tree(here) and {"interrupt"} < {*reasons}
    there.close()
    again = Session(remote(server), SETTINGS, archive=Archive(tmp_path / "there"))
    again.load(there.name or "")
    assert tree(again) == tree(here) and again.system == "Be kind."


def test_what_is_asked_is_the_dialog_and_the_settings_in_force() -> None:
    server = TellingServer(["Yes", "."], ["No."], ["Maybe."])
    chat = chat_with(server)
    end(chat.ask("Is it?"))
    chat.set_parameter("think", "off")
    chat.set_parameter("temperature", "0.5")
    end(chat.ask("Sure?"))
    chat.undo()
    chat.set_system(None)
    end(chat.ask("Well?"))
    asked = [("user", "Is it?"), ("assistant", "Yes.")]
    brief = ("system", "Be brief.")
    assert server.sent == [[brief, asked[0]], [brief, *asked, ("user", "Sure?")], [*asked, ("user", "Well?")]]
    first, second = server.asked[:2]
    assert (first.sampling, first.max_tokens, first.stop, first.thinking) == (SETTINGS.sampling, 9, ("END",), None)
    assert (second.sampling.temperature, second.sampling.seed, second.thinking) == (0.5, 5, False)


def test_thoughts_are_kept_within_marks_and_never_sent_back() -> None:
    server = TellingServer([THOUGHT, Piece(", well", thinking=True), Piece("", True), "\n\nYes", "."], ["No."])
    chat = chat_with(server)
    shown = [(event.text, event.thinking) for event in chat.ask("Is it?") if isinstance(event, TextDelta)]
    assert shown == [("hm", True), (", well", True), ("\n\nYes", False), (".", False)]
    assert chat.history.tree.active.text == "<think>hm, well</think>\n\nYes." and chat.thought() == "hm, well"
    assert chat.last_stats and chat.last_stats.thought_tokens == 2
    end(chat.ask("Sure?"))
    assert server.sent[1][1:] == [("user", "Is it?"), ("assistant", "\n\nYes."), ("user", "Sure?")]


def test_an_answer_that_is_stopped_within_a_thought_is_a_thought() -> None:
    chat = chat_with(TellingServer([THOUGHT, THOUGHT, "Yes"], ["No."]))
    assert stopped(chat, chat.ask("Is it?"), 1) == ["hm"]
    assert said(chat)[-1] == ("assistant", "") and chat.thought() == "hm"


# ---- what it took ----


def test_what_a_text_takes_is_an_estimate_once_the_server_has_counted() -> None:
    chat = chat_with(TellingServer(["Yes."], ended=ended_after(100, 1)))
    assert chat.weigh("x" * 100) is None
    list(chat.ask("y" * 360))  # with the system prompt and what frames both, 400 characters
    assert chat.weigh("x" * 100) == TextSize(25, False)


def test_usage_is_what_the_server_counts() -> None:
    chat = chat_with(TellingServer(["Yes", "."], ended=ended_after(100, 2)))
    stats = end(chat.ask("Is it?")).stats
    assert (stats.prompt_tokens, stats.completion_tokens, stats.counted) == (100, 2, True)
    assert (stats.prefill_s, stats.decode_s, stats.context_used, stats.context_size) == (0.25, 0.5, 102, 400)
    assert (chat.context_used, chat.context_size, chat.backend.unheard(SETTINGS)) == (102, 400, None)


def test_where_nothing_is_counted_pieces_are_and_nothing_is_claimed_of_the_context() -> None:
    server = TellingServer(["Yes", "."], ["No."], ended=replace(ended_after(0, 0), usage=None))
    chat = chat_with(server)
    stats = end(chat.ask("Is it?")).stats
    assert (stats.completion_tokens, stats.counted, stats.context_used, stats.context_size) == (2, False, 0, 0)
    assert chat.context_size == 0
    server.ended = ended_after(30, 1)
    end(chat.ask("Sure?"))
    assert (chat.context_used, chat.context_size) == (31, 400)


def test_what_a_server_ignores_is_told_once() -> None:
    server = TellingServer(["a"], ["b"], ["c"], ended=ended_after(9, 1, "min_p", "the seed", NO_LOGPROBS))
    chat = chat_with(server)
    for _ in range(2):
        end(chat.ask("Is it?"))
        told = list(chat.notices())
        assert told == (["127.0.0.1:9 ignores min_p, the seed"] if len(server.asked) == 1 else [])
    chat.set_parameter("think_budget", "10")
    assert list(chat.notices()) == [far.NO_BUDGET]
    server.ended = replace(ended_after(9, 1, "min_p", "top_k"), notes=("the server's filter ended the answer",))
    end(chat.ask("Is it?"))
    assert list(chat.notices()) == ["the server's filter ended the answer", "127.0.0.1:9 ignores top_k"]


# ---- faults ----


@pytest.mark.parametrize("half", [(), ("Half",), (THOUGHT,)])
def test_what_came_before_a_fault_is_kept_and_the_dialog_goes_on(tmp_path: Path, half: tuple[str | Piece, ...]) -> None:
    archive = Archive(tmp_path / "sessions")
    server = TellingServer(["Yes."], [*half, LEFT], ["Whole."], ["On."])
    chat = chat_with(server, archive)
    end(chat.ask("Is it?"))
    with pytest.raises(ServerError, match="the server left"):
        list(chat.ask("Sure?"))
    begun = [("user", "Is it?"), ("assistant", "Yes.")]
    text = "Half" if half == ("Half",) else ""
    kept = [*begun, ("user", "Sure?"), ("assistant", text)] if half else begun
    assert said(chat) == kept and (not half or chat.history.tree.active.reason == "interrupt")
    chat.close()
    again = chat_with(server, archive)
    again.load(chat.name or "")
    assert said(again) == kept
    end(again.regenerate() if half else again.ask("Sure?"))
    end(again.ask("And?"))
    assert server.sent[-1][1:] == [*begun, ("user", "Sure?"), ("assistant", "Whole."), ("user", "And?")]


def test_a_dialog_whose_chat_was_killed_in_the_middle_of_an_answer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "FLUSH_S", 0.0)
    server = TellingServer([THOUGHT, "Ha", "lf", "."], ["On."], ["Here."])
    chat = chat_with(server, Archive(tmp_path / "killed"))
    events = chat.ask("Is it?")
    assert len([next(events) for _ in range(3)]) == 3
    shutil.copytree(tmp_path / "killed", tmp_path / "left", ignore=shutil.ignore_patterns(".locks"))
    again = chat_with(server, Archive(tmp_path / "left"))
    again.load(chat.name or "")
    assert said(again) == [("user", "Is it?"), ("assistant", "Half")] and again.thought() == "hm"
    end(again.ask("Sure?"))
    assert server.sent[-1][2:] == [("assistant", "Half"), ("user", "Sure?")]
    again.use_model("hash")
    end(again.ask("Who?"))
    assert again.turns()[2].tokens > len("Half"), "what was said goes on to the next model, too"


def test_stopping_keeps_the_part_that_came() -> None:
    server = TellingServer(["Ha", "lf", "."], ["On."])
    chat = chat_with(server)
    assert stopped(chat, chat.ask("Is it?"), 2) == ["Ha", "lf"]
    assert said(chat)[-1] == ("assistant", "Half") and chat.history.tree.active.reason == "interrupt"
    assert chat.last_stats and (chat.last_stats.completion_tokens, chat.last_stats.counted) == (2, False)
    assert chat.context_size == 400, "of a stopped answer no server tells, which says nothing of the context"
    end(chat.ask("Sure?"))
    assert server.sent[-1][2:] == [("assistant", "Half"), ("user", "Sure?")]


# ---- seeing inside ----


def scored(text: str) -> Piece:
    """A piece of one token, with another that could have stood there."""
    return Piece(text, tokens=(ScoredToken(text, -0.5, None, (Alternative(text, -0.5), Alternative("no", -1.0))),))


def test_probabilities_that_came_with_an_answer_are_those_of_its_tokens() -> None:
    server = TellingServer(["Yes."], [scored("Yes"), scored(".")], ["No."], [scored("Ha"), LEFT])
    chat = chat_with(server)
    end(chat.ask("Is it?"))
    without = r"^this answer came without probabilities; from now on they are asked for; /regen [^\n]*$"
    with pytest.raises(UsageError, match=without):
        chat.tokens()
    end(chat.regenerate())
    assert [each.top_logprobs for each in server.asked] == [None, far.ALTERNATIVES]
    views = chat.tokens(1)
    assert [(v.text, v.id, v.logprob, v.top) for v in views] == [
        ("Yes", None, -0.5, (("Yes", None, -0.5),)),
        (".", None, -0.5, ((".", None, -0.5),)),
    ]
    end(chat.ask("Sure?"))
    with pytest.raises(UsageError, match=without):
        chat.tokens()
    with pytest.raises(ServerError):
        list(chat.ask("Why?"))
    assert [view.text for view in chat.tokens()] == ["Ha"]
    chat.undo(2)
    assert [view.text for view in chat.tokens()] == ["Yes", "."]


def test_a_server_without_probabilities_is_not_asked_for_them_again() -> None:
    server = TellingServer(["a"], ["b"], ["c"])
    chat = chat_with(server)
    end(chat.ask("Is it?"))
    with pytest.raises(UsageError, match="from now on they are asked for"):
        chat.tokens()
    server.ended = ended_after(9, 1, NO_LOGPROBS)
    for _ in range(2):
        end(chat.ask("Is it?"))
    assert [each.top_logprobs for each in server.asked] == [None, far.ALTERNATIVES, None] and not chat.notices()
    with pytest.raises(UsageError, match=r"^tiny on 127.0.0.1:9 does not tell how likely its tokens are; "):
        chat.tokens()


def test_probabilities_of_the_latest_answers_only_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "SCORED", 5)
    chat = chat_with(TellingServer(*([scored("a"), scored("b")] for _ in range(3))))
    for _ in range(3):
        end(chat.ask("Is it?"))
    assert len(chat.tokens()) == 2
    chat.undo()
    assert len(chat.tokens()) == 2
    chat.undo()
    with pytest.raises(UsageError, match="came without probabilities"):
        chat.tokens()


def test_what_a_server_cannot_do_is_one_line_and_changes_nothing() -> None:
    chat = chat_with(TellingServer([scored("Yes"), scored("Yes"), "never"]))
    stopped(chat, chat.ask("Is it?"), 2)
    before = tree(chat)
    for act, lacks in (
        (chat.resume, "cannot go on from the very tokens of an answer; /regen answers anew"),
        (lambda: chat.take_alternative(1, 2), "cannot go on from the very tokens of an answer; /regen answers anew"),
        (chat.why, "does not show how its tokens are drawn"),
        (chat.context, "does not tell what of the dialog it sees"),
        (chat.adapters, "takes no adapters"),
        (lambda: chat.add_adapter("folder"), "takes no adapters"),
    ):
        with pytest.raises(UsageError, match=rf"^tiny on 127.0.0.1:9 {lacks}; /model goes on with one that runs here$"):
            act()
    assert tree(chat) == before


# ---- what is too long ----


def long_chat(turns: int, **wanted: object) -> tuple[Session, TellingServer]:
    """A dialog whose questions and answers have 100 characters each, which the server counts as 25 tokens."""
    server = TellingServer(ended=ended_after(25, 25))
    chat = chat_with(server, **wanted)
    for number in range(turns):
        server.answers = [["a" * 100]]
        server.ended = ended_after(25 * (2 * number + 1), 25)
        end(chat.ask(f"{number}" * 100))
    return chat, server


def questions(server: TellingServer) -> list[int]:
    """How many questions of the dialog were in each that was asked."""
    return [sum(role == "user" for role, _ in messages) for messages in server.sent]


def test_a_dialog_that_is_known_not_to_fit_goes_without_its_oldest_turns() -> None:
    chat, server = long_chat(8)
    server.answers, server.ended = [["Yes."], ["No."], ["Anew."]], ended_after(90, 1)
    events = list(chat.ask("x" * 100))
    gone = [event for event in events if isinstance(event, Evicted)]
    assert gone == [Evicted(9 - questions(server)[-1], 0, refilled=True)] and 2 <= questions(server)[-1] <= 4
    assert server.sent[-1][0] == ("system", "Be brief.") and server.sent[-1][-1] == ("user", "x" * 100)
    assert [turn.seen for turn in chat.turns()].count("dropped") == 2 * gone[0].turns
    again = list(chat.ask("y"))
    assert not any(isinstance(event, Evicted) for event in again), "what is gone is told of once"
    assert questions(server)[-1] == questions(server)[-2] + 1
    chat.undo(9)
    end(chat.ask("z"))
    assert questions(server)[-1] == 2 and not any(turn.seen == "dropped" for turn in chat.turns())


@pytest.mark.parametrize("told", [True, False])
def test_a_dialog_that_is_refused_is_shortened_until_it_is_taken(told: bool) -> None:
    chat, server = long_chat(6, model="any")
    assert chat.context_size == 0, "nothing is known of the context of a model that is not listed"
    counts = {"prompt": 400, "context": 200} if told else {}
    server.answers = [[TooLongError("too long", **counts)], ["Yes."]]
    events = list(chat.ask("x" * 100))
    gone = [event for event in events if isinstance(event, Evicted)]
    assert questions(server)[-2:] == [7, 7 - gone[0].turns] and isinstance(events[-1], TurnDone)
    assert (gone[0].turns, chat.context_size) == ((5, 200) if told else (3, 0))
    server.answers = [[TooLongError("too long")] for _ in range(4)]
    before = [turn.seen for turn in chat.turns()]
    with pytest.raises(DoesNotFitError, match=r"^this turn alone is too long: too long; the message was not sent"):
        next(chat.ask("y"))
    assert [turn.seen for turn in chat.turns()] == before


def test_overflow_stop_refuses_in_one_line() -> None:
    chat, server = long_chat(8, overflow="stop")
    before = tree(chat)
    line = (
        r"^the dialog makes some \d+ tokens, the context holds 400; the message was not sent; [^\n]*--overflow refill$"
    )
    with pytest.raises(DoesNotFitError, match=line):
        list(chat.ask("x" * 100))
    assert tree(chat)[:2] == before[:2] and len(server.asked) == 8  # type: ignore[index]
    chat, server = long_chat(2, model="any", overflow="stop")
    server.answers = [[TooLongError("too long", prompt=900, context=300)]]
    with pytest.raises(
        DoesNotFitError, match=r"^the dialog makes 900 tokens, the context holds 300; the message was not sent"
    ):
        list(chat.ask("x"))


def test_a_told_context_goes_before_the_servers() -> None:
    chat, server = long_chat(2, context=90)
    assert chat.context_size == 90
    server.answers = [["Yes."]]
    assert any(isinstance(event, Evicted) for event in chat.ask("x" * 100))


def test_where_nothing_is_counted_the_pieces_of_an_answer_tell_how_long_the_dialog_is() -> None:
    server = TellingServer(["ab "] * 30, ["Yes."], ended=replace(ended_after(0, 0), usage=None))
    chat = chat_with(server, context=120)
    end(chat.ask("x" * 100))
    events = list(chat.ask("y" * 100))
    assert Evicted(1, 0, refilled=True) in events and questions(server) == [1, 1]


# ---- which model ----


def test_which_of_several_models_is_meant_is_asked() -> None:
    server = TellingServer(["Yes."], ["No."], served=TWO)
    chat = chat_with(server)
    (note,) = chat.notices()
    assert note == "127.0.0.1:9 has 2 models: one, two; /model NAME takes one, Tab completes it"
    with pytest.raises(UsageError, match=r"^127.0.0.1:9 has 2 models: one, two; the message was not sent; choose one"):
        list(chat.ask("Is it?"))
    assert said(chat) == [] and chat.describe()["model"] == "none yet"
    assert chat.others() == [("one", "on 127.0.0.1:9, context 100"), ("two", "on 127.0.0.1:9")]
    chat.use_model("one")
    end(chat.ask("Is it?"))
    chat.use_model("two")
    end(chat.ask("Sure?"))
    assert server.names == ["one", "two"] and server.sent[1][1:] == [*said(chat)[:2], ("user", "Sure?")]
    assert chat.history.model == "server:http://127.0.0.1:9/v1#two"


def test_a_dialog_goes_from_a_server_to_a_model_here_and_back() -> None:
    server = TellingServer(["Yes."], ["No."])
    chat = chat_with(server)
    end(chat.ask("Is it?"))
    chat.use_model("here")
    end(chat.ask("Sure?"))
    assert chat.history.tree.active.ids and len(chat.context()) == 5
    text = chat.history.tree.active.said
    chat.use_model("there")
    end(chat.ask("Well?"))
    assert server.sent[1][2:] == [("assistant", "Yes."), ("user", "Sure?"), ("assistant", text), ("user", "Well?")]


def test_a_model_that_the_server_does_not_list_is_asked_all_the_same_and_said_so() -> None:
    server = TellingServer(["Yes."], served=TWO)
    chat = chat_with(server, model="alias")
    assert list(chat.notices()) == ["127.0.0.1:9 does not list alias; it has one, two"]
    end(chat.ask("Is it?"))
    assert server.names == ["alias"]
    assert not chat_with(TellingServer(served=()), model="alias").notices()


def test_a_server_without_a_model_is_no_chat() -> None:
    with pytest.raises(UsageError, match=r"^127.0.0.1:9 names no model; nothing was asked; name one with -m"):
        remote(TellingServer(served=()))


def test_the_context_that_a_person_tells_is_that_of_the_model_which_is_chosen_first() -> None:
    backend = remote(TellingServer(served=TWO), context=77)
    chosen = backend.sibling("one")
    assert chosen and chosen.describe()["context"] == "77 tokens"
    other = chosen.sibling("two")
    assert other and other.describe()["context"] != "77 tokens"


def test_a_long_list_of_models_is_cut() -> None:
    (note,) = chat_with(TellingServer(served=[ServedModel(f"m{number}") for number in range(300)])).notices()
    assert note.startswith("127.0.0.1:9 has 300 models: m0, m1") and "m19 and 280 more; " in note and "m20" not in note


@pytest.mark.parametrize(("url", "told"), [("https://far.example/v1", True), ("http://localhost:8080/v1", False)])
def test_what_leaves_the_machine_is_said_first(url: str, told: bool) -> None:
    backend = remote(TellingServer(), url=url)
    assert list(backend.notes) == (["the whole dialog is sent to far.example"] if told else [])
    about = backend.describe()
    assert about["privacy"].startswith("the whole dialog is sent to") and about["engine"].endswith(url)
    assert {"model", "weights", "engine"} <= {*about} and ("this machine" in about["engine"]) is not told


def test_a_saved_dialog_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sk-secret")
    server = TellingServer(["Yes."])
    source = ServerSource(URL, "tiny", "SECRET_KEY")
    backend = RemoteBackend(on_server(source), server.at)
    chat = Session(backend, SETTINGS, archive=Archive(tmp_path))
    end(chat.ask("Is it?"))
    chat.close()
    (file,) = tmp_path.glob("*.jsonl")
    text = file.read_text()
    assert "sk-secret" not in text and "SECRET_KEY" not in text
    held = resolve(chat.history.model).source
    assert held == ServerSource(URL, "tiny") and not {"sk-secret", "SECRET_KEY"} & {*backend.describe().values()}


def test_the_source_says_which_backend_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[tuple[Address, bool]]()

    def server(address: Address, *, offline: bool) -> TellingServer:
        made.append((address, offline))
        return TellingServer(served=TWO).at(address)

    monkeypatch.setattr("llamachat.remote.server.Server", server)
    entry = on_server(ServerSource(URL, "one", "KEY"))
    backend = opened(Wanted(entry, lambda _: hash_model(), offline=True))
    assert isinstance(backend, RemoteBackend) and {*made} == {(Address(URL, "one", "KEY"), True)}
    with pytest.raises(
        UsageError, match=r"^127.0.0.1:9 has 2 models: one, two; nothing was asked; choose one with -m NAME$"
    ):
        opened(Wanted(on_server(ServerSource(URL)), lambda _: hash_model(), asks=False))
    here = ModelEntry("hash", LocalPath(Path("hash")))
    assert isinstance(opened(Wanted(here, lambda _: hash_model())), LocalBackend)
