"""generate.py: prefill in chunks, tokens one at a time, and a cache that always holds what was run."""

from collections.abc import Callable

import pytest
from hash_engine import HashEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core import generate as g
from llamachat.core.cache import Cache
from llamachat.core.sampler import Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.errors import DoesNotFitError

GREEDY = SamplingParams(temperature=0)
prompts = st.lists(st.integers(0, 49), min_size=1, max_size=40)


def greedy(engine: HashEngine, ids: list[int], count: int) -> list[int]:
    """The slow definition: the whole sequence anew for each token."""
    out: list[int] = []
    for _ in range(count):
        out.append(int(engine.row(ids + out).argmax()))
    return out


def run(engine: HashEngine, cache: Cache, ids: list[int], **options: object) -> list[int]:
    logits = g.prefill(engine, cache, ids[cache.keep_common_prefix(ids) :])
    sampler = Sampler(GREEDY, engine.config.vocab_size)
    return [t.id for t in g.generate(engine, cache, logits, sampler, **{"stop_ids": (), "max_tokens": 8, **options})]


@given(ids=prompts, chunk=st.integers(1, 50))
def test_chunked_prefill_and_decode_equal_the_sequence_run_anew(ids: list[int], chunk: int) -> None:
    engine, cache = HashEngine(), Cache(64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(g, "PREFILL_CHUNK", chunk)
        out = run(engine, cache, ids)
    assert out == greedy(engine, ids, 8)
    assert cache.log == ids + out[:-1]
    assert max(engine.forwarded) <= chunk


@settings(max_examples=50)
@given(st.lists(prompts, min_size=1, max_size=6))
def test_a_reused_cache_answers_like_a_fresh_one(dialogs: list[list[int]]) -> None:
    engine, cache = HashEngine(), Cache(64)
    for ids in dialogs:
        assert run(engine, cache, ids) == greedy(engine, ids, 8)


def test_only_what_follows_the_common_prefix_is_run_again() -> None:
    engine, cache = HashEngine(), Cache(64)
    run(engine, cache, list(range(30)), max_tokens=1)
    engine.forwarded.clear()
    run(engine, cache, [*range(28), 40, 41, 42], max_tokens=1)
    assert engine.forwarded == [3]


def test_generation_ends_at_a_stop_id_which_is_yielded_but_not_run() -> None:
    engine, cache, ids = HashEngine(), Cache(64), [1, 2, 3]
    expected = greedy(engine, ids, 5)
    assert expected[4] not in expected[:4]
    assert run(engine, cache, ids, stop_ids={expected[4]}) == expected
    assert cache.log == ids + expected[:4]


def test_generation_ends_when_the_cache_is_full() -> None:
    engine, cache = HashEngine(slots=10), Cache(10)
    assert len(run(engine, cache, [1, 2, 3], max_tokens=None)) == 8
    assert len(cache) == 10


def test_an_interrupt_ends_prefill_and_decode_and_leaves_the_cache_true() -> None:
    engine, cache, asked = HashEngine(), Cache(64), iter([False, True])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(g.Interrupted):
        patch.setattr(g, "PREFILL_CHUNK", 4)
        g.prefill(engine, cache, list(range(12)), lambda: next(asked))
    assert cache.log == [0, 1, 2, 3]
    assert len(run(engine, cache, [0, 1, 2, 3, 4], interrupted=lambda: True)) == 1


def test_a_prompt_longer_than_the_context_is_refused_before_any_work() -> None:
    engine, cache = HashEngine(slots=10), Cache(10)
    with pytest.raises(DoesNotFitError, match="11 tokens, the context holds 10"):
        g.prefill(engine, cache, list(range(11)))
    assert engine.forwarded == []


def test_a_failed_forward_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, cache = HashEngine(), Cache(64)
    g.prefill(engine, cache, [1, 2])
    monkeypatch.setattr(engine, "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        g.prefill(engine, cache, [3])
    assert cache.log == [1, 2]


@given(ids=prompts, chunk=st.integers(1, 50))
def test_scores_of_a_prompt_are_those_of_each_prefix(ids: list[int], chunk: int) -> None:
    engine = HashEngine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(g, "PREFILL_CHUNK", chunk)
        scored, logits = g.score(engine, Cache(64), ids, 2)
    expected = [g.token_logprobs(engine.row(ids[:i]), ids[i], 2) for i in range(1, len(ids))]
    assert scored == expected
    assert (logits == engine.row(ids)).all()


def test_scoring_a_prompt_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g, "PREFILL_CHUNK", 4)
    engine, cache, polls = HashEngine(), Cache(64), iter([False, True])
    with pytest.raises(g.Interrupted):
        g.score(engine, cache, list(range(20)), 0, lambda: next(polls))
    assert cache.log == [0, 1, 2, 3]


def dropping(cache: Cache, count: int) -> Callable[[int], bool]:
    """Makes room by forgetting so many of the oldest tokens, or as many as are asked for."""

    def room(wanted: int) -> bool:
        cache.evict(min(max(count, wanted - cache.free), cache.evictable))
        return True

    return room


def refusing(asked: list[int]) -> Callable[[int], bool]:
    """Makes no room, and notes for how many tokens it was asked."""

    def room(wanted: int) -> bool:
        asked.append(wanted)
        return False

    return room


def rolled(
    engine: HashEngine, ids: list[int], size: int, pinned: int, count: int, steps: int
) -> tuple[list[int], list[int]]:
    """The slow definition: a list that loses tokens behind the pinned ones whenever one more would not fit.

    The tokens drawn, and the list before the last of them.
    """
    log, out = list(ids), list[int]()
    while True:
        out.append(int(engine.row(log).argmax()))
        if len(out) == steps:
            return out, log
        if len(log) == size:
            del log[pinned : pinned + count]
        log.append(out[-1])


class Repeats:
    """Drafts what is right, then what is wrong, so that tokens are accepted and rejected around evictions."""

    def __init__(self, expected: list[int]) -> None:
        self.expected, self.said = expected, 0

    def add(self, token: int) -> None:
        self.said += 1

    def draft(self, limit: int) -> list[int]:
        return [*self.expected[self.said :][:2], 0, 0][: max(limit, 0)]

    def stepped(self, seconds: float) -> None:
        pass


@given(size=st.integers(8, 30), pinned=st.integers(0, 4), count=st.integers(1, 4), drafts=st.booleans())
def test_decoding_rolls_where_room_is_made(size: int, pinned: int, count: int, drafts: bool) -> None:
    engine, cache, ids = HashEngine(size), Cache(size), list(range(7))
    cache.pin(pinned)
    expected, log = rolled(engine, ids, size, pinned, count, 60)
    logits = g.prefill(engine, cache, ids)
    sampler, drafter = Sampler(GREEDY, engine.config.vocab_size), Repeats(expected) if drafts else None
    made = g.generate(
        engine, cache, logits, sampler, stop_ids=(), max_tokens=60, room=dropping(cache, count), drafter=drafter
    )
    assert [token.id for token in made] == expected
    assert cache.log == log


@given(ids=st.lists(st.integers(0, 49), min_size=1, max_size=90), size=st.integers(4, 30), pinned=st.integers(0, 3))
def test_a_prompt_larger_than_the_window_rolls_through_in_parts_of_it(ids: list[int], size: int, pinned: int) -> None:
    engine, cache = HashEngine(size), Cache(size)
    cache.pin(pinned)
    asked: list[int] = []
    logits = g.prefill(engine, cache, ids, room=lambda count: refusing(asked)(count) or dropping(cache, 0)(count))
    assert cache.log == ids[:pinned] + ids[pinned:][-(len(cache) - min(pinned, len(ids))) or len(ids) :]
    assert len(cache) >= min(len(ids), size - max(1, (size - pinned) // g.ROLLING))
    assert (logits == engine.row(cache.log)).all()
    assert bool(asked) == (len(ids) > size)
    assert asked[:1] in ([], [len(ids)])


def test_room_that_is_refused_ends_decoding_and_refuses_a_prompt() -> None:
    engine, cache, asked = HashEngine(slots=10), Cache(10), list[int]()
    out = run(engine, cache, [1, 2, 3], max_tokens=None, room=refusing(asked))
    assert len(out) == 8
    assert asked == [1]
    with pytest.raises(DoesNotFitError):
        g.prefill(engine, cache, [4, 5], room=refusing(asked))
    assert asked == [1, 2]


def test_an_engine_that_fails_after_a_wrong_draft_costs_the_cache_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, cache, ids = HashEngine(), Cache(64), [1, 2, 3]
    expected = greedy(engine, ids, 6)
    logits = g.prefill(engine, cache, ids)
    sampler = Sampler(GREEDY, engine.config.vocab_size)
    tokens = g.generate(engine, cache, logits, sampler, stop_ids=(), drafter=Repeats(expected))
    assert [next(tokens).id for _ in range(4)] == expected[:4]
    monkeypatch.setattr(engine, "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    assert cache.log == ids + expected[:3]
