"""Labels of tokens, grouped into spans of the text.

Where labels have prefixes (BIO: Begin, Inside; BILOU and BIOES: Last or End, Unit or Single as well) these say where a span
begins and ends, else a span is a run of one label. "O" is outside of all.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from llamachat.core.spec import HeadKind
from llamachat.formats.labels import Labels
from llamachat.generation.classifier import softmax
from llamachat.generation.offsets import Offsets, offsets
from llamachat.generation.texts import OVERLAP, Job, Outcome, Rows, Text, empty, framed, read_long, windows
from llamachat.models.load import LoadedModel

HEADS: tuple[HeadKind, ...] = ("token_labels",)
OUTSIDE = "O"
PREFIXED = re.compile(r"([BILUES])-(.+)", re.DOTALL)
GOES_ON, ENDS = "ILE", "LEUS"  # prefixes that a span may go on with, and that it ends with


class Span(TypedDict):
    """Characters start..end of the text, as Python slices it. `approximate` is only there, and true, where the tokenizer read
    something else than is written, and this part of the text alone is not read as these tokens."""

    start: int
    end: int
    label: str
    probability: float
    text: str
    approximate: NotRequired[bool]


class Tag(NamedTuple):
    """A token's, or a word's, likeliest label; which tokens these are."""

    label: str
    probability: float
    first: int
    last: int


@dataclass(frozen=True)
class Tagger:
    """A loaded model that labels tokens. `words`: all tokens of a word have the label of its first, as those models want it that
    were trained on first tokens alone."""

    model: LoadedModel
    words: bool = False

    def job(self, text: Text) -> Job:
        """A text longer than the context is read in windows."""
        ids = read_long(self.model, text.text)
        if not ids:
            raise empty()
        frame = len(framed(self.model.tokenizer, []).ids)
        size = self.model.context - frame
        parts = windows(len(ids), size, min(OVERLAP, size // 2))
        sequences = [framed(self.model.tokenizer, ids[part.start : part.stop]) for part in parts]
        return Job((text.text, ids, parts, sequences), [each.ids for each in sequences])

    def spans(self, done: Outcome) -> list[Span]:
        """What the rows of a job mean."""
        text, ids, parts, sequences = done.job.item
        rows, begun = list[Rows](), 0
        for part, sequence, found in zip(parts, sequences, done.rows, strict=True):
            place = sequence.places[0]
            rows.append(
                found[place.start : place.stop][begun - part.start :]
            )  # a token's first window has most before it
            begun = part.stop
        labels = self.model.checkpoint.labels
        assert labels is not None, "it was loaded as a tagger"
        return spans(labels, np.concatenate(rows), offsets(self.model.tokenizer, text, ids), self.words)

    def result(self, done: Outcome) -> dict[str, Any]:
        """The JSON object of a text."""
        usage = {"prompt_tokens": sum(map(len, done.job.sequences))}
        return {"model": self.model.name, "spans": self.spans(done), "usage": usage}


def spans(labels: Labels, rows: Rows, places: Offsets, words: bool = False) -> list[Span]:
    """The spans of a text with logits [T, n]; the probability of one is the mean of its tokens'."""
    shares, prefixes = softmax(rows), prefixed(labels.names)
    best = shares.argmax(-1).tolist()
    tags = [Tag(labels.names[label], float(shares[at, label]), at, at) for at, label in enumerate(best)]
    groups = grouped(_words(tags, places) if words else tags, prefixes)
    return [_span(group, places, prefixes) for group in groups]


def prefixed(names: Sequence[str]) -> bool:
    """Whether these are labels of BIO or one of its kin."""
    inside = [name for name in names if name != OUTSIDE]
    return bool(inside) and all(PREFIXED.fullmatch(name) for name in inside)


def grouped(tags: Sequence[Tag], prefixes: bool) -> Iterator[list[Tag]]:
    """The tags of each span."""
    group, before = list[Tag](), ("", "")
    for tag in tags:
        prefix, kind = parted(tag.label, prefixes)
        goes_on = kind == before[1] and prefix in GOES_ON and before[0] not in ENDS
        if group and not (goes_on if prefixes else tag.label == group[-1].label):
            yield group
            group = []
        if tag.label != OUTSIDE:
            group.append(tag)
        before = (prefix, kind)
    if group:
        yield group


def parted(label: str, prefixes: bool) -> tuple[str, str]:
    """A label's prefix, if it has one, and what is behind it."""
    match = PREFIXED.fullmatch(label) if prefixes else None
    return (match[1], match[2]) if match else (" ", label)


def _words(tags: Sequence[Tag], places: Offsets) -> list[Tag]:
    """One tag a word, that of its first token. Words are what white space parts."""
    found = list[Tag]()
    for tag in tags:
        start = places.ranges[tag.first][0]
        inside = start > 0 and not any(map(str.isspace, places.text[start - 1 : start + 1]))
        if found and inside:
            found[-1] = found[-1]._replace(last=tag.last)
        else:
            found.append(tag)
    return found


def _span(group: Sequence[Tag], places: Offsets, prefixes: bool) -> Span:
    first, last = group[0].first, group[-1].last
    start, end = places.between(first, last)
    span: Span = {
        "start": start,
        "end": end,
        "label": parted(group[0].label, prefixes)[1],
        "probability": sum(tag.probability for tag in group) / len(group),
        "text": places.text[start:end],
    }
    if not places.exact(first, last):
        span["approximate"] = True
    return span
