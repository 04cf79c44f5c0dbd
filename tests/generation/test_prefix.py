"""prefix.py: a long beginning is computed once, and then comes from disk."""

from dataclasses import replace
from pathlib import Path

import pytest
from hash_engine import HashEngine, hash_model

from llamachat.core.generate import never
from llamachat.core.sampling import SamplingParams
from llamachat.errors import DoesNotFitError
from llamachat.generation import snapshot
from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.generation.prefix import hold, joined

LONG = "All that is known of the matter. " * 8


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")


said = list[str]()


def completer(raw: bool = False) -> Completer:
    model = hash_model()
    settings = AnswerSettings(SamplingParams(temperature=0), model.stop_ids, max_tokens=8)
    return Completer(model, settings, None if raw else "Be brief.", raw, False)


def answer(run: Completer, prefix: str | None) -> tuple[str, list[int]]:
    """The text, and the tokens of each forward."""
    engine = run.model.engine
    assert isinstance(engine, HashEngine)
    if prefix is not None:
        hold(run.model, run.cache, prefix, run.ids, never, said.append)
    text = "".join(run.start(run.dialog(joined(LONG, "So what?"))))
    return text, engine.forwarded


@pytest.mark.parametrize("raw", [False, True])
def test_the_second_run_computes_only_the_prompt_and_answers_the_same(raw: bool) -> None:
    plain, _ = answer(completer(raw), None)
    first, computed = answer(completer(raw), LONG)
    second, again = answer(completer(raw), LONG)
    assert plain == first == second
    assert computed[0] > len(LONG) and again[0] < 50


def test_another_prefix_or_a_damaged_file_is_computed_anew() -> None:
    answer(completer(), LONG)
    hold(completer().model, (other := completer()).cache, "Another. " * 9, other.ids, never, said.append)
    assert len(snapshot.store().entries()) == 2
    for path in snapshot.store().entries():
        path.write_bytes(path.read_bytes()[:-1])
    said.clear()
    assert answer(completer(), LONG)[1][0] > len(LONG)
    assert len(said) == 1 and "is damaged; they are computed anew" in said[0]


def test_a_prefix_that_the_context_cannot_hold_is_an_error_and_an_interrupt_is_none() -> None:
    run = completer()
    with pytest.raises(DoesNotFitError):
        hold(run.model, run.cache, LONG * 9, run.ids, never, said.append)
    stopped = replace(completer(), interrupted=lambda: True)
    hold(stopped.model, stopped.cache, LONG, stopped.ids, stopped.interrupted, said.append)
    assert snapshot.store().entries() == []
