"""session.py: turns that reuse the cache exactly, interrupts that keep what was said, old turns that make room."""

import gc
import random
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from dialogs import local, local_session, play, quick_session
from hash_engine import HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamachat.chat.local import LocalBackend
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.tree import Node, path
from llamachat.core.dialog import Message
from llamachat.core.sampler import TokenLogprobs, token_logprobs
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import RopeScaling
from llamachat.errors import CatalogError, DoesNotFitError, UsageError
from llamachat.events import Event, Evicted, Progress, Reading, TextDelta, TurnDone
from llamachat.generation.completion import Answer

GREEDY = Settings(SamplingParams(temperature=0), max_tokens=12)


def session(slots: int = 512, **options: object) -> Session:
    return local_session(hash_model(slots), options.pop("settings", GREEDY), **options)  # type: ignore[arg-type]


def engine(chat: Session) -> HashEngine:
    assert isinstance(local(chat).model.engine, HashEngine)
    return local(chat).model.engine


def ask(chat: Session, text: str) -> tuple[str, TurnDone]:
    """The whole answer and how it ended."""
    return finish(chat.ask(text))


def finish(events: Iterator[Event]) -> tuple[str, TurnDone]:
    *deltas, done = events
    assert isinstance(done, TurnDone)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), done


def said(chat: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in chat.turns() if turn.role != "system"]


def line(chat: Session) -> list[Node]:
    return path(chat.history.tree.active)


def prefilled(chat: Session, events: Iterator[Event]) -> tuple[int, TurnDone]:
    """Tokens that had to be run before the answer's first."""
    engine(chat).forwarded.clear()
    done = finish(events)[1]
    count = engine(chat).forwarded[0]
    assert count == done.stats.prompt_tokens - done.stats.reused_tokens
    return count, done


def test_a_second_turn_runs_only_its_own_tokens() -> None:
    chat = session(system="Be brief.")
    ask(chat, "one")
    held = len(local(chat).cache)
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
        for count, event in enumerate(chat.ask(text)):
            if count == stop_after and not isinstance(event, TurnDone):
                chat.interrupt()
        messages = [node.message for node in line(chat)]
        expected = local(chat).model.dialog.encode([Message("system", "s"), *messages[:-1]])
        generated = messages[-1].ids or ()
        assert local(chat).cache.log == (expected + list(generated))[: len(local(chat).cache)]
        assert len(local(chat).cache) >= len(expected) + len(generated) - 1
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
    text = "".join(event.text for event in seen if isinstance(event, TextDelta))
    assert said(chat)[-1] == ("assistant", text) != ("assistant", "")
    assert ask(chat, "again")[1].reason in ("stop", "length")


def test_an_interrupt_before_the_first_step_counts_and_one_before_the_question_does_not() -> None:
    chat = session()
    events = chat.ask("hello")
    chat.interrupt()
    assert [type(event) for event in events] == [TurnDone]
    assert said(chat) == [("user", "hello"), ("assistant", "")]
    chat.interrupt()
    assert ask(chat, "again")[1].reason in ("stop", "length")


def test_leaving_the_iteration_keeps_what_was_said() -> None:
    chat = session()
    events = chat.ask("hello")
    first = next(events)
    events.close()  # type: ignore[attr-defined]
    assert isinstance(first, TextDelta) and said(chat)[-1] == ("assistant", first.text)
    assert line(chat)[-1].ids


# ---- a full context ----


def test_a_full_context_drops_whole_oldest_turns_and_says_so() -> None:
    chat = session(slots=256, system="stay")
    evicted = []
    for number in range(12):
        evicted += [event for event in chat.ask(f"message {number}") if isinstance(event, Evicted)]
        seen = [turn.seen for turn in chat.turns()]
        dropped = seen.count("dropped")
        assert seen == ["pinned"] + ["dropped"] * dropped + ["kept"] * (len(seen) - 1 - dropped)
        assert dropped == 2 * sum(event.turns for event in evicted)
    assert len(evicted) > 1 and all(event.turns > 0 and event.tokens > 0 and not event.refilled for event in evicted)
    assert len(said(chat)) == 24, "nothing is lost from the history"


