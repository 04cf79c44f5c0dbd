"""backend.py: the least that can answer a dialog does, and what it lacks is one line; the local one is in the registry."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from fakes import Alone
from hash_engine import hash_model

from llamachat.chat.asked import Asked, Capability, Seen
from llamachat.chat.backend import BACKENDS, Backend, Wanted
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.chat.tree import Node, Tree
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.errors import ModelError, UsageError
from llamachat.events import Event, Stats, TextDelta, TurnDone
from llamachat.models.catalog import ModelEntry

SETTINGS = Settings(SamplingParams(temperature=0), max_tokens=9)


class Far(Alone):
    """Messages in, text out, as a model on a server has it: no tokens, no window, no probabilities."""

    capabilities: frozenset[Capability] = frozenset()
    name = reference = "far"
    tokenizer, notes, system, sampling, context_used, context_size = "", (), None, SamplingParams(), 0, 0

    def __init__(self, *pieces: str | ModelError) -> None:
        self.pieces = pieces
        self.sent: list[list[Message]] = []

    def describe(self) -> Mapping[str, str]:
        return {"model": self.name, "weights": "unknown", "engine": "a server"}

    def unheard(self, settings: Settings) -> str | None:
        return f"far cannot be told to think {settings.think}" if settings.think != "auto" else None

    def respond(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        self.sent.append(asked.messages)
        return self._events(asked)

    def _events(self, asked: Asked) -> Iterator[Event]:
        said = 0
        for piece in self.pieces:
            if asked.interrupted():
                break
            if isinstance(piece, ModelError):
                raise piece
            said += 1
            yield TextDelta(piece)
        yield TurnDone(Stats(0, 0, said, 0.0, 0.0, 0, 0), "interrupt" if asked.interrupted() else "stop")

    def seen(self, line: Sequence[Node], system: str | None) -> Seen:
        return Seen()

    def forget(self) -> None:
        pass

    def take_up(self, dialog: str, tree: Tree, say: Callable[[str], None]) -> None:
        pass

    def keep(self, dialog: str) -> None:
        pass

    def recall(self, answers: Callable[[str], Iterable[Sequence[int]]]) -> None:
        pass


def far(*pieces: str | ModelError, archive: Archive | None = None) -> tuple[Session, Far]:
    backend = Far(*pieces)
    typed: Backend = backend
    return Session(typed, SETTINGS, "Be brief.", archive=archive), backend


def said(chat: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in chat.turns()]


def test_text_alone_makes_a_dialog_that_is_saved_and_opened_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "sessions")
    chat, backend = far("<think>hm</think>", "Yes", ".", archive=archive)
    shown = [event for event in chat.ask("Is it?") if isinstance(event, TextDelta)]
    assert [(each.text, each.thinking) for each in shown] == [("hm", True), ("Yes", False), (".", False)]
    list(chat.ask("Sure?"))
    assert backend.sent[1] == [
        Message("system", "Be brief."),
        Message("user", "Is it?"),
        Message("assistant", "Yes."),
        Message("user", "Sure?"),
    ]
    chat.save("mine")
    chat.close()
    again, _ = far(archive=archive)
    again.load("mine")
    assert said(again) == said(chat) and said(chat)[2:] == [
        ("assistant", "Yes."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ]


def test_what_a_backend_lacks_is_one_line_and_changes_nothing() -> None:
    chat, _ = far("Yes", "never")
    events = chat.ask("Is it?")
    next(events)
    chat.interrupt()
    assert [type(event) for event in events] == [TurnDone]
    before = said(chat)
    for act, lacks in (
        (chat.tokens, "does not tell how likely"),
        (chat.why, "does not show how its tokens are drawn"),
        (lambda: chat.take_alternative(1, 1), "cannot go on from the very tokens"),
        (chat.resume, "cannot go on from the very tokens"),
        (chat.context, "does not tell what of the dialog it sees"),
    ):
        with pytest.raises(UsageError, match=rf"^far {lacks}[^\n]*; /model goes on with one that runs here$"):
            act()
    assert said(chat) == before and before[-1] == ("assistant", "Yes")


@pytest.mark.parametrize("half", [(), ("Half",)])
def test_an_answer_that_fails_is_kept_as_far_as_it_came(tmp_path: Path, half: tuple[str, ...]) -> None:
    archive = Archive(tmp_path / "sessions")
    chat, _ = far(*half, ModelError("the server left"), archive=archive)
    with pytest.raises(ModelError, match="the server left"):
        list(chat.ask("Is it?"))
    kept = [("system", "Be brief."), ("user", "Is it?"), ("assistant", "Half")] if half else [("system", "Be brief.")]
    assert said(chat) == kept
    assert chat.name
    chat.close()
    again, _ = far(archive=archive)
    again.load(chat.name)
    assert said(again) == kept


def test_an_answer_that_nobody_listens_to_any_more_is_stopped_and_kept() -> None:
    chat, _ = far("Half", " an", " answer")
    events = chat.ask("Is it?")
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert said(chat)[-1] == ("assistant", "Half") and chat.history.tree.active.reason == "interrupt"
    assert chat.last_stats and chat.last_stats.completion_tokens == 1


@pytest.mark.parametrize("snapshots", [False, True])
def test_the_local_backend_is_made_by_name_and_can_do_everything(snapshots: bool) -> None:
    asked, entry = list[ModelEntry](), hash_model().entry
    wanted = Wanted(entry, lambda entry: asked.append(entry) or hash_model(), snapshots=snapshots)  # type: ignore[func-returns-value]
    backend = BACKENDS["local"](wanted)
    chat = Session(backend, SETTINGS)
    *_, done = chat.ask("hello")
    assert asked == [entry] and isinstance(done, TurnDone) and len(chat.tokens()) == done.stats.completion_tokens
    assert backend.capabilities == {"scores", "draws", "continues", "window", "adapters"} | (
        {"snapshots"} if snapshots else set()
    )
