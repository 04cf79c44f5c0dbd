"""Texts that are read, not answered: labels, tags, spans and vectors are made of what a model computes of them.

Each becomes a sequence with the control tokens that its tokenizer puts around it. Sequences of unequal length run several at
once, each in slots of its own, so no padding is ever seen; results come in the order of the texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.generate import PREFILL_CHUNK, Interrupted, never
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import DoesNotFitError, LlamachatError, ModelError, UsageError
from llamachat.generation.batch import Slots
from llamachat.generation.jsonl import Source, numbered, parse_line, utf8
from llamachat.generation.prompting import write_json
from llamachat.generation.prompts import read_prompt, read_text
from llamachat.models.load import LoadedModel
from llamachat.system.metadata import is_record

Rows = NDArray[np.float32]
PARALLEL = 8  # texts of full length that a batch's engine is asked to hold at once
AT_ONCE = 64  # sequences that run together
PIECE = 1 << 16  # characters
MOST = 1 << 22  # characters of a text that is read in windows
OVERLAP = 128  # tokens that two windows share


class Text(NamedTuple):
    """What one result is about: a text, or two that are read together."""

    text: str
    pair: str | None = None


class Encoded(NamedTuple):
    """A sequence, and where in it the ids of each text lie."""

    ids: list[int]
    places: tuple[range, ...]


@dataclass(frozen=True)
class Job:
    """The sequences that one result is made of, and what else is to be known then."""

    item: Any
    sequences: Sequence[list[int]]


class Outcome(NamedTuple):
    """A job, and for each of its sequences a row [n] of the last token, or rows [T, n] of all."""

    job: Job
    rows: list[Rows]


# Texts -> sequences ---------------------------------------------------------------------------------------------------


def framed(tokenizer: Tokenizer, *texts: list[int]) -> Encoded:
    """One text's ids, or two's, as the tokenizer frames them."""
    first, *others = tokenizer.frames[len(texts)]
    ids, places = [*first], list[range]()
    for text, behind in zip(texts, others, strict=True):
        places.append(range(len(ids), len(ids) + len(text)))
        ids += [*text, *behind]
    return Encoded(ids, tuple(places))


def encode(model: LoadedModel, text: Text, cut: bool = False) -> Encoded:
    """The sequence of a text; `cut`: the last text's end goes where it is too long. Raises DoesNotFitError, and UsageError for
    one without a token."""
    texts = [text.text, *([] if text.pair is None else [text.pair])]
    if not cut:
        model.require_room(texts)
    parts = [model.tokenizer.encode(_beginning(model, each) if cut else each) for each in texts]
    over = len(framed(model.tokenizer, *parts).ids) - model.context
    if over > 0 and not (cut and over < len(parts[-1])):
        raise DoesNotFitError(
            f"the text makes {model.context + over} tokens, the context holds {model.context}",
            "nothing was computed",
            "shorten it, cut it with --truncate or raise --ctx-size",
        )
    encoded = framed(model.tokenizer, *parts[:-1], parts[-1][: len(parts[-1]) - max(over, 0)])
    if not encoded.ids:
        raise empty()
    return encoded


def empty() -> UsageError:
    """The error for a text in which there is nothing to be read."""
    return UsageError("the text is empty", "nothing was computed", "leave it out")


def _beginning(model: LoadedModel, text: str) -> str:
    """As much of a text as makes all the tokens that fit: millions are never encoded to be cut off."""
    end = PIECE
    while end < len(text) and len(model.tokenizer.encode(text[:end])) <= model.context:
        end *= 2
    return text[:end]


def read_long(model: LoadedModel, text: str) -> list[int]:
    """Ids of a text that is read in windows. Raises DoesNotFitError for one that would take very long, and very much memory."""
    if len(text) > MOST:
        cause = f"the text has {len(text):,} characters, and at most {MOST:,} are read"
        raise DoesNotFitError(cause, "nothing was computed", "give it in parts")
    return model.tokenizer.encode(text)


def windows(length: int, size: int, overlap: int) -> list[range]:
    """Runs of `size` of so many tokens, each of which shares `overlap` with the one before; one of them may be shorter."""
    last = max(length - overlap, 1)
    return [range(start, min(start + size, length)) for start in range(0, last, size - overlap)]


def read_one(argument: str | None, file: Path | None) -> str:
    """The text of one call: the argument, else the file's, else what stdin has. Raises UsageError, for an empty one too."""
    if argument and file is None:
        return utf8(argument, "the text")
    if argument is None and file is not None:
        if text := read_text(file):
            return text
        raise UsageError(f"{file} is empty", "nothing was read", "give a text")
    return read_prompt(argument, file, "text")


# Lines of a file ------------------------------------------------------------------------------------------------------


def parse(line: str, number: int, pairs: bool = False) -> Text:
    """{"text": ...}, and with `pairs` maybe a "pair" beside it. Raises UsageError."""
    value = parse_line(line, number)
    if is_record(value, {"text": str}) or (pairs and is_record(value, {"text": str, "pair": str})):
        return Text(**value)
    expected = '{"text": "..."}' + (' or {"text": "...", "pair": "..."}' if pairs else "")
    raise UsageError(f"line {number} is no text to read", "it was skipped", f"write {expected}")