def test_after_evictions_a_turn_still_runs_only_its_own_tokens() -> None:
    chat = session(slots=256, system="stay")
    for number in range(20):
        count, _ = prefilled(chat, chat.ask(f"message {number}"))
        assert count < 50


def test_an_answer_goes_on_beyond_the_context_in_which_it_began() -> None:
    chat = quick_session(120, "stay", "roll")
    chat.set_parameter("max_tokens", "400")
    local(chat).model.engine.TABLE = local(chat).model.engine.TABLE.copy()  # type: ignore[attr-defined]
    local(chat).model.engine.TABLE[:, 257] = -9  # type: ignore[attr-defined] - it never ends by itself
    ask(chat, "first")
    events = list(chat.ask("second"))
    evicted = [event for event in events if isinstance(event, Evicted)]
    assert evicted[0].turns == 1 and [event.turns for event in evicted[1:]] == [0] * (len(evicted) - 1)
    done = events[-1]
    assert isinstance(done, TurnDone) and (done.reason, done.stats.completion_tokens) == ("length", 400)
    assert bytes(local(chat).cache.log[1:12]) == b"system\nstay"


def test_a_question_larger_than_the_window_rolls_through_it_and_says_so() -> None:
    chat = session(slots=128, system="stay")
    events = list(chat.ask("x" * 1000))
    assert sum(event.tokens for event in events if isinstance(event, Evicted)) > 870
    assert isinstance(events[-1], TurnDone)
    assert bytes(local(chat).cache.log[1:12]) == b"system\nstay" and bytes([120] * 20) in bytes(
        min(t, 255) for t in local(chat).cache.log
    )


def test_what_is_seen_partly_is_told_also_once_more_was_asked_and_from_disk() -> None:
    chat = session(slots=128, system="stay", settings=replace(GREEDY, max_tokens=4))
    list(chat.ask("x" * 90))
    assert [turn.seen for turn in chat.context()] == ["pinned", "kept", "kept"]
    chat.set_parameter("max_tokens", "60")
    list(chat.resume())
    assert [turn.seen for turn in chat.context()] == ["pinned", "partly", "kept"]
    window, state = local(chat).window, local(chat).window.state()
    assert state
    tokens = [turn.tokens for turn in chat.context()]
    window.view = window.answering = None
    window.take_up(state, chat.history.tree)
    assert [turn.seen for turn in chat.context()] == ["pinned", "partly", "kept"]
    assert [turn.tokens for turn in chat.context()] == tokens
    chat.set_parameter("max_tokens", "300")
    list(chat.resume())
    assert [turn.seen for turn in chat.context()] == ["pinned", "dropped", "partly"]


def test_a_long_prompt_tells_how_far_it_is_read_and_says_what_it_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = quick_session(3000, None, "roll")
    events = list(chat.ask("x" * 1500))
    done, read = events[-1], [event for event in events if isinstance(event, Reading)]
    assert isinstance(done, TurnDone) and done.stats.reused_tokens == 0
    assert read == events[: len(read)] == [Reading(done, read[0].total) for done in (0, 512, 1024)]
    assert read[0].total == done.stats.prompt_tokens
    assert not [event for event in chat.ask("short") if isinstance(event, Reading)]
    monkeypatch.setattr(Answer, "reading", lambda self: iter(()))
    other = quick_session(3000, None, "roll")
    assert ask(other, "x" * 1500)[0] == line(chat)[1].text
    assert engine(other).forwarded == engine(chat).forwarded[: len(engine(other).forwarded)]


def test_a_prompt_that_is_being_read_can_be_stopped() -> None:
    chat = session(3000)
    events = chat.ask("x" * 1500)
    assert isinstance(next(events), Reading)
    chat.interrupt()
    (done,) = list(events)
    assert isinstance(done, TurnDone) and (done.reason, chat.context_used) == ("interrupt", 0)


def test_what_a_text_takes_of_the_context_is_counted_or_if_it_is_far_too_much_guessed() -> None:
    chat = session(slots=256, system="stay")
    size = chat.weigh("ü" * 10)
    assert size and (size.tokens, size.counted, size.fits) == (20, True, True)
    assert chat.context_size - size.room == len(b"system\nstay\nuser\n\nassistant\n") + 6
    assert chat.weigh("x" * size.room).fits  # type: ignore[union-attr]
    large = chat.weigh("x" * 1_000_000)
    assert large and (large.tokens, large.counted, large.fits) == (1_000_000, False, False)


