"""One answer in progress: prompt ids in, pieces of text out, and afterwards everything there is to know about it."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from llamachat.core.cache import Cache
from llamachat.core.detokenize import Detokenizer, StopMatcher
from llamachat.core.engine import Engine
from llamachat.core.generate import (
    PREFILL_CHUNK,
    Interrupted,
    Logits,
    Room,
    Token,
    generate,
    never,
    no_room,
    prefill,
    score,
)
from llamachat.core.sampler import Constraint, Sampler, TokenLogprobs
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import TAGGED, Thoughts
from llamachat.core.tokenizer import Tokenizer
from llamachat.engines.encoding import encoding, started
from llamachat.errors import ModelError, UsageError
from llamachat.generation.guesses import Guesser, Guesses
from llamachat.generation.loops import Loops
from llamachat.generation.thinking import Part, Thinking, ThinkSplitter, spelled_marks, trimmed

if TYPE_CHECKING:
    from llamachat.events import FinishReason, Reading, Stats

HEADER = 32  # tokens at a prompt's end in which the mark of a thought is looked for


@dataclass(frozen=True)
class AnswerSettings:
    """How to generate: sampling, and when to end."""

    sampling: SamplingParams
    stop_ids: Collection[int]
    stop_strings: Sequence[str] = ()
    max_tokens: int | None = None  # None: to the end of the turn or of the context
    top_logprobs: int | None = None  # None: no logprobs; K: with K alternatives each
    score_prompt: bool = False  # logprobs of the prompt's tokens as well (needs top_logprobs)
    constraint: Callable[[], Constraint] | None = None  # makes one for each answer: what its text must be
    think_budget: int | None = None  # tokens of its thoughts, at which they are ended; None: no limit
    allow_loops: bool = True  # False: an answer that goes round in circles ends: see loops.py


@dataclass
class Answer:
    """Iterate once over the text; the fields fill as it goes and stay right wherever the iteration is left off."""

    engine: Engine
    tokenizer: Tokenizer
    cache: Cache
    prompt: list[int]  # of an encoder-decoder model, the source
    settings: AnswerSettings
    continues_text: bool = False  # the prompt is text that the answer goes on with (no dialog header between them)
    interrupted: Callable[[], bool] = never
    room: Room = no_room  # makes room when the context is full: see generate
    begun: Sequence[int] = ()  # the prompt's last ids, where they are the answer's first ones: it goes on exactly there
    spelled: Mapping[int, bytes] = field(default_factory=dict)  # control tokens that are not left out of the text
    thoughts: Thoughts | None = None  # how they are marked in the text; None: there are none to be told apart
    guesses: Guesses = field(default_factory=Guesses)  # what drafts are made by
    ids: list[int] = field(default_factory=list)  # generated, without the stop id that ended it
    stop_id: int | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt[1:]
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of ids
    reason: "FinishReason" = "interrupt"  # until it ends in another way
    reused: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    all_thought: bool = False  # `parts` ended within a thought

    def __post_init__(self) -> None:
        self._read = 0  # tokens of the prompt, by `reading`
        if self.thoughts:
            self.spelled = {**self.spelled, **spelled_marks(self.tokenizer, self.thoughts)}
        self._detokenizer = Detokenizer(self.tokenizer, continues=self.continues_text, spelled=self.spelled)
        self._stops = StopMatcher(self.settings.stop_strings)
        self._loops = None if self.settings.allow_loops else Loops()
        self._watch = (
            ThinkSplitter(self.thoughts, self.opened) if self.thoughts and self.settings.stop_strings else None
        )
        for token in self.begun:
            text = self._detokenizer.add(token)
            if self._watch:
                self._watch.add(text)
        self._constraint = self._thinking(self.settings.constraint and self.settings.constraint())

    def _thinking(self, inner: Constraint | None) -> Constraint | None:
        """A constraint is the answer's alone where the header has begun a thought, and thoughts may have a budget."""
        budget = self.settings.think_budget
        if self.thoughts is None or (budget is None and not (inner and self.opened)):
            return inner
        size = self.engine.config.vocab_size
        return Thinking(self.tokenizer, size, self.thoughts, self.opened, budget, inner).begin(self.begun)

    @cached_property
    def opened(self) -> str:
        """The mark of a thought that the header, which the prompt ends with, has begun."""
        header = self.prompt[: len(self.prompt) - len(self.begun)][-HEADER:]
        said = b"".join(self.spelled.get(token) or self.tokenizer.token_bytes(token) for token in header)
        return self.thoughts.opened_by(said.decode(errors="replace")) if self.thoughts else ""

    def parts(self, pieces: Iterable[str] | None = None) -> Iterator[Part]:
        """Iterate once, in place of the answer itself: its text in pieces, each with whether it is thought; without marks and
        the space around a thought. `pieces`: all that an answer gave that has ended."""
        pieces = self if pieces is None else pieces
        return trimmed(self._split(pieces)) if self.thoughts else ((piece, False) for piece in pieces)

    def _split(self, pieces: Iterable[str]) -> Iterator[Part]:
        splitter = ThinkSplitter(self.thoughts or TAGGED, self.opened)
        for piece in pieces:
            yield from splitter.add(piece)
        yield from splitter.finish()
        self.all_thought = splitter.thinking

    def __iter__(self) -> Iterator[str]:
        start = time.perf_counter()
        try:
            self.check()
            logits = self.prefill()
        except Interrupted:
            return
        finally:
            self.prefill_s += time.perf_counter() - start
        sampler = self.sampler()
        tokens = generate(
            self.engine,
            self.cache,
            logits,
            sampler,
            stop_ids=self.settings.stop_ids,
            max_tokens=self.settings.max_tokens,
            top=self.settings.top_logprobs,
            interrupted=self.interrupted,
            drafter=self.drafter() if self.engine.batch_invariant else None,
            room=self.room,
        )
        begin = time.perf_counter()
        for token in tokens:
            self.decode_s = time.perf_counter() - begin
            if text := self.take(token):
                yield text
            if self.ended:
                return
        if text := self.finish("interrupt" if self.interrupted() else "length"):
            yield text

    def sampler(self) -> Sampler:
        """What draws this answer's tokens."""
        sampler = Sampler(self.settings.sampling, self.engine.config.vocab_size, self._constraint)
        sampler.observe_prompt(self.started)
        sampler.observe_drawn(self.begun)
        return sampler

    def drafter(self) -> Guesser:
        return self.guesses.begin(self.started, self._constraint)

    @cached_property
    def started(self) -> list[int]:
        """What the answer goes on from: the prompt, unless that is a source. A repetition penalty counts these, too."""
        return started(self.engine, self.prompt)

    @property
    def unscored(self) -> int:
        """Tokens of the prompt that nothing says how likely they are: the first, which nothing precedes, or a whole source."""
        return 1 if self.started is self.prompt else len(self.prompt)

    def take(self, token: Token) -> str:
        """The text that a further token completes; `ended` is true if the answer ends there."""
        if token.id in self.settings.stop_ids:
            self.stop_id = token.id
            return self.finish("stop")
        self.ids.append(token.id)
        if token.logprobs is not None:
            self.logprobs.append(token.logprobs)
        text, stopped = self._matched(self._detokenizer.add(token.id))
        if stopped:
            self.reason = "stop"
        elif self._constraint and self._constraint.complete:
            text += self.finish("stop")
        elif self._loops and self._loops.add(token.id):
            text += self.finish("repeat")
        return text

    def _matched(self, text: str) -> tuple[str, bool]:
        """As of StopMatcher: a stop string ends the answer, not the thought before it."""
        if self._watch:
            was = self._watch.thinking
            self._watch.add(text)
            if was or self._watch.thinking:
                return self._stops.finish() + text, False
        return self._stops.add(text)

    def finish(self, reason: "FinishReason") -> str:
        """End the answer; returns the text that was held back."""
        text, stopped = self._stops.add(self._detokenizer.finish())
        self.reason = reason
        return text if stopped else text + self._stops.finish()

    def check(self) -> None:
        """Raises UsageError when there is no prompt, ModelError when it has tokens that the model lacks."""
        if not self.prompt:
            raise UsageError("the prompt is empty", "nothing was computed", "this model needs a text to go on with")
        size = self.engine.config.vocab_size
        if unknown := next((token for token in self.prompt if not 0 <= token < size), None):
            cause = f"the prompt has token {unknown}, the model's vocabulary {size} tokens"
            raise ModelError(cause, "nothing was computed", "use the tokenizer that the model was made with")

    def reading(self) -> "Iterator[Reading]":
        """Iterate before the answer itself, to hear how far a prompt is read that takes several chunks: all but the last, which
        the answer begins with. Raises UsageError and ModelError as `check` does."""
        from llamachat.events import Reading

        self.check()
        reused = self.cache.keep_common_prefix(self.prompt)
        total = len(self.prompt) - reused
        chunks = range(reused, len(self.prompt) - PREFILL_CHUNK, PREFILL_CHUNK) if total <= self.cache.free else ()
        yield from [Reading(0, total)] if chunks else []
        for start in chunks:  # none where it does not fit and rolls through the cache, which is done at once
            if self.interrupted():
                return
            begin = time.perf_counter()
            prefill(self.engine, self.cache, self.prompt[start : start + PREFILL_CHUNK])
            self.prefill_s += time.perf_counter() - begin
            self._read = start + PREFILL_CHUNK - reused
            yield Reading(self._read, total)

    def prefill(self) -> Logits:
        """Logits after the prompt. Raises DoesNotFitError, Interrupted."""
        if reads := encoding(self.engine):
            self.cache.truncate(0)
            reads.encode(self.cache.first, self.prompt, self.interrupted)
            return prefill(self.engine, self.cache, self.started, self.interrupted)
        if self.settings.score_prompt and self.settings.top_logprobs is not None:
            self.cache.truncate(0)
            top = self.settings.top_logprobs
            self.prompt_logprobs, logits = score(self.engine, self.cache, self.prompt, top, self.interrupted)
            return logits
        held = self.cache.keep_common_prefix(self.prompt)
        self.reused = held - self._read
        return prefill(self.engine, self.cache, self.prompt[held:], self.interrupted, self.room)

    @property
    def ended(self) -> bool:
        """By what it says: in its own way, or because it goes round in circles."""
        return self.reason in ("stop", "repeat")

    @property
    def exact(self) -> bool:
        """Whether the ids stand for the text; not where a stop string cut them."""
        return self.reason != "stop" or self.stop_id is not None

    def stats(self) -> "Stats":
        """Counts and seconds so far."""
        from llamachat.events import Stats

        return Stats(
            prompt_tokens=len(self.prompt),
            reused_tokens=self.reused,
            completion_tokens=len(self.ids) + (self.stop_id is not None),
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            context_used=len(self.cache),
            context_size=self.cache.size,
        )
