"""Labels, tags and answers beside transformers' own pipelines on the same tiny models, and beside SQuAD's rules written out."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from headed import TEXT, fast_tokenizer, headed
from hypothesis import given
from hypothesis import strategies as st

from llamachat.errors import DoesNotFitError, LlamachatError, UsageError
from llamachat.formats.labels import Labels
from llamachat.generation.classifier import Classifier, judged, ranked, sigmoid, softmax
from llamachat.generation.extractor import Extractor, Question, candidates
from llamachat.generation.tagger import PREFIXED, Tag, Tagger, grouped, parted, prefixed
from llamachat.generation.texts import Outcome, Runner, Text
from llamachat.models.load import LoadedModel, load

EVERY = ("sequence_labels", "token_labels", "span")
TEXTS = [TEXT, "London", "Charles and Ada", "a" * 90, "über 東京", TEXT + " " + TEXT]
PAD = 2  # an id that no text has
Made = Callable[..., tuple[LoadedModel, Any, Any]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Ours, transformers' model and its tokenizer."""

    def make(head: str, case: str = "llama", engine: str = "torch", **changes: Any) -> tuple[LoadedModel, Any, Any]:
        settings = {"vocab_size": 323, "max_position_embeddings": 512, "pad_token_id": PAD} | changes
        model = headed(case, head, **settings)
        model.save_pretrained(tmp_path)
        tokenizer = fast_tokenizer(tmp_path, model_max_length=512)
        options: dict[str, Any] = {"dtype": "float32"} if engine == "torch" else {"kv_bits": 32}
        return load(str(tmp_path), engine=engine, heads=EVERY, ctx_size=512, **options), model, tokenizer

    return make


def outcomes(model: LoadedModel, rows: Any, jobs: list[Any]) -> list[Outcome]:
    found = list(Runner(model, rows).run(iter(jobs)))
    assert all(isinstance(each, Outcome) for each in found)
    return found  # type: ignore[return-value]


# Labels of texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize(
    ("labels", "problem"),
    [(3, None), (3, "single_label_classification"), (3, "multi_label_classification"), (2, "regression"), (1, None)],
)
def test_labels_are_those_of_the_pipeline(labels: int, problem: str | None, engine: str, made: Made) -> None:
    named = {number: f"label {number}" for number in range(labels)}
    model, theirs, tokenizer = made("sequence_labels", engine=engine, id2label=named, problem_type=problem)
    pipeline = transformers.TextClassificationPipeline(model=theirs, tokenizer=tokenizer, device="cpu")
    classifier = Classifier(model)
    pairs = [Text(text) for text in TEXTS] + [Text(TEXT, "London"), Text("London", TEXT)]
    for text, done in zip(pairs, outcomes(model, "last", [classifier.job(each) for each in pairs]), strict=True):
        given = text.text if text.pair is None else {"text": text.text, "text_pair": text.pair}
        right = pipeline([given] if isinstance(given, str) else given, top_k=None)
        right = {each["label"]: each["score"] for each in (right[0] if isinstance(right[0], list) else right)}
        found = classifier.classification(done)
        shares = {each["label"]: each.get("probability", each.get("value")) for each in found["labels"]}
        assert shares == pytest.approx(right, abs=1e-4)
        numbers = [each.get("probability", 0) for each in found["labels"]]
        assert numbers == sorted(numbers, reverse=True)
        if problem == "regression":
            assert [*shares] == [*named.values()] and found["named"] == []
        elif labels == 1 or problem == "multi_label_classification":
            assert {*found["named"]} == {name for name, share in right.items() if share >= 0.5}
        else:
            assert found["named"] == [max(right, key=lambda name: right[name])]


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("left", [False, True])
def test_a_padded_batch_of_transformers_gives_the_same_logits(left: bool, case: str, made: Made) -> None:
    """Unequal lengths; nothing is padded here."""
    model, theirs, _ = made("sequence_labels", case, num_labels=3)
    jobs = [Classifier(model).job(Text(text)) for text in TEXTS]
    ours = [done.rows[0] for done in outcomes(model, "last", jobs)]
    longest = max(len(job.sequences[0]) for job in jobs)
    ids, mask = np.full((len(jobs), longest), PAD), np.zeros((len(jobs), longest), int)
    for number, job in enumerate(jobs):
        size = len(job.sequences[0])
        place = slice(longest - size, None) if left else slice(size)
        ids[number, place], mask[number, place] = job.sequences[0], 1
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        out = theirs(torch.from_numpy(ids), torch.from_numpy(mask), position_ids=torch.from_numpy(positions))
    np.testing.assert_allclose(ours, out.logits.numpy(), atol=1e-4)