def test_refill_computes_the_rest_as_if_the_dialog_had_begun_there() -> None:
    """Every token of every answer is what an engine that never saw the dropped turns would say, in mid-answer too."""
    chat = session(slots=160, system="stay", overflow="refill", settings=replace(GREEDY, max_tokens=40))
    refilled = 0
    for number in range(12):
        for event in chat.ask(f"message {number}"):
            refilled += isinstance(event, Evicted) and event.refilled
        view = local(chat).window.view
        assert view is not None and local(chat).cache.evicted == 0
        log = local(chat).cache.log
        assert log == view.ids(line(chat)[-1].ids or ())[: len(log)]
        fresh = HashEngine(160, 259)
        assert int(fresh.row(log[:-1]).argmax()) == log[-1]
    assert refilled > 2


def test_refilling_refuses_a_question_larger_than_the_window_and_nothing_is_dropped() -> None:
    chat = session(slots=256, overflow="refill")
    ask(chat, "one")
    with pytest.raises(DoesNotFitError):
        list(chat.ask("x" * 300))
    assert len(said(chat)) == 2 and chat.branches()[0].turns == 1
    assert ask(chat, "two")[1].stats.reused_tokens > 30


def test_overflow_stop_ends_with_an_error_and_the_dialog_as_before() -> None:
    chat = session(slots=128, overflow="stop")
    ask(chat, "a" * 30)
    before = said(chat)
    with pytest.raises(DoesNotFitError, match=r"the message was not sent; .*/clear"):
        list(chat.ask("b" * 60))
    assert said(chat) == before


def test_overflow_stop_ends_an_answer_where_the_context_is_full() -> None:
    chat = session(slots=64, overflow="stop", settings=replace(GREEDY, max_tokens=None))
    local(chat).model.stop_ids = frozenset()
    assert ask(chat, "a" * 20)[1].reason == "length"
    assert chat.context_used == 64


def test_positions_that_depend_on_the_length_are_refilled_and_that_is_said_once() -> None:
    model = hash_model(256)
    scaling = RopeScaling("dynamic", factor=2.0)
    model.engine.config = replace(model.engine.config, rope_scaling=scaling)
    chat = local_session(model, GREEDY)
    said = [notice for notice in chat.notices() if "positions" in notice]
    assert local(chat).overflow == "refill" and len(said) == 1 and chat.notices() == []


@pytest.mark.parametrize("seed", range(6))
def test_no_random_dialog_breaks_the_structure_or_loses_a_pin(seed: int) -> None:
    """See dialogs.check; measure_dialogs.py plays a hundred thousand."""
    assert sum(play(random.Random(f"{seed} {number}"), 12) for number in range(40)) > 10


# ---- the tree ----


def test_regenerating_runs_one_token_and_makes_a_branch() -> None:
    chat = session(settings=replace(GREEDY, sampling=SamplingParams(temperature=2.0, top_p=1.0, seed=None)))
    first, _ = ask(chat, "hello")
    count, _ = prefilled(chat, chat.regenerate())
    assert count == 1, "the rest of the question is in the cache"
    assert said(chat)[1][1] != first
    assert [(branch.turns, branch.forked_at, branch.active) for branch in chat.branches()] == [
        (1, 0, False),
        (1, 1, True),
    ]


def test_undo_goes_back_and_reuses_everything_before() -> None:
    chat = session(system="s")
    for text in ("one", "two", "three"):
        ask(chat, text)
    assert chat.undo(2) == 2
    assert [text for role, text in said(chat) if role == "user"] == ["one"]
    kept = len(local(chat).model.dialog.encode([Message("system", "s"), *(node.message for node in line(chat))]))
    _, done = prefilled(chat, chat.ask("other"))
    opened = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
    assert done.stats.reused_tokens >= kept - opened
    assert chat.undo(9) == 2 and said(chat) == []
    with pytest.raises(UsageError):
        chat.undo()


