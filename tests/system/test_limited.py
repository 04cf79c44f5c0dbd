"""limited.py: what a process that is not trusted can take, see and do to who asks it; grammars.py: what a grammar can."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hash_engine import byte_tokenizer, hash_model

from llamachat.core.sampling import SamplingParams
from llamachat.errors import ModelError, UsageError
from llamachat.generation import grammars
from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.generation.constraints import Constrainer, from_lark, from_regex, from_schema
from llamachat.system.limited import EndedError, Limited

HANDLER = """
import os, resource
class Handler:
    def __init__(self, ask):
        self.ask, self.seen = ask, []
    def __call__(self, request):
        self.seen.append(request)
        return eval(request)
"""


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    (tmp_path / "handler.py").write_text(HANDLER)
    return tmp_path / "handler.py"


def test_a_handler_answers_keeps_its_state_and_asks_back(handler: Path) -> None:
    limited = Limited(handler, 1 << 29, 10)
    limited.post("1")
    assert limited.ask("self.seen") == ["1", "self.seen"]
    assert limited.ask("self.ask(20) + self.ask(3)", lambda number: 2 * number) == 46
    assert limited.ask("1 / 0") == {"error": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize(
    ("bomb", "timed_out"),
    [
        ("sum(range(10 ** 12))", True),  # one call of C: nothing of Python's gets a turn meanwhile
        ("os.kill(os.getpid(), 11)", False),
        ("os.write(1, b'no newline') and os._exit(0)", False),
    ],
)
def test_a_process_that_takes_too_long_or_dies_is_an_error(handler: Path, bomb: str, timed_out: bool) -> None:
    limited = Limited(handler, 1 << 29, 0.3)
    with pytest.raises(EndedError) as error:
        limited.ask(bomb)
    assert error.value.timed_out is timed_out and not limited.alive
    with pytest.raises(EndedError):
        limited.ask("1")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_process_has_its_memory_and_writes_no_file(handler: Path, tmp_path: Path) -> None:
    limited = Limited(handler, 1 << 29, 10)
    assert limited.ask("len(bytes(10 ** 9))") == {"error": "MemoryError: "}
    assert (
        "File too large"
        in limited.ask(f"os.write(os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY), b'x')")["error"]
    )
    assert limited.ask("resource.getrlimit(resource.RLIMIT_CORE)") == [0, 0]


def test_a_process_sees_none_of_our_secrets(handler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PIP_INDEX_URL", "ANYTHING"):
        monkeypatch.setenv(name, "secret")
    seen = Limited(handler, 1 << 29, 10).ask("dict(os.environ)")
    assert "secret" not in seen.values() and seen["PATH"] == os.environ["PATH"]


def test_an_answer_that_was_not_waited_for_is_never_taken_for_another(handler: Path) -> None:
    def interrupted(question: Any) -> Any:
        raise KeyboardInterrupt

    limited = Limited(handler, 1 << 29, 10)
    with pytest.raises(KeyboardInterrupt):
        limited.ask("self.ask(1)", interrupted)
    assert not limited.alive


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of grammars that gives up soon; before and after it another one."""
    monkeypatch.setattr(grammars, "TIMEOUT", 1.0)
    grammars.process.cache_clear()
    yield
    grammars.process.cache_clear()


def chain(length: int, link: Any) -> dict[str, Any]:
    """A schema of so many references, each to the next."""
    defs = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": {"type": "integer"}}}


def lark_chain(length: int, name: str) -> str:
    return (
        f"start: {name}0\n" + "".join(f"{name}{i}: {name}{i + 1}\n" for i in range(length)) + f'{name}{length}: "x"\n'
    )


