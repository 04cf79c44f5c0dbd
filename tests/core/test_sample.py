"""The sampler against slow definitions, transformers' logits processors, and statistics of its draws."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import chisquare
from transformers import generation as hf

from llamachat.core import sampler as module
from llamachat.core.sampler import (
    FEW,
    Sampler,
    count_penalised,
    drawn,
    largest,
    likely,
    nucleus,
    peak,
    repetition_penalised,
    token_logprobs,
)
from llamachat.core.sampling import SamplingParams
from llamachat.errors import ModelError, UsageError

PLAIN = SamplingParams(temperature=1, top_p=1, seed=0)
# Small whole numbers make ties, and sums that float32 holds exactly.
NUMBERS = st.lists(st.integers(0, 8), min_size=1, max_size=300).filter(any)


def floats(values: Iterable[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def random_logits(size: int = 200, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def by_rank(values: Sequence[float] | NDArray[np.float32]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


# Filters against their definitions


@given(NUMBERS, st.integers(0, 400))
def test_largest_is_the_head_of_a_full_sort(values: list[int], k: int) -> None:
    assert largest(floats(values), k).tolist() == by_rank(values)[:k]


@given(NUMBERS, st.integers(0, 64), st.sampled_from([FEW, 0]))
def test_nucleus_is_the_shortest_head_of_a_full_sort_with_the_share(weights: list[int], share: int, few: int) -> None:
    p, order, mass, size = Fraction(share, 64), by_rank(weights), 0, 0
    while size == 0 or mass < p * sum(weights):
        mass += weights[order[size]]
        size += 1
    with patch.object(module, "FEW", few):
        assert sorted(nucleus(floats(weights), float(p)).tolist()) == sorted(order[:size])


@given(NUMBERS, st.integers(0, 64))
def test_likely_keeps_what_is_not_too_far_below_the_largest(weights: list[int], share: int) -> None:
    expected = [i for i, weight in enumerate(weights) if weight >= Fraction(share, 64) * max(weights)]
    assert likely(floats(weights), share / 64).tolist() == expected


@pytest.mark.parametrize("spread", [0.01, 1, 3, 10])
def test_filters_agree_with_their_definitions_on_a_real_vocabulary_size(spread: float) -> None:
    weights = np.exp(np.random.default_rng(1).normal(0, spread, 128_256)).astype(np.float32)
    order = np.lexsort((np.arange(len(weights)), -weights))
    mass = np.cumsum(weights[order], dtype=np.float64)
    for k in (1, 40, 3000, 100_000):
        np.testing.assert_array_equal(largest(weights, k), order[:k])
    for p in (0.0, 0.5, 0.9, 0.999):
        size = max(int(np.sum(mass < p * mass[-1])) + 1, 1)
        np.testing.assert_array_equal(np.sort(nucleus(weights, p)), np.sort(order[:size]))


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.1, 0.3, 0.7, 1, 2])
@pytest.mark.parametrize("spread", [1, 3, 9])
def test_a_nucleus_is_that_of_all_weights_although_few_are_looked_at(
    spread: int, temperature: float, top_p: float
) -> None:
    logits = (np.random.default_rng(spread).normal(0, spread, 49_152)).astype(np.float32)
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(weights)), -weights))
    size = int(np.sum(np.cumsum(weights[order]) < top_p * weights.sum())) + 1
    ids, shares = Sampler(PLAIN.replace(temperature=temperature, top_p=top_p), len(logits)).candidates(logits)
    assert sorted(ids) == sorted(order[:size])
    np.testing.assert_allclose(shares / shares.sum(), weights[ids] / weights[ids].sum(), rtol=1e-4)


def test_penalties_follow_their_papers() -> None:
    logits = floats([2, -2, 0, -np.inf])
    np.testing.assert_array_equal(repetition_penalised(logits, 2), [1, -4, 0, -np.inf])
    counts = np.array([0, 1, 3, 2])
    np.testing.assert_array_equal(count_penalised(logits, counts, 0.5, 1), [2, -3.5, -2.5, -np.inf])


# The whole chain against transformers


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        PLAIN.replace(temperature=0.7),
        PLAIN.replace(temperature=0.02),  # most weights are too small for a float32
        PLAIN.replace(temperature=0.02, top_k=50, top_p=0.99),
        PLAIN.replace(top_k=12),
        PLAIN.replace(top_k=500),
        PLAIN.replace(top_p=0.8),
        PLAIN.replace(min_p=0.1),
        PLAIN.replace(repetition_penalty=1.3),
        PLAIN.replace(repetition_penalty=1.2, temperature=1.4, top_k=50, top_p=0.9, min_p=0.02),
    ],
)
def test_distribution_is_that_of_transformers(params: SamplingParams) -> None:
    logits, context = random_logits(), [3, 3, 17, 60, 199]
    chain = hf.LogitsProcessorList([hf.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))])
    chain.append(hf.TemperatureLogitsWarper(float(params.temperature)))
    chain += [hf.TopKLogitsWarper(params.top_k)] if params.top_k else []
    chain += [hf.TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    chain += [hf.MinPLogitsWarper(params.min_p)] if params.min_p else []
    expected = torch.softmax(chain(torch.tensor([context]), torch.tensor(logits)[None].clone()), -1)[0].numpy()

    sampler = Sampler(params, len(logits))
    sampler.observe_prompt(context)
    ids, weights = sampler.candidates(logits)
    found = np.zeros(len(logits))
    found[ids] = weights / weights.sum()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("params", [PLAIN, PLAIN.replace(top_p=0.7), PLAIN.replace(temperature=2, top_k=9, min_p=0.05)])
def test_draws_have_the_frequencies_of_the_distribution(params: SamplingParams) -> None:
    logits, count = random_logits(30, seed=3) / 3, 6000
    sampler = Sampler(params, len(logits))
    ids, weights = sampler.candidates(logits)
    observed = np.bincount([sampler.sample(logits) for _ in range(count)], minlength=len(logits))
    assert observed[ids].sum() == count
    assert chisquare(observed[ids], weights / weights.sum(dtype=np.float64) * count).pvalue > 1e-3


# Random state


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler(PLAIN.replace(seed=seed), 200)
        runs.append([sampler.sample(random_logits(seed=step)) for step in range(50)])
    assert runs[0] == runs[1] != runs[2]


def test_without_a_seed_each_sampler_draws_otherwise() -> None:
    flat = np.zeros(1000, np.float32)
    first, second = (Sampler(PLAIN.replace(seed=None), len(flat)) for _ in range(2))
    assert [first.sample(flat) for _ in range(8)] != [second.sample(flat) for _ in range(8)]


class Number:
    """A generator of one number."""

    def __init__(self, number: float) -> None:
        self._number = number

    def random(self) -> float:
        return self._number


@pytest.mark.parametrize("fraction", [0.0, 0.25, np.nextafter(0.25, 0), np.nextafter(1, 0)])
def test_no_number_of_the_generator_draws_a_weight_of_zero(fraction: float) -> None:
    assert drawn(floats([0, 1, 0, 3, 0, 0]), Number(fraction)) == (1 if fraction < 0.25 else 3)


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 5000), st.floats(2.0**-120, 2.0**120, width=32)), min_size=1, max_size=40),
    st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, np.nextafter(1, 0)]),
)
def test_of_many_weights_that_one_is_drawn_where_the_running_sum_passes_the_number(
    spread: int, given: list[tuple[int, float]], number: float
) -> None:
    weights = np.zeros(5001 * spread // 8 + 1, np.float32)
    for place, weight in given:
        weights[place % len(weights)] = weight
    sums, at = np.cumsum(weights, dtype=np.float64), drawn(weights, Number(number))
    assert weights[at] > 0
    slack = 1e-9 * sums[-1]
    assert sums[at] - weights[at] - slack <= number * sums[-1] <= sums[at] + slack


# Greedy and limits


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(temperature=1e-30), PLAIN.replace(top_k=1)]
)
def test_greedy_takes_the_largest_and_of_equals_the_lowest_id(params: SamplingParams) -> None:
    assert Sampler(params, 4).sample(floats([1, 5, 5, -np.inf])) == 1


def test_a_top_p_of_zero_leaves_one_token() -> None:
    assert Sampler(PLAIN.replace(top_p=0), 3).sample(np.zeros(3, np.float32)) == 0


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[4, 40]] = 0
    sampler = Sampler(PLAIN.replace(top_k=10), 50)
    assert {sampler.sample(logits) for _ in range(50)} == {4, 40}


@pytest.mark.parametrize("bad", [[0, np.nan], [0, np.inf], [-np.inf, -np.inf], [np.inf, -np.inf]])
@pytest.mark.parametrize(
    "params",
    [PLAIN, SamplingParams(temperature=0), PLAIN.replace(repetition_penalty=2, top_k=1, logit_bias={1: -np.inf})],
)
def test_logits_without_a_largest_finite_one_are_an_error(bad: list[float], params: SamplingParams) -> None:
    with pytest.raises(ModelError, match="no token can be drawn"):
        Sampler(params, 2).sample(floats(bad))
    with pytest.raises(ModelError):
        token_logprobs(floats(bad), 0, 1)


@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=50),
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 100),
        top_k=st.integers(0, 60),
        top_p=st.floats(0, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.9, 100),
        frequency_penalty=st.floats(-2, 2),
        seed=st.just(0),
    ),
)
def test_any_finite_logits_and_settings_give_a_token_or_a_model_error(
    logits: list[float], params: SamplingParams
) -> None:
    sampler = Sampler(params, len(logits))
    sampler.observe_prompt([0])
    try:
        assert all(0 <= sampler.sample(floats(logits)) < len(logits) for _ in range(3))
    except ModelError:
        assert np.abs(logits).max() > 1e37  # a penalty made them overflow


# State: bias, penalties and what they count


def test_logit_bias_is_added_and_minus_infinity_bans() -> None:
    logits = floats([0, 1, 2])
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 5}), 3).sample(logits) == 0
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: -np.inf}), 3).sample(logits) == 1
    np.testing.assert_array_equal(logits, [0, 1, 2])


def test_a_bias_on_a_token_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(UsageError, match="token 3"):
        Sampler(SamplingParams(logit_bias={3: 1}), 3)


def test_repetition_penalty_counts_prompt_and_answer_once_each() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2), 4)
    sampler.observe_prompt([0, 0, 0])
    logits = floats([8, 5, 4.5, 1])
    assert [sampler.sample(logits) for _ in range(3)] == [1, 2, 0]  # 8 / 2 = 4, then 5 / 2, then 4.5 / 2


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    logits = floats([3, 2, 0])
    frequent = Sampler(SamplingParams(temperature=0, frequency_penalty=0.6), 3)
    present = Sampler(SamplingParams(temperature=0, presence_penalty=1.2), 3)
    for sampler in (frequent, present):
        sampler.observe_prompt([0, 0, 0, 0])
    assert [frequent.sample(logits) for _ in range(5)] == [0, 0, 1, 0, 1]  # ids 0 and 1: 3, 2; 2.4; 1.8; 1.4; 1.2
    assert [present.sample(logits) for _ in range(3)] == [0, 1, 0]


# Logprobs


@given(st.integers(1, 300), st.integers(0, 30))
def test_logprobs_are_of_the_plain_softmax_with_ties_by_lower_id(size: int, top: int) -> None:
    logits = np.round(random_logits(size, seed=size))
    expected = log_softmax(logits.astype(np.float64))
    result = token_logprobs(logits, size - 1, top)
    assert result.id == size - 1
    assert result.logprob == pytest.approx(expected[-1], abs=1e-12)
    assert [token for token, _ in result.top] == by_rank(logits)[:top]
    np.testing.assert_allclose([value for _, value in result.top], expected[by_rank(logits)[:top]], atol=1e-12)


def test_peak_is_the_largest_logit() -> None:
    assert peak(floats([-np.inf, -3, -2])) == -2


class Only:
    """A constraint that allows some tokens, and notes what came."""

    complete = False

    def __init__(self, size: int, *tokens: int) -> None:
        self.mask = np.zeros(size, np.bool_)
        self.mask[list(tokens)] = True
        self.came: list[int] = []

    def allowed(self) -> NDArray[np.bool_]:
        return self.mask

    def forced(self) -> list[int]:
        return []

    def add(self, token: int) -> None:
        self.came.append(token)


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        PLAIN.replace(temperature=0),
        PLAIN.replace(temperature=100, repetition_penalty=2, frequency_penalty=2),
        PLAIN.replace(top_k=150, top_p=0.999, min_p=0.001),
        PLAIN.replace(logit_bias={5: 1e6, 7: -50.0}),
    ],
)
def test_a_constraint_goes_before_everything_and_is_told_what_came(params: SamplingParams) -> None:
    logits, only = random_logits(), Only(200, 3, 7, 60)
    kept = logits.copy()
    sampler = Sampler(params, 200, only)
    drawn_tokens = [sampler.sample(logits) for _ in range(50)]
    assert set(drawn_tokens) <= {3, 7, 60} and only.came == drawn_tokens
    np.testing.assert_array_equal(logits, kept)
    if params.temperature == 0:
        assert drawn_tokens == [max((3, 7, 60), key=lambda i: logits[i])] * 50


def test_a_constraint_that_leaves_the_model_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match="every token is banned"):
        Sampler(PLAIN, 200, Only(200)).sample(random_logits())