def test_an_edited_question_is_a_branch_that_shares_what_comes_before_it() -> None:
    chat = session(system="s")
    for text in ("one", "two", "three"):
        ask(chat, text)
    finish(chat.edit(2, "another two"))
    assert [text for role, text in said(chat) if role == "user"] == ["one", "another two"]
    old, new = chat.branches()
    assert (old.turns, old.forked_at, old.last, new.active, new.last) == (3, 1, "three", True, "another two")
    for number in (0, 3):
        with pytest.raises(UsageError, match="no question"):
            chat.edit(number, "x")


def test_switching_back_runs_only_what_the_branches_do_not_share() -> None:
    chat = session(slots=2048, system="s")
    ask(chat, "a long beginning " * 40)
    left = chat.fork()
    ask(chat, "one way")
    one = said(chat)
    chat.switch(left)
    count, _ = prefilled(chat, chat.ask("the other way"))
    assert count < 60, "the long beginning is not computed again"
    there = next(branch.id for branch in chat.branches() if branch.last == "one way")
    chat.switch(there)
    assert said(chat) == one
    count, _ = prefilled(chat, chat.ask("on"))
    assert count < 120


def test_a_fork_stays_a_branch_though_the_dialog_goes_on_behind_it() -> None:
    chat = session()
    with pytest.raises(UsageError, match="nothing has been said yet"):
        chat.fork()
    ask(chat, "one")
    left = chat.fork()
    ask(chat, "two")
    assert chat.branches()[0].id == left
    chat.switch(left)
    assert len(said(chat)) == 2


def test_resuming_a_cut_answer_gives_what_an_uncut_one_would_have_been() -> None:
    for seed in range(5):
        params = SamplingParams(temperature=1.5, top_p=1.0, seed=seed, frequency_penalty=1.0, repetition_penalty=1.3)
        whole = session(settings=replace(GREEDY, sampling=params, max_tokens=16))
        cut = session(settings=replace(GREEDY, sampling=params, max_tokens=8))
        ask(whole, "hello")
        if ask(cut, "hello")[1].reason != "length":
            continue
        finish(cut.resume())
        assert line(cut)[-1].ids == line(whole)[-1].ids and said(cut) == said(whole)
        assert len(cut.branches()) == 1


def test_only_an_answer_that_did_not_end_by_itself_can_be_resumed() -> None:
    chat = session()
    with pytest.raises(UsageError):
        chat.resume()
    while ask(chat, "hello")[1].reason != "stop":
        pass
    with pytest.raises(UsageError, match="ended by itself"):
        chat.resume()


def test_an_alternative_token_begins_a_branch_and_the_first_piece_brings_the_text_up_to_it() -> None:
    chat = session()
    ask(chat, "hello")
    tokens = chat.tokens(5)
    first, *rest = chat.take_alternative(4, 2)
    ids = line(chat)[-1].ids
    assert ids is not None and ids[:4] == (*(token.id for token in tokens[:3]), tokens[3].top[1][1])
    assert isinstance(first, TextDelta) and first.text == local(chat).model.tokenizer.decode(ids[:4])
    assert isinstance(rest[-1], TurnDone) and len(chat.branches()) == 2
    for index, choice in ((0, 1), (99, 1), (1, 0)):
        with pytest.raises(UsageError):
            chat.take_alternative(index, choice)


