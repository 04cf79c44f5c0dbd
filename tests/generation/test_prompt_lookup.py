"""prompt_lookup.py: drafts never change what is generated, cost nothing where they do not pay, and leave the cache clean."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hash_engine import HashEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core import generate as g
from llamachat.core.cache import Cache
from llamachat.core.sampler import Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.generation import prompt_lookup
from llamachat.generation.prompt_lookup import PromptLookup


class EchoEngine(HashEngine):
    """Repeats, mostly, what followed the last two tokens before; so drafts are often right and often wrong."""

    strength = 1.5

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        logits = super().row(tokens) * 0.5
        pairs = list(pairwise(tokens))
        earlier = [at for at, pair in enumerate(pairs[:-1]) if pair == pairs[-1]] if pairs else []
        if earlier:
            logits[tokens[earlier[-1] + 2]] += self.strength
        return logits


class Eager(PromptLookup):
    """Drafts whenever it can, whatever it costs."""

    def draft(self, limit: int) -> list[int]:
        self._plain_s, self._balance = 1.0, 100.0
        return super().draft(limit)


prompts = st.lists(st.integers(0, 6), min_size=1, max_size=30)
sampling = st.sampled_from(
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=1.5, repetition_penalty=1.3),
    ]
)


@settings(deadline=None, max_examples=200)
@given(ids=prompts, params=sampling, limit=st.integers(1, 40), stop=st.integers(0, 49), slots=st.integers(31, 80))
def test_drafting_gives_the_same_tokens_and_logprobs_and_a_true_cache(
    ids: list[int], params: SamplingParams, limit: int, stop: int, slots: int
) -> None:
    runs = []
    for drafter in (None, Eager(ids)):
        engine, cache = EchoEngine(slots), Cache(slots)
        logits = g.prefill(engine, cache, ids)
        tokens = g.generate(
            engine, cache, logits, Sampler(params, 50), stop_ids={stop}, max_tokens=limit, top=2, drafter=drafter
        )
        runs.append(list(tokens))
        made = ids + [token.id for token in runs[-1]]
        assert cache.log in (made, made[:-1])
        assert [engine.held[slot][1] for slot in range(len(cache))] == cache.log
    assert runs[0] == runs[1]


def test_leaving_in_the_middle_of_a_draft_forgets_the_rest_of_it() -> None:
    ids = [1, 2, 3, 4] * 6
    engine, cache = EchoEngine(), Cache(64)
    logits = g.prefill(engine, cache, ids)
    tokens = g.generate(
        engine, cache, logits, Sampler(SamplingParams(temperature=0), 50), stop_ids=(), drafter=Eager(ids)
    )
    seen = [next(tokens).id for _ in range(3)]
    assert engine.forwarded[-1] > 1, "a draft was under way"
    tokens.close()  # type: ignore[attr-defined]
    assert cache.log in (ids + seen, ids + seen[:-1])


def test_accepted_drafts_save_steps() -> None:
    ids = list(range(1, 13)) * 3
    engine, cache = EchoEngine(128), Cache(128)
    engine.strength = 9
    logits = g.prefill(engine, cache, ids)
    engine.forwarded.clear()
    sampler = Sampler(SamplingParams(temperature=0), 50)
    out = list(g.generate(engine, cache, logits, sampler, stop_ids=(), max_tokens=48, drafter=Eager(ids)))
    assert len(out) == 48
    assert len(engine.forwarded) <= 48 / 4


def run_for(drafter: PromptLookup, steps: int, right: int, plain_s: float, extra_s: float) -> tuple[float, int]:
    """Seconds of so many steps when of each draft at most `right` tokens are, and the tokens that were given."""
    seconds, given = 0.0, 0
    for _ in range(steps):
        draft = drafter.draft(16)
        taken = plain_s + extra_s * len(draft)
        drafter.stepped(taken)
        gained = min(right, len(draft)) + 1
        for token in range(given, given + gained):
            drafter.add(token % 2)
        seconds, given = seconds + taken, given + gained
    return seconds, given


@pytest.mark.parametrize("steps", [20, 300, 3000])
@pytest.mark.parametrize("extra_s", [0.0001, 0.003, 0.01, 0.5])
def test_what_wrong_drafts_cost_is_bounded(steps: int, extra_s: float) -> None:
    seconds, given = run_for(PromptLookup([0, 1] * 8), steps, right=0, plain_s=0.01, extra_s=extra_s)
    assert given == steps
    first = prompt_lookup.DRAFT_FIRST * extra_s  # the cost is not known before
    assert seconds <= 0.01 * (steps * (1 + 2 * prompt_lookup.SHARE) + prompt_lookup.ALLOWANCE) + first


def test_drafting_goes_on_while_it_pays_and_drafts_grow_longer() -> None:
    seconds, given = run_for(PromptLookup([0, 1] * 8), 1000, right=16, plain_s=0.01, extra_s=0.001)
    assert given > 990 * (1 + prompt_lookup.DRAFT_MAX)
    assert seconds < 0.01 * given / 5


def test_a_draft_never_costs_more_than_can_be_lost() -> None:
    drafter = PromptLookup([0, 1] * 8)
    drafter.stepped(0.01)
    drafter.add(0)
    assert 0 < len(drafter.draft(16)) * prompt_lookup.EXTRA <= prompt_lookup.ALLOWANCE + prompt_lookup.SHARE


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_nothing_is_drafted_where_nothing_repeats(ids: list[int]) -> None:
    assert Eager(ids).draft(8) == []


def test_a_draft_is_what_followed_the_latest_place_up_to_the_limit() -> None:
    ids = [4, 1, 2, 3, 9, 9, 4, 1, 2, 3, 7, 8, 6, 5, 4, 1, 2, 3]
    assert Eager(ids).draft(3) == [7, 8, 6]
    assert Eager(ids).draft(0) == []
    assert Eager([5, 6, 7] * 3).draft(4) == [5, 6, 7, 5]
