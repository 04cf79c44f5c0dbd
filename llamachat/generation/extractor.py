"""Answers that stand in a text: the span whose first and last token have the highest logits together (SQuAD, arXiv 1606.05250).

A long text is read in windows, each behind the question. What a window gives for the first place of all, where no answer is, is
its score of having none (SQuAD 2.0, arXiv 1806.03822); that of the text is the lowest of its windows'. An answer must beat it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from llamachat.checks import require_number
from llamachat.core.spec import HeadKind
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.generation.classifier import softmax
from llamachat.generation.jsonl import parse_line
from llamachat.generation.offsets import Offsets, offsets
from llamachat.generation.texts import OVERLAP, Job, Outcome, Rows, empty, framed, read_long, windows
from llamachat.models.load import LoadedModel
from llamachat.system.metadata import is_record

HEADS: tuple[HeadKind, ...] = ("span",)
WINDOW = 512  # tokens of question and text that are seen together, unless asked otherwise
LONGEST = 30  # tokens of an answer, unless asked otherwise
LIMIT = 1e9  # of a difference of scores
BEST = 20  # answers that share out the probability


class Question(NamedTuple):
    """What is asked, of which text."""

    question: str
    text: str


class Answer(TypedDict):
    """Characters start..end of the text. score: the two logits' sum; probability: among the best answers, that of none included;
    `approximate` as of tagger.Span."""

    start: int
    end: int
    text: str
    score: float
    probability: float
    approximate: NotRequired[bool]


class Extraction(TypedDict):
    """`answer`: None where the score of having none is higher. `answers`: the best first, whatever that score."""

    answer: Answer | None
    answers: list[Answer]
    null_score: float


class Candidate(NamedTuple):
    """An answer as tokens of the text."""

    score: float
    first: int
    last: int


@dataclass(frozen=True)
class Extractor:
    """A loaded model that finds answers. `window`: tokens of question and text that are seen together; `overlap`: tokens of the
    text that two windows share; `longest`: tokens of an answer; `threshold`: by how much the score of having no answer must be
    higher than the best answer's to be believed, None: it never is; `top`: answers given."""

    model: LoadedModel
    window: int = WINDOW
    overlap: int = OVERLAP
    longest: int = LONGEST
    threshold: float | None = 0.0
    top: int = 1

    def __post_init__(self) -> None:
        if self.threshold is not None:
            require_number("null_threshold", self.threshold, -LIMIT, LIMIT, UsageError)

    def job(self, asked: Question) -> Job:
        """Raises DoesNotFitError for a question that leaves no room for the text."""
        self.model.require_room([asked.question])
        question, ids = self.model.tokenizer.encode(asked.question), read_long(self.model, asked.text)
        if not ids:
            raise empty()
        window = min(self.window, self.model.context)
        room = window - len(framed(self.model.tokenizer, question, []).ids)
        if room <= self.overlap:
            raise DoesNotFitError(
                f"the question leaves {max(room, 0)} tokens of a window of {window}",
                f"windows that overlap by {self.overlap} tokens never end",
                f"shorten it, raise {'--window' if window < self.model.context else '--ctx-size'} or lower --overlap",
            )
        parts = windows(len(ids), room, self.overlap)
        sequences = [framed(self.model.tokenizer, question, ids[part.start : part.stop]) for part in parts]
        return Job((asked, ids, parts, sequences), [each.ids for each in sequences])

    def extraction(self, done: Outcome) -> Extraction:
        """What the rows [T, 2] of each window mean."""
        asked, ids, parts, sequences = done.job.item
        best, null = dict[tuple[int, int], Candidate](), np.inf
        for part, sequence, rows in zip(parts, sequences, done.rows, strict=True):
            null = min(null, float(rows[0].sum()))
            place = sequence.places[1]
            for score, first, last in candidates(rows[place.start : place.stop], self.longest, max(self.top, BEST)):
                found = Candidate(score, part.start + first, part.start + last)
                if (known := best.get(found[1:])) is None or known.score < score:
                    best[found[1:]] = found
        ordered = sorted(best.values(), key=lambda each: (-each.score, each.first, each.last))[: max(self.top, BEST)]
        answers = list(_answers(ordered, null, offsets(self.model.tokenizer, asked.text, ids)))
        none = not answers or (self.threshold is not None and null - ordered[0].score > self.threshold)
        return {"answer": None if none else answers[0], "answers": answers[: self.top], "null_score": null}

    def result(self, done: Outcome) -> dict[str, Any]:
        """The JSON object of a question."""
        usage = {"prompt_tokens": sum(map(len, done.job.sequences)), "windows": len(done.rows)}
        return {
            "model": self.model.name,
            "question": done.job.item[0].question,
            **self.extraction(done),
            "usage": usage,
        }


def candidates(rows: Rows, longest: int, most: int) -> list[tuple[float, int, int]]:
    """The best `most` answers in a window's part of the text, logits [T, 2] of beginning and ending there."""
    length = len(rows)
    scores = np.full((length, min(longest, length)), -np.inf)
    for extra in range(scores.shape[1]):
        scores[: length - extra, extra] = rows[: length - extra, 0].astype(np.float64) + rows[extra:, 1]
    order = np.argsort(-scores, axis=None, kind="stable")[:most]
    found = ((float(scores.flat[at]), *divmod(int(at), scores.shape[1])) for at in order)
    return [(score, first, first + extra) for score, first, extra in found if score > -np.inf]


def _answers(ordered: list[Candidate], null: float, places: Offsets) -> Iterator[Answer]:
    shares = softmax(np.array([*(each.score for each in ordered), null]))
    for (score, first, last), share in zip(ordered, shares.tolist(), strict=False):
        start, end = places.between(first, last)
        answer: Answer = {
            "start": start,
            "end": end,
            "text": places.text[start:end],
            "score": score,
            "probability": share,
        }
        if not places.exact(first, last):
            answer["approximate"] = True
        yield answer


def parse_question(line: str, number: int) -> Question:
    """{"question": ..., "text": ...}. Raises UsageError."""
    value = parse_line(line, number)
    if is_record(value, {"question": str, "text": str}):
        return Question(**value)
    expected = 'write {"question": "...", "text": "..."}'
    raise UsageError(f"line {number} is no question about a text", "it was skipped", expected)