def test_an_alternative_however_unlikely_is_looked_up_for_its_own_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = session()
    ask(chat, "hello")
    expected, looked_up = chat.tokens(200)[4].top[199][1], list[int]()

    def noted(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
        looked_up.append(token)
        return token_logprobs(logits, token, top)

    for module in ("core.generate", "chat.insight"):
        monkeypatch.setattr(f"llamachat.{module}.token_logprobs", noted)
    list(chat.take_alternative(5, 200))
    assert len(looked_up) == 1 and (line(chat)[-1].ids or ())[4] == expected


def test_clear_forgets_the_dialog_but_not_the_system_prompt() -> None:
    chat = session(system="s")
    first, _ = ask(chat, "hello")
    chat.clear()
    assert (said(chat), chat.last_stats) == ([], None)
    assert chat.context_used == len(
        "<|im_start|>system\ns<|im_end|>\n".replace("<|im_start|>", "1").replace("<|im_end|>", "2")
    )
    assert ask(chat, "hello")[0] == first


def test_first_messages_are_part_of_what_the_model_sees() -> None:
    chat = session()
    ask(chat, "something else")
    chat.begin([("user", "Who are you?"), ("assistant", "A pirate.")])
    ask(chat, "hello")
    assert said(chat)[:2] == [("user", "Who are you?"), ("assistant", "A pirate.")]
    assert b"A pirate." in bytes(min(token, 255) for token in local(chat).cache.log)
    with pytest.raises(UsageError):
        chat.begin([("assistant", "no question before it")])


# ---- settings ----


def test_a_stop_string_ends_the_answer_before_it_and_is_not_remembered() -> None:
    whole, _ = ask(session(), "hello")
    stop = whole[4:6]
    chat = session(settings=replace(GREEDY, stop=[stop]))
    text, done = ask(chat, "hello")
    assert text == whole[: whole.index(stop)] and done.reason == "stop"
    assert said(chat)[-1] == ("assistant", text) and line(chat)[-1].ids is None


def test_a_new_system_prompt_is_used_from_the_next_message_on() -> None:
    chat = session(system="old")
    ask(chat, "hello")
    chat.set_system("new")
    ask(chat, "hello")
    assert bytes(local(chat).cache.log[1:11]) == b"system\nnew" and len(said(chat)) == 4


def test_another_system_prompt_reuses_the_tokens_that_both_begin_with() -> None:
    chat = session(slots=2048, system="a long prompt " * 20 + "old")
    ask(chat, "hello")
    chat.set_system("a long prompt " * 20 + "new")
    assert ask(chat, "hello")[1].stats.reused_tokens > 280


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


def test_describe_names_model_weights_and_engine() -> None:
    facts = session().describe()
    assert facts["model"] == "hash" and {"weights", "engine"} <= facts.keys()


def test_another_model_takes_the_dialog_over_and_one_that_fails_changes_nothing() -> None:
    stops, told, packed = 0, list[tuple[str, int, int | None]](), list[int]()

    def load(name: str, progress: Progress) -> LocalBackend:
        if name != "other":
            raise CatalogError(f"no model is called {name}")
        model = hash_model(256)
        model.entry = replace(model.entry, name="other")
        model.tokenizer.vocab_size = 260  # type: ignore[misc]
        for done in range(3):
            if stops == done + 1:
                chat.interrupt()
            progress("packing", done, 3)
            packed.append(done)
        if stops == 4:
            chat.interrupt()
        return LocalBackend(model)

    chat = local_session(hash_model(), GREEDY, "s", another=load)
    ask(chat, "hello")
    old = chat.backend
    with pytest.raises(CatalogError):
        chat.use_model("missing")
    for stops in (2, 4):
        packed.clear()
        with pytest.raises(UsageError, match=f"stopped; {old.name} stays"):
            chat.use_model("other", lambda *each: told.append(each))
        assert chat.backend is old and line(chat)[-1].ids and len(packed) == stops - 1
    assert told == [("packing", done, 3) for done in (0, 0, 1, 2)], "of what is stopped nothing more is told"
    stops = 0
    chat.use_model("other")
    assert chat.last_stats is None, "they were the other one's"
    assert (chat.describe()["model"], chat.context_size, chat.context_used) == ("other", 256, 0)
    assert line(chat)[-1].ids is None, "another tokenizer's ids mean nothing"
    ask(chat, "again")
    assert len(said(chat)) == 4


def test_a_model_whose_place_another_takes_is_gone_even_from_a_cycle() -> None:
    """Tracebacks of imports make cycles, which are rarely looked for where nothing is garbage."""
    chat = local_session(hash_model(), GREEDY, "s", another=lambda name, progress: LocalBackend(hash_model()))
    gone = weakref.ref(chat.backend)
    chat.backend.itself = chat.backend  # type: ignore[attr-defined]
    gc.disable()
    try:
        chat.use_model("other")
    finally:
        gc.enable()
    assert gone() is None


def test_thoughts_are_told_apart_from_the_answer() -> None:
    chat = scripted(b"<think>hm, well</think>\n\nYes.")
    *deltas, _ = chat.ask("hello")
    assert [d for d in deltas if isinstance(d, TextDelta) and ("<" in d.text or ">" in d.text)] == []
    thought = "".join(d.text for d in deltas if isinstance(d, TextDelta) and d.thinking)
    answered = "".join(d.text for d in deltas if isinstance(d, TextDelta) and not d.thinking)
    assert (thought, answered) == ("hm, well", "\n\nYes.")


def scripted(answer: bytes) -> Session:
    """A session whose model says this."""

    class Script(HashEngine):
        def row(self, tokens: Sequence[int]) -> NDArray[np.float32]:
            logits = np.zeros(259, np.float32)
            start = max(i for i, token in enumerate(tokens) if token == 256) + 1 + len("assistant\n")
            logits[[*answer, 257][min(len(tokens) - start, len(answer))]] = 9
            return logits

    model = hash_model()
    model.engine = Script(512, 259)
    return local_session(model, replace(GREEDY, max_tokens=None))


# ---- seeing inside ----


def test_tokens_are_scored_as_the_engine_scores_them_and_the_cache_stays_as_it_was() -> None:
    chat = session(system="s")
    ask(chat, "one")
    ask(chat, "two")
    held = list(local(chat).cache.log)
    ids = line(chat)[-1].ids or ()
    start = next(i for i in range(len(held)) if tuple(held[i : i + len(ids) - 1]) == ids[:-1] and i > 40)
    tokens = chat.tokens(3)
    assert [token.id for token in tokens] == list(ids)
    for at, token in enumerate(tokens):
        logits = HashEngine(512, 259).row(held[:start] + list(ids[:at])).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert token.logprob == pytest.approx(logprobs[token.id]) and len(token.top) == 3
        assert token.top[0][1] == logprobs.argmax() == token.id
    assert local(chat).cache.log == held
    assert ask(chat, "three")[1].stats.reused_tokens >= len(held)


def test_why_counts_what_each_setting_did() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=5.0)
    greedy = session(settings=replace(GREEDY, sampling=params, max_tokens=60))
    ask(greedy, "the quick brown fox jumps over the lazy dog")
    rows = dict(greedy.why())
    changed = int(rows["repetition_penalty"].split("likeliest ")[1].split()[0])
    tokens = greedy.tokens(1)
    assert changed == sum(token.id != token.top[0][1] for token in tokens) > 0
    chat = session(settings=replace(GREEDY, sampling=SamplingParams(temperature=1.0, top_k=3, top_p=1.0, seed=1)))
    ask(chat, "hello")
    rows = dict(chat.why())
    assert "left 3.0 tokens on average" in rows["top_k"]
    unlikely = sum(token.id != token.top[0][1] for token in chat.tokens(1))
    assert rows["temperature"].startswith(f"1: {unlikely} of ")