def test_the_last_token_counts_even_where_a_text_ends_in_the_padding_id(made: Made, tmp_path: Path) -> None:
    """transformers looks for the last token that is not padding, and takes the one before such an end."""
    pad = int(fast_tokenizer(tmp_path)("d")["input_ids"][-1])
    model, theirs, _ = made("sequence_labels", num_labels=3, pad_token_id=pad)
    (done,) = outcomes(model, "last", [Classifier(model).job(Text("Ada met d 7d"))])
    ids = torch.tensor(done.job.sequences)
    assert ids[0, -1] == pad != ids[0, -2]
    with torch.no_grad():
        rows = theirs.score(theirs.model(ids).last_hidden_state)[0].numpy()
        np.testing.assert_allclose(done.rows[0], rows[-1], atol=1e-4)
        np.testing.assert_allclose(theirs(ids).logits[0].numpy(), rows[-2], atol=1e-4)


def test_threshold_top_and_ties() -> None:
    labels = Labels(("a", "b", "c"), "multi_label_classification")
    row = np.array([0.0, 3.0, 0.0], np.float32)
    assert judged(labels, row, threshold=0.5)["named"] == ["b", "a", "c"]
    assert judged(labels, row, threshold=0.6)["named"] == ["b"]
    assert [each["label"] for each in judged(labels, row, top=2)["labels"]] == ["b", "a"]
    scores = [{"label": "x", "logit": x} for x in (0.1, 2.0, 0.1)]
    assert ranked(scores) == [1, 0, 2]  # type: ignore[arg-type]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9))
def test_probabilities_are_finite_and_add_up(values: list[float]) -> None:
    row = np.array(values, np.float32)
    assert softmax(row).sum() == pytest.approx(1) and np.isfinite(sigmoid(row)).all()
    np.testing.assert_allclose(sigmoid(row) + sigmoid(-row), 1)


def test_damaged_weights_are_an_error_in_the_place_of_the_text(made: Made) -> None:
    model, _, _ = made("sequence_labels")
    model.engine.forward_many = lambda ids, steps: np.full((len(ids), 2), np.nan, np.float32)  # type: ignore[method-assign]
    (bad,) = Runner(model, "last").run(iter([Classifier(model).job(Text("x"))]))
    assert isinstance(bad, LlamachatError) and "no numbers" in str(bad)


# Labels of tokens -----------------------------------------------------------------------------------------------------

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("names", [BIO, ["NOUN", "VERB"]])
def test_spans_are_those_of_the_pipeline(names: list[str], words: bool, engine: str, made: Made) -> None:
    model, theirs, tokenizer = made("token_labels", engine=engine, id2label=dict(enumerate(names)))
    pipeline = transformers.TokenClassificationPipeline(
        model=theirs, tokenizer=tokenizer, aggregation_strategy="first" if words else "simple", device="cpu"
    )
    tagger = Tagger(model, words)
    for text, done in zip(TEXTS, outcomes(model, "all", [tagger.job(Text(text)) for text in TEXTS]), strict=True):
        right, found = pipeline(text), tagger.spans(done)
        assert [span["label"] for span in found] == [each["entity_group"] for each in right]
        for span, each in zip(found, right, strict=True):
            assert span["probability"] == pytest.approx(each["score"], abs=1e-4)
            assert (
                span["text"]
                == text[span["start"] : span["end"]]
                == (text[each["start"] : each["end"]].strip() or span["text"])
            )
            assert "approximate" not in span
        assert len(found) > 0


