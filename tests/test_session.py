"""session.py: turns that reuse the cache exactly, interrupts that keep what was said, old turns that make room."""

import pytest
from engines import HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.answer import AnswerSettings
from llamachat.config import SamplingParams
from llamachat.dialog import Message
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import Evicted, TextDelta, TurnDone
from llamachat.session import Session

GREEDY = AnswerSettings(SamplingParams(temperature=0), frozenset({257, 258}), max_tokens=12)


def session(slots: int = 512, **options: object) -> Session:
    return Session(hash_model(slots), options.pop("settings", GREEDY), **options)  # type: ignore[arg-type]


def engine(chat: Session) -> HashEngine:
    assert isinstance(chat.model.engine, HashEngine)
    return chat.model.engine


def ask(chat: Session, text: str) -> tuple[str, TurnDone]:
    """The whole answer and how it ended."""
    *deltas, done = chat.ask(text)
    assert isinstance(done, TurnDone)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), done


def test_a_second_turn_runs_only_its_own_tokens() -> None:
    chat = session(system="Be brief.")
    ask(chat, "one")
    held = len(chat._cache)
    engine(chat).forwarded.clear()
    _, done = ask(chat, "two")
    assert done.stats.reused_tokens == held
    assert done.stats.prompt_tokens - held == engine(chat).forwarded[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.none() | st.integers(0, 12)), min_size=1, max_size=5))
def test_every_prompt_equals_a_fresh_rendering_and_every_answer_a_fresh_cache(
    turns: list[tuple[str, int | None]],
) -> None:
    """Also after interrupts anywhere, the log is the tokens that the messages stand for."""
    chat = session(system="s")
    for text, stop_after in turns:
        events = chat.ask(text)
        for count, event in enumerate(events):
            if count == stop_after and not isinstance(event, TurnDone):
                chat.interrupt()
        expected = chat.model.dialog.encode([Message("system", "s"), *chat.turns[:-1]])
        generated = chat.turns[-1].ids or ()
        assert chat._cache.log == (expected + list(generated))[: len(chat._cache)]
        assert len(chat._cache) >= len(expected) + len(generated) - 1
        fresh = HashEngine(512, 259)
        for at, token in enumerate(generated):
            assert token == int(fresh.row(expected + list(generated[:at])).argmax())


def test_an_interrupt_keeps_the_partial_answer_and_the_dialog_goes_on() -> None:
    chat, seen = session(), []
    for event in chat.ask("hello"):
        seen.append(event)
        if len(seen) == 3:
            chat.interrupt()
    assert isinstance(seen[-1], TurnDone) and seen[-1].reason == "interrupt"
    said = "".join(event.text for event in seen if isinstance(event, TextDelta))
    assert chat.turns[-1].content == said != ""
    assert ask(chat, "again")[1].reason in ("stop", "length")


def test_an_interrupt_before_the_first_step_counts() -> None:
    chat = session()
    events = chat.ask("hello")
    chat.interrupt()
    assert [type(event) for event in events] == [TurnDone]
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]


def test_leaving_the_iteration_keeps_what_was_said() -> None:
    chat = session()
    events = chat.ask("hello")
    first = next(events)
    events.close()  # type: ignore[attr-defined]
    assert isinstance(first, TextDelta) and chat.turns[-1] == Message("assistant", first.text, chat.turns[-1].ids)


def test_full_context_drops_whole_oldest_turns_and_says_so() -> None:
    chat = session(slots=256, system="stay")
    evicted = []
    for number in range(12):
        evicted += [event for event in chat.ask(f"message {number}") if isinstance(event, Evicted)]
        kept = [Message("system", "stay"), *chat.turns[chat._first : -1]]
        assert [message.role for message in kept] == ["system", *["user", "assistant"] * (len(kept) // 2 - 1), "user"]
        prompt = chat.model.dialog.encode(kept)
        assert chat._cache.log[: len(prompt)] == prompt
    assert evicted and all(event.turns > 0 and event.tokens > 0 for event in evicted)
    assert len(chat.turns) == 24, "nothing is lost from the history"


def test_overflow_stop_ends_with_an_error_and_the_dialog_as_before() -> None:
    chat = session(slots=128, overflow="stop")
    ask(chat, "a" * 30)
    before = list(chat.turns)
    with pytest.raises(DoesNotFitError, match=r"the message was not sent; .*/clear"):
        list(chat.ask("b" * 60))
    assert chat.turns == before


def test_a_message_larger_than_the_context_is_refused_and_nothing_is_dropped() -> None:
    chat = session(slots=256)
    ask(chat, "one")
    with pytest.raises(DoesNotFitError):
        list(chat.ask("x" * 300))
    assert len(chat.turns) == 2 and chat._first == 0
    assert ask(chat, "two")[1].stats.reused_tokens > 30


def test_a_stop_string_ends_the_answer_before_it_and_is_not_remembered() -> None:
    whole, _ = ask(session(), "hello")
    stop = whole[4:6]
    chat = session(settings=AnswerSettings(GREEDY.sampling, GREEDY.stop_ids, [stop], 12))
    text, done = ask(chat, "hello")
    assert text == whole[: whole.index(stop)] and done.reason == "stop"
    assert chat.turns[-1] == Message("assistant", text)


def test_clear_forgets_the_dialog_but_not_the_system_prompt() -> None:
    chat = session(system="s")
    first, _ = ask(chat, "hello")
    chat.clear()
    assert (chat.context_used, chat.turns, chat.last_stats) == (0, [], None)
    assert ask(chat, "hello")[0] == first


def test_a_new_system_prompt_is_used_from_the_next_message_on() -> None:
    chat = session(system="old")
    ask(chat, "hello")
    chat.set_system("new")
    ask(chat, "hello")
    assert bytes(chat._cache.log[1:11]) == b"system\nnew"


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("temperature", "0.5", 0.5),
        ("top_k", "40", 40),
        ("seed", "none", None),
        ("max_tokens", "7", 7),
        ("max_tokens", "none", None),
    ],
)
def test_parameters_are_set_from_text(name: str, value: str, stored: object) -> None:
    chat = session()
    chat.set_parameter(name, value)
    assert chat.parameters()[name] == stored


@pytest.mark.parametrize(
    ("name", "value"),
    [("temprature", "1"), ("temperature", "hot"), ("top_p", "2"), ("max_tokens", "0"), ("top_k", "1.5")],
)
def test_a_bad_parameter_is_refused_and_nothing_changes(name: str, value: str) -> None:
    chat = session()
    before = dict(chat.parameters())
    with pytest.raises(UsageError):
        chat.set_parameter(name, value)
    assert chat.parameters() == before


def test_describe_names_the_model() -> None:
    assert session().describe()["model"] == "hash"