@pytest.mark.parametrize("act", [Session.tokens, Session.why, Session.regenerate, Session.resume])
def test_without_an_answer_there_is_nothing_to_look_into(act: object) -> None:
    with pytest.raises(UsageError):
        act(session())  # type: ignore[operator]


def test_a_message_beyond_what_a_line_of_the_file_may_have_is_refused() -> None:
    with pytest.raises(UsageError, match="characters"):
        session().ask("x" * (4 << 20) + "x")
    for act in (lambda text: session(system=text), session().set_system):
        with pytest.raises(UsageError, match="the system prompt has"):
            act("x" * (4 << 20) + "x")


def test_thoughts_that_the_models_template_opens_are_thoughts_and_the_next_turn_sees_them_as_said() -> None:
    chat = scripted(b"<think>\nhm</think>Yes.")  # the first line is the header's
    turns = local(chat).model.dialog.turns
    local(chat).model.dialog.turns = lambda messages: [*turns(messages)[:-1], turns(messages)[-1] + [*b"<think>\n"]]  # type: ignore[method-assign]
    deltas = [event for event in chat.ask("hello") if isinstance(event, TextDelta)]
    assert "".join(d.text for d in deltas if d.thinking) == "hm"
    assert "".join(d.text for d in deltas if not d.thinking) == "Yes." == said(chat)[-1][1]
    assert line(chat)[-1].text == "<think>hm</think>Yes."
    held = len(local(chat).cache)
    assert ask(chat, "again")[1].stats.reused_tokens == held, "nothing of it is computed again"
