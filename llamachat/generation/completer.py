"""`llamachat complete` by a model that runs here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.generate import never
from llamachat.core.sampler import TokenLogprobs
from llamachat.errors import LlamachatError
from llamachat.generation.batch import Batch, Request
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.constraints import Constrainer, from_schema
from llamachat.generation.guesses import Guesses
from llamachat.generation.prompting import Outcome, Prompting, Requests, check_stops
from llamachat.models.load import LoadedModel


@dataclass(frozen=True)
class Completer(Prompting[Answer, Request, str]):
    """A loaded model with all that stays the same from prompt to prompt."""

    model: LoadedModel
    settings: AnswerSettings
    system: str | None
    raw: bool
    echo: bool
    interrupted: Callable[[], bool] = never
    grammar: str | None = None  # of every answer: see constraints.py
    thinking: bool | None = None  # whether answers are thought about first: see DialogFormat.having

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def load_s(self) -> float:
        return self.model.load_s

    @property
    def reads(self) -> bool:
        return self.model.reads is not None

    @cached_property
    def cache(self) -> Cache:
        """One for all prompts: what they begin with in common is computed once."""
        return Cache(self.model.context)

    @cached_property
    def _guesses(self) -> Guesses:
        """Answers to one prompt are guessed by those to the prompts before."""
        return Guesses()

    def begin(self, asked: Request) -> Answer:
        return asked.answer(self.model, self.cache, self.interrupted, self._guesses)

    def ids(self, prompt: str) -> list[int]:
        """Of one prompt text, as the model is given it."""
        return self._encoded(self.dialog(prompt))

    def _encoded(self, messages: list[Message] | str) -> list[int]:
        if isinstance(messages, str):
            return self.model.encode_text(messages)
        return self.model.encode_dialog(messages, self.thinking)

    def request(self, messages: list[Message] | str, followed: str | None) -> Request:
        text = isinstance(messages, str)
        thoughts = None if text else self.model.dialog.thoughts
        continues = text and (self.echo or not self.model.reads)  # an answer to a source is a text of its own
        return Request(self._encoded(messages), self._constrained(followed), continues, thoughts)

    def schema(self, value: object) -> str:
        return from_schema(value)

    def _constrained(self, grammar: str | None) -> AnswerSettings:
        if grammar is None:
            return self.settings
        check_stops(self.settings.stop_strings)
        return replace(self.settings, constraint=self._constrainer.of(grammar))

    @cached_property
    def _constrainer(self) -> Constrainer:
        own_text = self.model.reads or not (self.raw or self._opened)
        drops_space = self.model.tokenizer.dummy_prefix and bool(own_text)
        size = self.model.engine.config.vocab_size
        return Constrainer(self.model.tokenizer, size, self.settings.stop_ids, drops_space)

    @cached_property
    def _opened(self) -> str:
        """The mark of a thought that the header of an answer begins."""
        dialog = self.model.dialog.having(self.thinking)
        header = dialog.turns([Message("user", "a")])[-1]
        return dialog.thoughts.opened_by("".join(map(self.model.token_text, header)))

    def answers(
        self, parallel: int, requests: Callable[[Callable[[], bool]], Requests[Request]]
    ) -> Iterator[Outcome[Answer]]:
        batch = Batch(self.model, parallel, self.interrupted)
        for outcome in batch.run(requests(lambda: batch.idle)):
            if isinstance(outcome, LlamachatError):
                yield outcome
            else:
                yield outcome.answer, outcome.answer.parts([outcome.text])

    def before(self, reply: Answer) -> str:
        return self.model.tokenizer.decode(reply.prompt) if self.echo else ""

    def tokens(self, reply: Answer) -> Sequence[int]:
        return [*reply.prompt, *reply.ids] if self.echo else reply.ids

    def logprobs(self, reply: Answer) -> list[dict[str, Any]] | None:
        if self.settings.top_logprobs is None:
            return None
        if not self.echo:
            return [self._entry(entry) for entry in reply.logprobs]
        first = [{**self._token(token), "logprob": None, "top": []} for token in reply.prompt[: reply.unscored]]
        return [*first, *(self._entry(entry) for entry in [*reply.prompt_logprobs, *reply.logprobs])]

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [{**self._token(token), "logprob": logprob} for token, logprob in entry.top]
        return {**self._token(entry.id), "logprob": entry.logprob, "top": top}

    def _token(self, token: int) -> dict[str, Any]:
        return {"id": token, "token": self.model.token_text(token)}