BOMBS: dict[str, Any] = {
    "references": lambda: from_schema(chain(5000, lambda ref: ref)),
    "references in objects": lambda: from_schema(chain(5000, lambda ref: {"properties": {"x": ref}})),
    "multiple": lambda: from_schema({"type": "integer", "multipleOf": 10_000_019}),
    "multiples": lambda: from_schema({"allOf": [{"type": "integer", "multipleOf": p} for p in (97, 101, 103, 107)]}),
    "enum": lambda: from_schema({"enum": [f"value {i * 7919}" for i in range(10**5)]}),
    "properties": lambda: from_schema({"type": "object", "properties": {f"p{i}": True for i in range(10**5)}}),
    "rules": lambda: from_lark(lark_chain(20_000, "a")),
    "terminals": lambda: from_lark(lark_chain(20_000, "A")),
    "doubled terminals": lambda: from_lark("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(60)) + 'A60: "x"'),
    "schema in a grammar": lambda: from_lark('start: %json {"type": "integer", "multipleOf": 10000019}'),
    "infinity": lambda: from_schema('{"const": 1e400}'),
    "no number": lambda: from_schema('{"enum": [NaN]}'),
    "long": lambda: from_regex("a" * (grammars.MAX_SOURCE + 1)),
}  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_grammar_that_explodes_as_it_is_compiled_is_refused_in_one_line(bomb: Any) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UsageError) as error:
        Constrainer(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, False).of(bomb())
    assert "\n" not in str(error.value) and str(error.value).endswith("; nothing was generated")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("regex", ["((a{1000}){1000}){1000}", "(((a|b)*c?){900}){900}d"])
def test_a_grammar_that_explodes_as_it_is_followed_ends_the_answer_in_one_line(regex: str) -> None:
    tokenizer = byte_tokenizer()
    constraint = Constrainer(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, False).of(from_regex(regex))()
    with pytest.raises(ModelError, match=r"the grammar is too much: [^\n]*; the answer ends here"):
        for _ in range(10_000):
            constraint.allowed()
            constraint.add(ord("a"))


@pytest.mark.usefixtures("impatient")
def test_many_slow_tokens_are_too_much_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(grammars, "PATIENCE", 0)
    constraint = Constrainer(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, False).of(from_regex("a*"))()
    monkeypatch.setattr(grammars, "TIMEOUT", 0)
    constraint.allowed()
    with pytest.raises(ModelError, match="takes more than 0 s for each token"):
        constraint.allowed()


@pytest.mark.usefixtures("impatient")
def test_the_bomb_of_one_answer_changes_no_other() -> None:
    tokenizer = byte_tokenizer()
    made = Constrainer(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, False)
    other, untouched = (made.of(from_regex("a+b"))() for _ in range(2))
    for constraint in (other, untouched):
        constraint.add(ord("a"))
    before = untouched.allowed()
    for bomb in ("references", "multiple"):
        with pytest.raises(UsageError):
            made.of(BOMBS[bomb]())
        assert (other.allowed() == before).all()
    other.add(ord("b"))
    assert other.complete


@pytest.mark.usefixtures("impatient")
def test_a_death_that_others_may_have_caused_is_tried_again_alone() -> None:
    tokenizer = byte_tokenizer()
    made = Constrainer(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, False)
    one, two = (made.of(from_regex("a+b"))() for _ in range(2))
    one.add(ord("a"))
    mask = two.allowed()
    process = grammars.process()
    first = process.start()
    first.process.kill()
    first.process.wait()
    assert (two.allowed() == mask).all() and process.start() is not first
    one.add(ord("b"))
    assert one.complete


@pytest.mark.usefixtures("impatient")
def test_a_bad_line_of_a_batch_costs_that_line_only() -> None:
    class Lines:
        def __init__(self, *requests: Any) -> None:
            self._lines = iter([json.dumps(request) + "\n" for request in requests])

        def take(self, wait: bool) -> str:
            return next(self._lines, "")

    model, out = hash_model(), io.StringIO()
    run = Completer(
        model, AnswerSettings(SamplingParams(temperature=0), model.stop_ids, max_tokens=9), None, True, False
    )
    good = {"prompt": "a", "schema": {"enum": ["yes", "no"]}}
    bombs = [
        {"prompt": "b", "schema": schema}
        for schema in (chain(5000, lambda ref: ref), {"type": "integer", "multipleOf": 10_000_019})
    ]
    assert not run.batch(Lines(good, *bombs, good, *bombs, good), out, 3)
    results = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [("error" in result, result.get("text")) for result in results[::3]] == [(False, results[0]["text"])] * 3
    assert all("error" in results[i] for i in (1, 2, 4, 5))