def jobs_of(
    lines: Source, runner: "Runner", job: Callable[[str, int], Job], skip: int = 0
) -> Iterator[Job | LlamachatError | None]:
    """A job for each line, given its number; an error in the place of a bad one, None for one that has not come yet.

    skip: lines that were done before.
    """
    for number, line in numbered(lines, lambda: runner.idle):
        if line is None:
            yield None
        elif skip:
            skip -= 1
        elif isinstance(line, LlamachatError):
            yield line
        else:
            yield made(job, line, number)


def made(job: Callable[..., Job], *given: Any) -> Job | LlamachatError:
    """The job, or what is wrong with it."""
    try:
        return job(*given)
    except LlamachatError as error:
        return error


def write_all(
    outcomes: Iterator[Outcome | LlamachatError], result: Callable[[Outcome], dict[str, Any]], out: TextIO
) -> bool:
    """One JSON object a line for each outcome, {"error": ...} for a bad one. True when none was bad."""
    good = True
    for outcome in outcomes:
        bad = isinstance(outcome, LlamachatError)
        good = good and not bad
        write_json({"error": str(outcome)} if isinstance(outcome, LlamachatError) else result(outcome), out)
    return good


# Sequences -> rows ----------------------------------------------------------------------------------------------------


class Runner:
    """Runs jobs, the sequences of several at once; each gives what it would give alone.

    `rows`: of each sequence's last token, or of all its tokens. `outputs` go to the engine: see Engine.forward. Raises
    UsageError for a model that answers a source.
    """

    def __init__(
        self,
        model: LoadedModel,
        rows: Literal["last", "all"],
        interrupted: Callable[[], bool] = never,
        **outputs: Any,
    ) -> None:
        model.require_continuing("what reads texts")
        self._engine, self._rows, self._interrupted, self._outputs = model.engine, rows, interrupted, outputs
        self._waiting: list[Job | LlamachatError] = []

    @property
    def idle(self) -> bool:
        """Nothing can be done before the next job: who gives the jobs may wait for it."""
        return not self._waiting

    def run(self, jobs: Iterator[Job | LlamachatError | None]) -> Iterator[Outcome | LlamachatError]:
        """An outcome for each job, in order. None from `jobs` means that there is none yet; an error among them is passed on
        in its place. When interrupted, no more outcomes come."""
        try:
            for job in jobs:
                if job is not None:
                    self._waiting.append(job)
                if job is None or self._enough():
                    yield from self._done()
            yield from self._done()
        except Interrupted:
            return

    def _enough(self) -> bool:
        lengths = [len(ids) for job in self._waiting if isinstance(job, Job) for ids in job.sequences]
        return len(self._waiting) >= AT_ONCE or len(lengths) >= AT_ONCE or sum(lengths) >= self._engine.slots

    def _done(self) -> Iterator[Outcome | LlamachatError]:
        """Those that wait."""
        jobs, self._waiting = self._waiting, []
        rows = self._run([ids for job in jobs if isinstance(job, Job) for ids in job.sequences])
        for job in jobs:
            yield _outcome(job, [next(rows) for _ in job.sequences]) if isinstance(job, Job) else job

    def _run(self, sequences: list[list[int]]) -> Iterator[Rows]:
        if self._rows == "all":
            yield from (in_pieces(self._engine, ids, check=self._stop_if_asked, **self._outputs) for ids in sequences)
            return
        left = sequences
        while left:
            slots = Slots(self._engine.slots)
            runs = takewhile(lambda run: run is not None, (slots.take(len(ids)) for ids in left[:AT_ONCE]))
            caches = [Cache(len(ids), run.start) for ids, run in zip(left, filter(None, runs), strict=False)]
            yield from self._together(left[: len(caches)], caches)
            left = left[len(caches) :]

    def _together(self, sequences: list[list[int]], caches: list[Cache]) -> list[Rows]:
        """The last row of each: in every step a piece of as many as there is room for."""
        found = dict[int, Rows]()
        while len(found) < len(sequences):
            self._stop_if_asked()
            room, pieces = PREFILL_CHUNK, dict[int, list[int]]()
            for number, (ids, cache) in enumerate(zip(sequences, caches, strict=True)):
                if piece := ids[len(cache) : len(cache) + room]:
                    pieces[number], room = piece, room - len(piece)
            steps = [caches[number].plan(len(piece)) for number, piece in pieces.items()]
            rows = self._engine.forward_many([*pieces.values()], steps, **self._outputs)
            for (number, piece), row in zip(pieces.items(), rows, strict=True):
                caches[number].commit(piece)
                if not caches[number].free:
                    found[number] = row
        return [found[number] for number in range(len(sequences))]

    def _stop_if_asked(self) -> None:
        if self._interrupted():
            raise Interrupted


def in_pieces(
    engine: Engine, ids: list[int], size: int = PREFILL_CHUNK, check: Callable[[], object] = never, **outputs: Any
) -> Rows:
    """Of a sequence that nothing precedes, what the engine gives for every token: [..., T, n], run `size` tokens at a time.
    `check` is called before each piece; `outputs`: see Engine.forward."""
    cache, rows = Cache(len(ids)), list[Rows]()
    for start in range(0, len(ids), size):
        check()
        piece = ids[start : start + size]
        rows.append(engine.forward(piece, cache.plan(len(piece)), "all", **outputs))
        cache.commit(piece)
    return np.concatenate(rows, -2)


def _outcome(job: Job, rows: list[Rows]) -> Outcome | LlamachatError:
    if all(np.isfinite(part).all() for part in rows):
        return Outcome(job, rows)
    return ModelError("the model gives values that are no numbers", "nothing can be said of the text", "fetch it again")
