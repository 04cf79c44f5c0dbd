"""guesses.py: drafts never change what is generated, cost nothing where they do not pay, and leave the cache clean."""

from collections.abc import Callable, Sequence
from itertools import count, pairwise

import numpy as np
import pytest
from hash_engine import HashEngine, byte_tokenizer, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core import generate as g
from llamachat.core.cache import Cache
from llamachat.core.sampler import Constraint, Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.generation import guesses
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.constraints import Constrainer, from_regex
from llamachat.generation.guesses import Guesser, Guesses
from llamachat.generation.suffixes import SuffixArray


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


class Eager(Guesser):
    """Drafts whenever it can, whatever it costs."""

    def draft(self, limit: int) -> list[int]:
        self._balance = 100.0
        return super().draft(limit)


class EagerGuesses(Guesses):
    """Steps of any length cost the same, as far as these know."""

    def __init__(self, earlier: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.costs.step(1, 1e9)
        self.earlier = SuffixArray(earlier)

    def begin(self, ids: Sequence[int], constraint: Constraint | None = None) -> Guesser:
        self.costs.step(1 + guesses.DRAFT_MAX, 1.0)
        return Eager(self, ids, constraint)


prompts = st.lists(st.integers(0, 6), min_size=1, max_size=30)
sampling = st.sampled_from(
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=1.5, repetition_penalty=1.3),
        SamplingParams(seed=3, presence_penalty=0.7, frequency_penalty=0.2),
    ]
)


@settings(deadline=None, max_examples=200)
@given(
    ids=prompts, earlier=st.lists(prompts, max_size=3), params=sampling, limit=st.integers(1, 40),
    stop=st.integers(0, 49), slots=st.integers(31, 80),
)  # fmt: skip
def test_drafting_gives_the_same_tokens_and_logprobs_and_a_true_cache(
    ids: list[int], earlier: list[list[int]], params: SamplingParams, limit: int, stop: int, slots: int
) -> None:
    runs = []
    for drafter in (None, EagerGuesses(earlier).begin(ids)):
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


@settings(deadline=None, max_examples=30)
@given(dialogs=st.lists(prompts, min_size=2, max_size=5), params=sampling)
def test_what_is_remembered_from_answer_to_answer_changes_none(
    dialogs: list[list[int]], params: SamplingParams
) -> None:
    shared = EagerGuesses()
    for ids in dialogs:
        runs = []
        for drafter in (None, shared.begin(ids)):
            engine, cache = EchoEngine(), Cache(64)
            logits = g.prefill(engine, cache, ids)
            tokens = g.generate(engine, cache, logits, Sampler(params, 50), stop_ids=(), max_tokens=20, drafter=drafter)
            runs.append([token.id for token in tokens])
        assert runs[0] == runs[1]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(seed=5, temperature=1.2)])
def test_answers_of_a_grammar_are_the_same_with_guesses(params: SamplingParams) -> None:
    tokenizer = byte_tokenizer()
    grammar = from_regex("(ab|ba){9}x+y")
    said = []
    for made in (Guesses(), EagerGuesses([list(b"abababab" * 3), list(b"xxxxxy")])):
        model = hash_model()
        constraint = Constrainer(tokenizer, 259, model.stop_ids, drops_space=False).of(grammar)
        wanted = AnswerSettings(params, model.stop_ids, max_tokens=60, constraint=constraint)
        answer = Answer(model.engine, tokenizer, Cache(512), list(b"abababab"), wanted, guesses=made)
        said.append(("".join(answer), answer.ids, answer.reason))
    assert said[0] == said[1]