def test_a_text_longer_than_the_context_is_read_in_windows(tmp_path: Path, made: Made) -> None:
    names = ["O", "PER", "LOC"]
    _, theirs, tokenizer = made("token_labels", id2label=dict(enumerate(names)))
    short = load(str(tmp_path), engine="torch", dtype="float32", heads=EVERY, ctx_size=31)
    text = " ".join([TEXT] * 3)
    tagger, ids = Tagger(short), tokenizer(text)["input_ids"][1:]
    (done,) = outcomes(short, "all", [tagger.job(Text(text))])
    assert len(done.rows) > 2 and all(len(each) <= 31 for each in done.job.sequences)
    rows, size, overlap = [np.empty((0, 3))], 30, 15  # each token as the first window that has it sees it
    for start in range(0, len(ids) - overlap, size - overlap):
        part = [0, *ids[start : start + size]]
        with torch.no_grad():
            found = theirs(torch.tensor([part])).logits[0].numpy()[1:]
        rows.append(found[sum(map(len, rows)) - start :])
    best = np.concatenate(rows).argmax(-1)
    assert len(best) == len(ids)
    runs = [names[label] for label, _ in itertools.groupby(best)]
    assert [span["label"] for span in tagger.spans(done)] == [name for name in runs if name != "O"]


LABELS = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BILUES" for kind in ("X", "Y-Z"))])


@given(st.lists(LABELS, max_size=30))
def test_groups_hold_every_labelled_token_once_in_order_and_one_kind(names: list[str]) -> None:
    tags = [Tag(name, 1.0, at, at) for at, name in enumerate(names)]
    groups = list(grouped(tags, prefixes=True))
    assert [tag.first for group in groups for tag in group] == [at for at, name in enumerate(names) if name != "O"]
    for group in groups:
        assert len({parted(tag.label, True)[1] for tag in group}) == 1
        assert [tag.first for tag in group] == [*range(group[0].first, group[0].first + len(group))]
        assert all(tag.label[0] in "ILE" for tag in group[1:]) and all(tag.label[0] in "BI" for tag in group[:-1])


