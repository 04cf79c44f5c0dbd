"""batch.py: many answers at once are the answers one by one, in order, in bounded slots, and errors stay their own."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hash_engine import HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core.cache import Cache
from llamachat.core.sampling import SamplingParams
from llamachat.engines.native import build
from llamachat.errors import DoesNotFitError, LlamachatError, ModelError, UsageError
from llamachat.generation import batch as b
from llamachat.generation.batch import Answered, Batch, Request, Slots
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.models.load import LoadedModel, load

STOPS = frozenset({257, 258})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few slots hold several texts."""
    monkeypatch.setattr(b, "ALIGN", 1)
    monkeypatch.setattr(b, "WORTH", 2)
    monkeypatch.setattr(b, "PIECE", 16)


def request(prompt: Iterable[int], **changes: Any) -> Request:
    sampling = SamplingParams(temperature=changes.pop("temperature", 0), seed=changes.pop("seed", 1))
    return Request(list(prompt), AnswerSettings(sampling, STOPS, **{"max_tokens": 8, **changes}))


def alone(model: LoadedModel, each: Request) -> tuple[str, list[int], str] | str:
    """Text, ids and reason, or the error, as one by one."""
    answer = Answer(
        model.engine, model.tokenizer, Cache(model.context), each.prompt, each.settings, each.continues_text
    )
    try:
        text = "".join(answer)
    except LlamachatError as error:
        return str(error)
    return text, answer.ids, answer.reason


def told(outcome: b.Outcome) -> tuple[str, list[int], str] | str:
    if isinstance(outcome, Answered):
        return outcome.text, outcome.answer.ids, outcome.answer.reason
    return str(outcome)


prompts = st.lists(st.integers(97, 99), min_size=1, max_size=20)
requests = st.builds(
    request,
    prompts,
    max_tokens=st.none() | st.integers(1, 12),
    seed=st.integers(0, 5),
    temperature=st.sampled_from([0, 1.0]),
    stop_strings=st.sampled_from([(), ("a", "bc")]),
    top_logprobs=st.sampled_from([None, 2]),
    score_prompt=st.booleans(),
)


@settings(max_examples=60)
@given(st.lists(requests, max_size=12), st.integers(1, 6), st.integers(12, 90), st.integers(1, 3))
def test_a_batch_gives_what_each_request_gives_alone(
    batch: list[Request], parallel: int, context: int, texts: int
) -> None:
    model = replace(hash_model(context * texts), parallel=texts)
    outcomes = list(Batch(model, parallel).run(iter(batch)))
    one = hash_model(context)
    assert [told(each) for each in outcomes] == [alone(one, each) for each in batch]
    for each, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Answered):
            single = Answer(one.engine, one.tokenizer, Cache(context), each.prompt, each.settings)
            list(single)
            assert outcome.answer.logprobs == single.logprobs
            assert outcome.answer.prompt_logprobs == single.prompt_logprobs
            assert outcome.answer.stop_id == single.stop_id


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=40), st.integers(1, 16))
def test_slots_are_given_once_in_blocks_and_come_back(moves: list[tuple[bool, int]], align: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b, "ALIGN", align)
        slots, held = Slots(100), list[range]()
        for take, count in moves:
            if not take and held:
                slots.give(held.pop(count % len(held)))
            elif (run := slots.take(count)) is not None:
                assert len(run) >= count and run.start % align == 0 and run.stop <= 100
                assert not any(set(run) & set(other) for other in held)
                held.append(run)
        for run in held:
            slots.give(run)
        assert slots.take(100) == range(100)


def test_texts_run_together_and_what_they_begin_with_is_computed_once() -> None:
    model = hash_model(400)
    engine = model.engine
    assert isinstance(engine, HashEngine)
    steps, many = list[int](), engine.forward_many

    def counted(ids: Any, plans: Any) -> Any:
        steps.append(len(ids))
        return many(ids, plans)

    engine.forward_many = counted  # type: ignore[assignment, method-assign]
    shared = list(range(60))
    batch = [request([*shared, 70 + i], max_tokens=5, stop_strings=()) for i in range(8)]
    list(Batch(model, 4).run(iter(batch)))
    assert steps[:5] == [1 + 3] * len(steps[:5])
    assert sum(engine.forwarded) <= 2 * 60 + 8 * 6


def test_outcomes_come_in_order_and_as_soon_as_they_can() -> None:
    model = hash_model(200)
    lengths = [9, 1, 1, 3]
    given = iter([request([97 + i], max_tokens=n) for i, n in enumerate(lengths)])
    seen = [len(outcome.answer.ids) for outcome in Batch(model, 4).run(given) if isinstance(outcome, Answered)]
    assert seen == lengths


