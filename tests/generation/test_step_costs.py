"""step_costs.py: what is measured counts, what lies between is taken from its neighbours."""

import pytest

from llamachat.generation.step_costs import EACH, FIRST, KEPT, LASTING, StepCosts


def test_nothing_is_known_before_a_step_of_one_token() -> None:
    costs = StepCosts(8)
    assert not costs.known and costs.of(1) == 1
    costs.step(1, 0.02)
    assert costs.known


def test_costs_between_measured_ones_lie_on_a_line_and_behind_them_go_on_along_one() -> None:
    costs = StepCosts(9)
    costs.step(1, 0.01)
    assert costs.step(5, 0.018) == pytest.approx(1.8)
    assert [costs.of(tokens) for tokens in range(1, 10)] == pytest.approx([1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4, 2.6])
    costs.step(3, 0.011)
    assert [costs.of(tokens) for tokens in (1, 2, 3, 4, 5, 9)] == pytest.approx([1, 1.05, 1.1, 1.1 + EACH, 1.8, 2.6])


def test_long_steps_are_foreseen_only_from_half_as_long_ones() -> None:
    costs = StepCosts(17)
    costs.step(1, 0.01)
    assert costs.foreseen == FIRST
    costs.step(4, 0.02)
    assert costs.foreseen == 8


def test_a_dear_long_step_does_not_keep_shorter_ones_from_being_tried() -> None:
    costs = StepCosts(9)
    costs.step(1, 0.01)
    for _ in range(60):
        costs.step(5, 0.09)
    assert [costs.of(tokens) for tokens in (2, 3, 4, 5)] == pytest.approx([1 + EACH, 1 + 2 * EACH, 1 + 3 * EACH, 9])


def test_what_was_measured_long_ago_counts_no_more() -> None:
    costs = StepCosts(4)
    costs.step(1, 0.01)
    costs.step(2, 0.02)
    for _ in range(2 * LASTING):
        costs.step(1, 0.01)
    assert costs.of(2) == pytest.approx(1 + EACH)


def test_one_slow_moment_is_forgotten_and_does_not_count_as_a_single_token() -> None:
    costs = StepCosts(4)
    for seconds in (0.01, 0.01, 5.0, 0.01):
        costs.step(1, seconds)
    assert costs.step(2, 0.012) == pytest.approx(1.2)
    costs.step(2, 100.0)
    assert costs.of(2) < 4
    for _ in range(KEPT):
        costs.step(2, 0.012)
    assert costs.of(2) == pytest.approx(1.2)


def test_a_step_longer_than_any_draft_costs_what_it_took() -> None:
    costs = StepCosts(4)
    costs.step(1, 0.01)
    assert costs.step(40, 0.05) == pytest.approx(5)
    assert costs.of(4) == pytest.approx(1.75)