def test_leaving_in_the_middle_of_a_draft_forgets_the_rest_of_it() -> None:
    ids = [1, 2, 3, 4] * 6
    engine, cache = EchoEngine(), Cache(64)
    logits = g.prefill(engine, cache, ids)
    tokens = g.generate(
        engine,
        cache,
        logits,
        Sampler(SamplingParams(temperature=0), 50),
        stop_ids=(),
        drafter=EagerGuesses().begin(ids),
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
    sampler, drafter = Sampler(SamplingParams(temperature=0), 50), EagerGuesses().begin(ids)
    out = list(g.generate(engine, cache, logits, sampler, stop_ids=(), max_tokens=48, drafter=drafter))
    assert len(out) == 48
    assert len(engine.forwarded) <= 48 / 4


def run_for(
    drafter: Guesser, steps: int, cost: Callable[[int], float], say: Callable[[int | None], int]
) -> tuple[float, list[int]]:
    """What so many steps cost, and how many tokens each gave. `cost`: of so many tokens; `say`: what comes where this has been
    drafted."""
    total, given = 0.0, list[int]()
    for _ in range(steps):
        draft, gained = drafter.draft(16), 0
        drafter.stepped(0.01 * cost(1 + len(draft)))
        total += cost(1 + len(draft))
        while True:
            guess = draft[gained] if gained < len(draft) else None
            token, gained = say(guess), gained + 1
            drafter.add(token)
            if token != guess:
                break
        given.append(gained)
    return total, given


def over_and_over() -> Callable[[int | None], int]:
    said = count(1)
    return lambda guess: next(said) % 2


def contrary() -> Callable[[int | None], int]:
    """Repeats itself, so that guesses seem to be right, until one is drafted."""
    said = count(1)
    return lambda guess: next(said) % 4 if guess is None else (guess + 1) % 4


@pytest.mark.parametrize("steps", [20, 300, 3000])
@pytest.mark.parametrize("extra", [0.01, 0.3, 1])
def test_what_wrong_drafts_cost_is_bounded(steps: int, extra: float) -> None:
    """Even where all have been right in another answer, and seem so in this one."""
    shared = Guesses()
    run_for(shared.begin([0, 1] * 8), 100, lambda tokens: 1 + (tokens - 1) * 0.01, over_and_over())
    total, given = run_for(shared.begin([0, 1, 2, 3] * 4), steps, lambda tokens: 1 + (tokens - 1) * extra, contrary())
    assert given == [1] * steps
    surprise = 2 * guesses.DRAFT_MAX * extra  # until it is believed that steps cost more than they did
    assert total <= steps * (1 + guesses.SHARE) + guesses.ALLOWANCE + surprise


def test_where_guesses_are_always_wrong_none_are_drafted_for_long() -> None:
    """What comes behind four tokens that always come is never the same."""
    said = count(1)
    total, given = run_for(
        Guesses().begin([0, 1, 2, 3]), 2000, lambda tokens: 1 + 0.4 * (tokens - 1), lambda guess: next(said) + 50
    )
    assert total == sum(given) == 2000


def test_drafting_goes_on_while_it_pays_and_drafts_grow_longer() -> None:
    total, given = run_for(Guesses().begin([0, 1] * 8), 1000, lambda tokens: 1 + (tokens - 1) * 0.1, over_and_over())
    assert sum(given) > 980 * (1 + guesses.DRAFT_MAX)
    assert total < sum(given) / 5


def test_drafts_are_as_long_as_pays() -> None:
    """Steps of up to four tokens cost hardly more than one, longer ones much more."""
    _, given = run_for(
        Guesses().begin([0, 1] * 8), 300, lambda tokens: 1.05 if tokens <= 4 else float(tokens), over_and_over()
    )
    assert given[-50:].count(4) > 45


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_nothing_is_drafted_where_nothing_repeats(ids: list[int]) -> None:
    assert EagerGuesses().begin(ids).draft(8) == []


def test_a_draft_is_what_followed_the_latest_place_up_to_the_limit() -> None:
    ids = [4, 1, 2, 3, 9, 9, 4, 1, 2, 3, 7, 8, 6, 5, 4, 1, 2, 3]
    assert EagerGuesses().begin(ids).draft(3) == [7, 8, 6]
    assert EagerGuesses().begin(ids).draft(0) == []
    assert EagerGuesses().begin([5, 6, 7] * 3).draft(4) == [5, 6, 7, 5]


def test_an_earlier_answer_is_followed_to_its_end_and_no_further() -> None:
    known = EagerGuesses([[8, 9, 1, 2, 3, 4, 5, 6], [7, 7, 7]])
    assert known.begin([30, 1, 2, 3, 4]).draft(8) == [5, 6]
    known.forget()
    assert known.begin([31, 1, 2, 3, 4]).draft(8) == []


def test_another_answer_to_the_same_question_is_guessed_by_the_first() -> None:
    known, question = EagerGuesses(), [20, 21, 22, 23]
    first = known.begin(question)
    for token in (1, 2, 3, 4, 5):
        first.add(token)
    again = known.begin(question)
    assert again.draft(3) == [1, 2, 3]
    again.add(1)
    again.add(9)
    again.add(3)
    assert again.draft(2) == [4, 5]