@given(st.lists(st.tuples(st.sampled_from("XY"), st.integers(1, 4), st.integers(0, 1)), max_size=8), st.booleans())
def test_spans_that_were_written_are_read_again(spans: list[tuple[str, int, int]], unit: bool) -> None:
    names, right = list[str](), list[tuple[str, int, int]]()
    for kind, size, gap in spans:
        names += ["O"] * gap
        right.append((kind, len(names), len(names) + size - 1))
        if unit:  # BILOU
            names += [f"U-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"L-{kind}"]
        else:  # BIO
            names += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
    tags = [Tag(name, 1.0, at, at) for at, name in enumerate(names)]
    found = [(parted(group[0].label, True)[1], group[0].first, group[-1].last) for group in grouped(tags, True)]
    assert found == right


@given(st.lists(st.sampled_from(["O", "A", "B-", "I-x y"]), max_size=20))
def test_without_prefixes_a_span_is_a_run(names: list[str]) -> None:
    found = list(grouped([Tag(name, 1.0, at, at) for at, name in enumerate(names)], prefixes=False))
    runs = [(key, len(list(run))) for key, run in itertools.groupby(names)]
    assert [(group[0].label, len(group)) for group in found] == [run for run in runs if run[0] != "O"]


def test_which_labels_have_prefixes() -> None:
    assert prefixed(BIO) and prefixed(["I-A\nB", "S-B"]) and PREFIXED.fullmatch("B-x")
    assert not prefixed(["O"]) and not prefixed(["B-PER", "X"]) and not prefixed(["NOUN", "O"])


# Answers --------------------------------------------------------------------------------------------------------------


def by_the_rules(theirs: Any, tokenizer: Any, asked: Question, window: int, stride: int, longest: int) -> Any:
    """Every window, every pair of places, as the SQuAD task defines it: best score and its characters, score of no answer."""
    coding = tokenizer(
        asked.question, asked.text, max_length=window, stride=stride, truncation="only_second",
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best, null = (-np.inf, 0, 0), np.inf
    for number, ids in enumerate(coding["input_ids"]):
        with torch.no_grad():
            out = theirs(torch.tensor([ids]))
        begins, ends = out.start_logits[0].numpy(), out.end_logits[0].numpy()
        null = min(null, float(begins[0] + ends[0]))
        inside = [at for at, of in enumerate(coding.sequence_ids(number)) if of == 1]
        places = coding["offset_mapping"][number]
        for first in inside:
            for last in range(first, min(first + longest, inside[-1] + 1)):
                if (score := float(begins[first] + ends[last])) > best[0] + 1e-6:
                    best = (score, places[first][0], places[last][1])
    return best, null, len(coding["input_ids"])


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize(("window", "overlap", "longest"), [(512, 128, 30), (40, 10, 5), (30, 0, 100), (33, 12, 1)])
def test_answers_are_those_of_the_rules(window: int, overlap: int, longest: int, engine: str, made: Made) -> None:
    model, theirs, tokenizer = made("span", engine=engine)
    for text in (TEXT, TEXT + " " + TEXT[::-1], "x"):
        asked = Question("Who met Ada?", text)
        (score, start, end), null, count = by_the_rules(theirs, tokenizer, asked, window, overlap, longest)
        extractor = Extractor(model, window, overlap, longest, threshold=None, top=3)
        (done,) = outcomes(model, "all", [extractor.job(asked)])
        found = extractor.extraction(done)
        answer = found["answer"]
        assert answer is not None and len(done.rows) == count
        assert answer["score"] == pytest.approx(score, abs=1e-4)
        assert answer["text"] == text[answer["start"] : answer["end"]] == text[start:end].strip()
        assert found["null_score"] == pytest.approx(null, abs=1e-4)
        scores = [each["score"] for each in found["answers"]]
        assert scores == sorted(scores, reverse=True) and len(scores) <= 3


def test_no_answer_where_the_first_place_has_the_higher_score(made: Made) -> None:
    model, theirs, tokenizer = made("span")
    asked = Question("Who met Ada?", TEXT)
    (score, *_), null, _ = by_the_rules(theirs, tokenizer, asked, 512, 128, 30)
    for threshold, none in ((null - score - 0.01, True), (null - score + 0.01, False), (None, False)):
        extractor = Extractor(model, threshold=threshold)
        (done,) = outcomes(model, "all", [extractor.job(asked)])
        found = extractor.extraction(done)
        assert (found["answer"] is None) == none and len(found["answers"]) == 1


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_best_places_are_the_best_of_all(length: int, longest: int, most: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(length, 2)).astype(np.float32)
    pairs = [(first, last) for first in range(length) for last in range(first, min(first + longest, length))]
    right = sorted((float(rows[first, 0]) + float(rows[last, 1]) for first, last in pairs), reverse=True)[:most]
    found = candidates(rows, longest, most)
    assert [score for score, _, _ in found] == pytest.approx(right)
    assert all((first, last) in pairs for _, first, last in found)


def test_what_cannot_be_read_is_refused(made: Made) -> None:
    model, _, _ = made("span")
    with pytest.raises(DoesNotFitError, match="a window of 30"):
        Extractor(model, window=30).job(Question("Who?", TEXT))
    with pytest.raises(UsageError, match="the text is empty"):
        Extractor(model).job(Question("Who?", ""))
    with pytest.raises(DoesNotFitError, match="at most 4,194,304 are read"):
        Extractor(model).job(Question("Who?", "x" * 5_000_000))
