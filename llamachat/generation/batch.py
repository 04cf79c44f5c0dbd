"""Many answers at once from one engine: continuous batching (Orca, Yu et al. 2022).

Every text has slots of its own. A step runs a piece of each text: the token drawn last of those being answered, a part of
the prompt of those that are not. The weights are read once for all of them, which is most of the time that a token takes.
When a text ends, its slots go to the next request.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from llamachat.core.cache import Cache
from llamachat.core.generate import Interrupted, Logits, Token, never, prefill
from llamachat.core.sampler import Sampler, token_logprobs
from llamachat.core.thoughts import Thoughts
from llamachat.engines.encoding import encoding, started
from llamachat.errors import LlamachatError, LostError
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.guesses import Guesses
from llamachat.models.load import LoadedModel

if TYPE_CHECKING:
    from llamachat.events import FinishReason

PIECE = 512  # tokens a step, of all texts together
ALIGN = 256  # texts begin at multiples of it: engines sum by blocks of slots, so where a text lies changes no bit
WORTH = 16  # tokens that two prompts must begin with in common for keys and values to be copied
WINDOW = 1024  # results that may wait for an earlier one


@dataclass(frozen=True)
class Request:
    """What is to be answered, and how."""

    prompt: list[int]
    settings: AnswerSettings
    continues_text: bool = False
    thoughts: Thoughts | None = None  # as of Answer

    def answer(
        self,
        model: LoadedModel,
        cache: Cache,
        interrupted: Callable[[], bool] = never,
        guesses: Guesses | None = None,
    ) -> Answer:
        """The answer to come; iterate it for its text."""
        return Answer(
            model.engine,
            model.tokenizer,
            cache,
            self.prompt,
            self.settings,
            self.continues_text,
            interrupted,
            thoughts=self.thoughts,
            guesses=guesses or Guesses(),
        )


@dataclass(frozen=True)
class Answered:
    """An answer that has ended, and its text."""

    answer: Answer
    text: str


Outcome = Answered | LlamachatError


class Slots:
    """Which of an engine's slots are free; runs of them are given out first fit."""

    def __init__(self, total: int) -> None:
        self._free = [range(total)]

    def take(self, count: int) -> range | None:
        """At least so many slots, from a multiple of ALIGN on; None while there are not as many in a row."""
        for at, run in enumerate(self._free):
            if len(run) >= count:
                end = min(run.start + -(-count // ALIGN) * ALIGN, run.stop)
                self._free[at] = range(end, run.stop)
                return range(run.start, end)
        return None

    def give(self, run: range) -> None:
        """These are free again."""
        runs = sorted([run, *filter(None, self._free)], key=lambda each: each.start)
        self._free = runs[:1]
        for each in runs[1:]:
            if self._free[-1].stop == each.start:
                self._free[-1] = range(self._free[-1].start, each.stop)
            else:
                self._free.append(each)


@dataclass
class _Text:
    """A request on its way."""

    number: int
    answer: Answer
    sampler: Sampler
    waiting: list[int]  # ids that are still to be run
    slots: range = range(0)
    began: float = 0.0  # seconds; of the prompt, then of the answer
    pieces: list[str] = field(default_factory=list)


class Batch:
    """Answers requests, up to `parallel` at once; each as it would be answered alone."""

    def __init__(self, model: LoadedModel, parallel: int, interrupted: Callable[[], bool] = never) -> None:
        self._model, self._engine, self._parallel = model, model.engine, parallel
        self._reads = encoding(model.engine)
        self._interrupted = interrupted
        self._slots = Slots(model.engine.slots)
        self._texts: list[_Text] = []
        self._held: _Text | None = None  # for lack of slots
        self._outcomes: dict[int, Outcome] = {}
        self._taken = self._given = 0  # requests so far, outcomes so far
        self._before: list[int] = []  # the prompt before
        self._kept: tuple[list[int], Mapping[str, Any]] = [], {}  # what prompts begin with, and its keys and values

    @property
    def idle(self) -> bool:
        """Nothing can be done before the next request: who gives the requests may wait for it."""
        return not self._texts and self._held is None and self._given not in self._outcomes

    def run(self, requests: Iterator[Request | LlamachatError | None]) -> Iterator[Outcome]:
        """An outcome for each request, in order, as soon as it and those before have ended.

        None from `requests` means that there is none yet; an error among them is passed on in its place. When
        interrupted, the answers in progress end as they are, and no more are begun.
        """
        more = True
        while more or self._texts or self._held:
            more = self._admit(requests) and more
            if self._interrupted():
                self._stop()
                more = False
            elif self._texts:
                self._step()
            while self._given in self._outcomes:
                yield self._outcomes.pop(self._given)
                self._given += 1

    def _admit(self, requests: Iterator[Request | LlamachatError | None]) -> bool:
        """Begin as many as there is room for; False when there are no more."""
        while len(self._texts) < self._parallel and self._taken - self._given < WINDOW and not self._interrupted():
            if self._held is None:
                try:
                    request = next(requests)
                except StopIteration:
                    return False
                if request is None:
                    break
                self._held = self._prepared(request)
            if self._held and not self._place(self._held):
                break
            self._held = None
        return True

    def _prepared(self, request: Request | LlamachatError) -> _Text | None:
        """None for what cannot be answered, whose outcome is then known."""
        number, self._taken = self._taken, self._taken + 1
        try:
            if isinstance(request, LlamachatError):
                raise request
            answer = request.answer(self._model, Cache(self._size(request)), self._interrupted)
            answer.check()
            return _Text(number, answer, answer.sampler(), answer.started)
        except LlamachatError as error:
            self._outcomes[number] = error
            return None

    def _size(self, request: Request) -> int:
        """Slots that this may come to need. Raises DoesNotFitError."""
        context, most = self._model.context, request.settings.max_tokens
        length = len(started(self._engine, request.prompt))
        Cache(context).require(length)
        return context if most is None else min(context, length + most)

    def _place(self, text: _Text) -> bool:
        """Give a text its slots, and what it has in common with others; False if there are no slots yet, or no memory for a
        source while others are held."""
        cache = text.answer.cache
        if self._reads and self._texts and len(text.answer.prompt) > self._reads.source_room():
            return False
        slots = self._slots.take(cache.size)
        if slots is None:
            return False
        text.slots, cache.first, text.began = slots, slots.start, time.perf_counter()
        self._texts.append(text)
        if text.answer.settings.score_prompt or self._reads:
            self._prefill(text)
        else:
            text.answer.reused = self._share(cache, text.waiting)
            text.waiting = text.waiting[text.answer.reused :]
        return True

    def _prefill(self, text: _Text) -> None:
        """A prompt of which every token's logits are wanted, or which is a source, is run alone."""
        try:
            logits = text.answer.prefill()
        except Interrupted:
            self._end(text)
        except LostError:  # which ends all of them
            raise
        except LlamachatError as error:
            self._end(text, error)
        else:
            self._draw(text, logits)

    def _share(self, cache: Cache, prompt: list[int]) -> int:
        """Copy the keys and values of what the prompt begins with, where they are kept; returns of how many tokens.

        Kept are those of what it has in common with the prompt before, if that is more.
        """
        (ids, saved), common = self._kept, min(_common(prompt, self._before), len(prompt) - 1)
        self._before = prompt
        if ids and len(ids) < len(prompt) and ids == prompt[: len(ids)]:
            index = np.arange(len(ids))
            self._engine.load_kv(cache.slots(index), index, saved)
            cache.commit(ids)
        if common - len(cache) >= WORTH:
            try:
                prefill(self._engine, cache, prompt[len(cache) : common], self._interrupted)
            except Interrupted:  # which `run` sees next
                return len(cache)
            self._kept = prompt[:common], self._engine.save_kv(cache.slots(np.arange(common)))
        return len(cache)

    def _step(self) -> None:
        """Run a piece of each text, and draw a token for those whose prompt is through."""
        texts, pieces, room = list[_Text](), list[list[int]](), PIECE
        for text in sorted(self._texts, key=lambda text: len(text.waiting) > 1):
            if piece := text.waiting[:room]:
                texts.append(text)
                pieces.append(piece)
                room -= len(piece)
        plans = [text.answer.cache.plan(len(piece)) for text, piece in zip(texts, pieces, strict=True)]
        logits = self._engine.forward_many(pieces, plans)
        for text, piece, row in zip(texts, pieces, logits, strict=True):
            text.answer.cache.commit(piece)
            text.waiting = text.waiting[len(piece) :]
            if not text.waiting:
                self._draw(text, row)

    def _draw(self, text: _Text, logits: Logits) -> None:
        answer, settings = text.answer, text.answer.settings
        if settings.max_tokens == 0:
            self._end(text, "length")
            return
        try:
            token = text.sampler.sample(logits)
            top = settings.top_logprobs
            text.pieces.append(answer.take(Token(token, None if top is None else token_logprobs(logits, token, top))))
        except LlamachatError as error:
            self._end(text, error)
            return
        now = time.perf_counter()
        if not answer.prefill_s:
            answer.prefill_s, text.began = now - text.began, now
        answer.decode_s = now - text.began
        if answer.ended:
            self._end(text)
        elif len(answer.ids) == settings.max_tokens or not answer.cache.free:
            self._end(text, "length")
        else:
            text.waiting = [token]

    def _stop(self) -> None:
        for text in list(self._texts):
            self._end(text, "interrupt")
        self._held = None

    def _end(self, text: _Text, how: "FinishReason | LlamachatError | None" = None) -> None:
        """`how`: unless it has ended by itself."""
        if isinstance(how, str):
            text.pieces.append(text.answer.finish(how))
        done = Answered(text.answer, "".join(text.pieces))
        self._outcomes[text.number] = how if isinstance(how, LlamachatError) else done
        self._texts.remove(text)
        if self._reads:
            self._reads.release(text.slots.start)
        self._slots.give(text.slots)


def _common(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
