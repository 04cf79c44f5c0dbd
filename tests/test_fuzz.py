"""A short run of fuzz_parsers.py: every parser, on damaged input, ends in success or one line."""

import warnings
from pathlib import Path

import pytest
from fuzz_parsers import Outcome, execute, fuzz
from parsers import Parser, parsers

from llamachat.errors import FormatError


@pytest.mark.filterwarnings("ignore")
def test_damaged_input_is_read_or_refused(tmp_path: Path, sentencepiece_model: Path) -> None:
    outcomes, reports = fuzz(parsers(tmp_path, sentencepiece_model), executions=4000, seed=0)
    assert not reports, reports[0]
    assert sum(each.counts.total() for each in outcomes.values()) >= 4000
    for name, each in outcomes.items():
        assert each.counts.total() >= 5, name


def outcome_of(read: object) -> tuple[Outcome, str | None]:
    outcome = Outcome()
    return outcome, execute(Parser("p", 1, lambda chance: chance.random(), read), 7, 3, outcome)  # type: ignore[arg-type]


def test_it_finds_a_wrong_exception_an_error_of_two_lines_and_repeats_them() -> None:
    def wrong(data: float) -> None:
        raise KeyError(data)

    def two_lines(data: float) -> None:
        error = FormatError("one")
        error.args = ("one\ntwo",)
        raise error

    outcome, report = outcome_of(wrong)
    assert report is not None and "KeyError" in report and "--seed 7 --at 3" in report and outcome.counts["failed"] == 1
    assert outcome_of(wrong)[1] == report
    assert "several lines" in (outcome_of(two_lines)[1] or "")


def test_it_ends_what_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(data: float) -> None:
        while True:
            with warnings.catch_warnings():
                pass

    monkeypatch.setattr("fuzz_parsers.SECONDS", 0.2)
    assert "more than 0.2 s" in (outcome_of(endless)[1] or "")