def test_a_slow_source_gets_each_answer_before_it_gives_the_next_request() -> None:
    log = list[str]()
    batch = Batch(hash_model(200), 4)

    def source() -> Iterator[Request | LlamachatError | None]:
        for i in range(3):
            while not batch.idle:
                yield None
            log.append(f"asked {i}")
            yield UsageError("bad") if i == 1 else request([97 + i])

    for number, _ in enumerate(batch.run(source())):
        log.append(f"answered {number}")
    assert log == ["asked 0", "answered 0", "asked 1", "answered 1", "asked 2", "answered 2"]


def test_a_fast_request_is_answered_while_a_long_one_runs_but_not_too_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(b, "WINDOW", 5)
    taken = list[int]()

    def source() -> Iterator[Request]:
        for i in range(20):
            taken.append(i)
            yield request([97 + i], max_tokens=60 if i == 0 else 1)

    run = Batch(hash_model(200), 2).run(source())
    next(run)
    assert taken == [0, 1, 2, 3, 4]
    assert len(list(run)) == 19


def test_a_text_of_which_the_model_makes_nonsense_ends_alone() -> None:
    model = hash_model(200)
    engine = model.engine
    assert isinstance(engine, HashEngine)
    right = engine.row
    spoiled = np.float32(np.nan)
    engine.row = lambda tokens: right(tokens) * (spoiled if tokens[0] == 98 and len(tokens) == 3 else 1)  # type: ignore[method-assign]
    first, bad, last = Batch(model, 3).run(iter([request([97]), request([98]), request([99])]))
    assert isinstance(bad, ModelError) and "largest logit" in str(bad)
    assert [told(first), told(last)] == [alone(hash_model(200), request([n])) for n in (97, 99)]


def test_what_cannot_be_answered_is_an_error_in_its_place() -> None:
    given: list[Request | LlamachatError | None] = [
        request([97] * 31),
        UsageError("a bad line"),
        request([300]),
        request([]),
        request([97] * 30),
    ]
    errors = list(Batch(hash_model(30), 2).run(iter(given)))
    assert [type(each) for each in errors] == [DoesNotFitError, UsageError, ModelError, UsageError, Answered]


def test_an_interrupt_keeps_what_was_said_and_begins_no_more() -> None:
    model = hash_model(200)
    engine = model.engine
    assert isinstance(engine, HashEngine)
    batch = Batch(model, 2, lambda: len(engine.forwarded) > 8)
    outcomes = list(batch.run(request([97 + i], max_tokens=90) for i in range(9)))
    assert len(outcomes) == 2
    model = hash_model(200)
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Answered) and outcome.answer.reason == "interrupt"
        whole = alone(model, request([97 + number], max_tokens=90))
        assert whole[1][: len(outcome.answer.ids)] == outcome.answer.ids != []


def test_an_interrupt_does_not_wait_for_what_prompts_begin_with() -> None:
    model, asked = hash_model(400), list[Request]()
    engine = model.engine
    assert isinstance(engine, HashEngine)

    def given() -> Iterator[Request]:
        for i in range(2):
            asked.append(request([*range(60), 70 + i]))
            yield asked[-1]

    outcomes = list(Batch(model, 2, lambda: len(asked) == 2).run(given()))
    assert [each.answer.reason for each in outcomes if isinstance(each, Answered)] == ["interrupt"] * 2
    assert engine.forwarded == []


needs_native = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@needs_native
@pytest.mark.parametrize("kv_bits", [8, 16])
def test_native_answers_are_those_one_by_one_to_the_last_bit(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, kv_bits: int
) -> None:
    monkeypatch.undo()  # real blocks: a text's place must not matter with these
    one = load(str(smollm2_gguf), ctx_size=320, engine="native", kv_bits=kv_bits)
    many = load(str(smollm2_gguf), ctx_size=320, parallel=4, engine="native", kv_bits=kv_bits)
    beginning = one.tokenizer.encode("You are a careful assistant who answers in one sentence, always. " * 3)
    texts = ["The sea", "A list of colours: red,", "def add(a, b):", "In 1969, " * 30, "Once", "Twice"]
    sampling = SamplingParams(temperature=0.8, seed=3)
    batch = [
        Request(
            [*beginning, *one.tokenizer.encode(text)],
            AnswerSettings(sampling, one.stop_ids, max_tokens=n, top_logprobs=1),
        )
        for text, n in zip(texts, (6, 12, 3, 5, 9, 4), strict=True)
    ]
    outcomes = list(Batch(many, 3).run(iter(batch)))
    for each, outcome in zip(batch, outcomes, strict=True):
        single = Answer(one.engine, one.tokenizer, Cache(one.context), each.prompt, each.settings)
        list(single)
        assert isinstance(outcome, Answered)
        assert outcome.answer.logprobs == single.logprobs
