"""Texts that are read: the sequences that transformers' tokenizers make of them too, batches of unequal length, what is cut."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model
from headed import fast_tokenizer
from sentencepiece import SentencePieceProcessor

from llamachat.errors import DoesNotFitError, LlamachatError, UsageError
from llamachat.generation.jsonl import Lines
from llamachat.generation.texts import Job, Outcome, Runner, Text, encode, framed, jobs_of, parse, write_all
from llamachat.models.load import LoadedModel, load
from llamachat.tokenizers.open import from_gguf, open_folder

PAIRS = [("the quick", None), ("", None), ("the quick brown", "fox jumps"), ("a", " "), (" two  spaces ", " ü")]
TEMPLATES = {
    "nothing": ("$A", "$A $B"),
    "eos": ("$A </s>", "$A </s> $B </s>"),
    "bos": ("<s> $A", "<s> $A <s> $B"),
    "two before": ("[GMASK] <s> $A", "[GMASK] <s> $A $B </s>"),
}


def ids_of(tokenizer: Any, text: str, pair: str | None) -> list[int]:
    texts = [text] if pair is None else [text, pair]
    return framed(tokenizer, *map(tokenizer.encode, texts)).ids


@pytest.mark.parametrize("template", TEMPLATES)
def test_sequences_are_those_of_a_template(template: str, tmp_path: Path) -> None:
    theirs = fast_tokenizer(tmp_path, *TEMPLATES[template])
    ours = open_folder(tmp_path)
    for text, pair in PAIRS:
        assert ids_of(ours, text, pair) == theirs(text, pair)["input_ids"]


@pytest.mark.parametrize("adds", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_files_beside_a_tokenizer_say_what_a_sentencepiece_model_cannot(
    adds: dict[str, bool], sentencepiece_model: Path, tmp_path: Path
) -> None:
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": False, **adds}))
    begins, ends = adds.get("add_bos_token", True), adds.get("add_eos_token", False)
    library = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"), add_bos=begins, add_eos=ends)
    ours = open_folder(tmp_path)
    for text, pair in PAIRS:
        right = library.encode(text) + ([] if pair is None else library.encode(pair))
        assert ids_of(ours, text, pair) == right


def test_bos_is_left_out_or_put_in_where_the_files_beside_say_so(tmp_path: Path) -> None:
    fast_tokenizer(tmp_path, *TEMPLATES["bos"])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert open_folder(tmp_path).frames == {1: ((), ()), 2: ((), (), ())}
    fast_tokenizer(tmp_path, *TEMPLATES["eos"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert open_folder(tmp_path).frames == {1: ((0,), (1,)), 2: ((0,), (1, 0), (1,))}


def test_a_gguf_vocabulary_says_whether_eos_ends_a_text(smollm2_metadata: dict[str, Any]) -> None:
    assert from_gguf(smollm2_metadata).frames[1] == ((), ())
    tokenizer = from_gguf(smollm2_metadata | {"tokenizer.ggml.add_eos_token": True})
    (eos,) = tokenizer.eos_ids
    assert tokenizer.frames == {1: ((), (eos,)), 2: ((), (eos,), (eos,))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_hf(tiny_model(), tmp_path_factory.mktemp("model"))
    save_tokenizer(folder)
    return load(str(folder), ctx_size=700, parallel=3, engine="torch", dtype="float32")


SIZES = [3, 600, 1, 40, 255, 256, 257, 700, 2]


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(id) for id in rng.integers(3, 320, size)] for size in SIZES]


@pytest.mark.parametrize("rows", ["last", "all"])
def test_each_of_many_gives_what_it_gives_alone(rows: Literal["last", "all"], model: LoadedModel) -> None:
    jobs = [Job(number, [ids]) for number, ids in enumerate(sequences())]
    jobs.append(Job("both", sequences()[:2]))
    alone = [next(Runner(model, rows).run(iter([job]))) for job in jobs]
    together = list(Runner(model, rows).run(iter(jobs)))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Outcome) and isinstance(other, Outcome) and one.job is other.job
        for mine, right in zip(other.rows, one.rows, strict=True):
            np.testing.assert_allclose(mine, right, atol=1e-4)
    assert isinstance(together[1], Outcome)
    assert together[1].rows[0].shape == ((320,) if rows == "last" else (600, 320))


def test_results_come_as_soon_as_no_more_is_there_and_errors_in_their_place(model: LoadedModel) -> None:
    runner, seen = Runner(model, "last"), list[Any]()

    def jobs() -> Iterator[Job | LlamachatError | None]:
        assert runner.idle
        yield Job("a", [[5]])
        assert not runner.idle
        yield UsageError("bad")
        yield None
        assert runner.idle and len(seen) == 2
        yield Job("b", [[5]])

    for outcome in runner.run(jobs()):
        seen.append(outcome)
    assert [each.job.item if isinstance(each, Outcome) else str(each) for each in seen] == ["a", "bad", "b"]


def test_an_interrupt_ends_them(model: LoadedModel) -> None:
    steps = iter([False, False, True])
    runner = Runner(model, "all", lambda: next(steps))
    assert len(list(runner.run(iter([Job(n, [[5] * 10]) for n in range(5)])))) < 5


def test_what_is_too_long_is_refused_or_cut_at_its_end(model: LoadedModel) -> None:
    long, frame = "quick " * 2000, [model.tokenizer.bos_id]
    with pytest.raises(DoesNotFitError, match="tokens, the context holds 700"):
        encode(model, Text(long))
    whole = model.tokenizer.encode(long)
    assert encode(model, Text(long), cut=True).ids == frame + whole[:699]
    pair = encode(model, Text("the fox", long), cut=True)
    assert len(pair.ids) == 700
    assert [pair.ids[at] for at in pair.places[0]] == model.tokenizer.encode("the fox")
    with pytest.raises(DoesNotFitError):
        encode(model, Text(long, "the fox"), cut=True)
    assert encode(model, Text("x" * 100_000_000), cut=True).ids[1:3] == model.tokenizer.encode("x" * 9)[:2]


def test_lines_become_results_in_order(model: LoadedModel, tmp_path: Path) -> None:
    lines = ['{"text": "the fox"}', "", '{"text": "a", "pair": "b"}', "{", '{"text": 1}', '{"text": "a b"}']
    (tmp_path / "in").write_text("\n".join(lines))
    out, runner = io.StringIO(), Runner(model, "last")

    def job(line: str, number: int) -> Job:
        return Job(number, [encode(model, parse(line, number)).ids])

    with (tmp_path / "in").open("rb") as file:
        outcomes = runner.run(jobs_of(Lines(file), runner, job))
        good = write_all(outcomes, lambda done: {"line": done.job.item, "top": int(done.rows[0].argmax())}, out)
    results = [json.loads(line) for line in out.getvalue().splitlines()]
    assert not good
    assert [result.get("line") for result in results] == [1, None, None, None, 6]
    assert results[1]["error"] == 'line 3 is no text to read; it was skipped; write {"text": "..."}'
    assert parse('{"text": "a", "pair": "b"}', 1, pairs=True) == Text("a", "b")
