"""The Python API, with the meaning of Meta's Llama 3 reference code (`llama/generation.py`), on any checkpoint we read."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from llamachat.answer import Answer, AnswerSettings
from llamachat.batch import Batch, Request
from llamachat.cache import Cache
from llamachat.config import require_whole
from llamachat.dialog import Message
from llamachat.errors import DoesNotFitError, LlamachatError, UsageError
from llamachat.load import LoadedModel, load


class Scored(TypedDict, total=False):
    """What is there only with logprobs=True: each token's text and logprob."""

    tokens: list[str]
    logprobs: list[float]


class CompletionPrediction(Scored):
    """What text_completion returns for a prompt."""

    generation: str


class ChatPrediction(Scored):
    """What chat_completion returns for a dialog."""

    generation: dict[str, str]  # {"role": "assistant", "content": ...}


class Llama:
    """A loaded model. Prompts of a batch may differ in length; each gives what it would give alone."""

    def __init__(self, model: LoadedModel, max_batch_size: int = 32, seed: int = 1) -> None:
        require_whole("seed", seed, 0, 2**64 - 1, UsageError)
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_seq_len = model.context
        self._cache = Cache(self.max_seq_len)
        self._seeds = np.random.default_rng(seed)

    @classmethod
    def build(
        cls, path_or_name: str, max_seq_len: int | None = None, max_batch_size: int = 32, seed: int = 1, **options: Any
    ) -> "Llama":
        """Load a model by path or catalog name; `options` are those of llamachat.load.load (device, engine, ...)."""
        return cls(load(path_or_name, ctx_size=max_seq_len, parallel=max_batch_size, **options), max_batch_size, seed)

    def generate(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int | None = None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        stop_ids: Collection[int] | None = None,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue each prompt; returns the generated ids (the prompt's first with `echo`) and their logprobs, or None.

        Generation ends before a stop id (by default whatever ends an answer), after max_gen_len tokens, or when prompt and
        answer make max_seq_len. Logprobs are natural logarithms of the model's own, untempered distribution; the first
        token of a prompt has 0.0.
        Raises UsageError for a batch over max_batch_size or an empty prompt, ModelError for ids that the model lacks,
        DoesNotFitError for a prompt over max_seq_len.
        """
        if len(prompt_tokens) > self.max_batch_size:
            raise UsageError(f"a batch of {len(prompt_tokens)} prompts exceeds max_batch_size={self.max_batch_size}")
        if max_gen_len is not None:
            require_whole("max_gen_len", max_gen_len, 0, 2**63, UsageError)
        if not all(prompt_tokens):
            raise UsageError("a prompt without tokens cannot be continued")
        longest = max(map(len, prompt_tokens), default=0)
        if longest >= self.max_seq_len:
            raise DoesNotFitError(f"a prompt of {longest} tokens leaves no room in max_seq_len={self.max_seq_len}")
        tokens, scores = [], []
        stops = self.model.stop_ids if stop_ids is None else stop_ids
        requests = [
            self._request(list(prompt), stops, max_gen_len, temperature, top_p, logprobs, echo)
            for prompt in prompt_tokens
        ]
        for answer in self._answers(requests):
            tokens.append([*answer.prompt, *answer.ids] if echo else answer.ids)
            before = [0.0, *(entry.logprob for entry in answer.prompt_logprobs)] if echo and logprobs else []
            scores.append(before + [entry.logprob for entry in answer.logprobs])
        return tokens, scores if logprobs else None

    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continue plain texts, each begun with BOS; arguments as in `generate`."""
        ids = [self.model.encode_text(prompt) for prompt in prompts]
        stops = self.model.text_stop_ids
        tokens, scores = self.generate(ids, max_gen_len, temperature, top_p, logprobs, echo, stops)
        decode = self.model.tokenizer.decode
        return [
            {"generation": decode(sequence), **scored}
            for sequence, scored in zip(tokens, self._scored(tokens, scores), strict=True)
        ]

    def chat_completion(
        self,
        dialogs: Sequence[Sequence[Mapping[str, str]]],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """Answer dialogs, each a list of {"role": system|user|assistant, "content": text} that ends with the user."""
        ids = [self.model.dialog.encode([Message.parse(message) for message in dialog]) for dialog in dialogs]
        tokens, scores = self.generate(ids, max_gen_len, temperature, top_p, logprobs)
        decode = self.model.tokenizer.decode
        return [
            {"generation": {"role": "assistant", "content": decode(sequence)}, **scored}
            for sequence, scored in zip(tokens, self._scored(tokens, scores), strict=True)
        ]

    def _scored(self, tokens: list[list[int]], scores: list[list[float]] | None) -> list[Scored]:
        if scores is None:
            return [{} for _ in tokens]
        decode = self.model.tokenizer.decode
        return [
            {"tokens": [decode([token]) for token in sequence], "logprobs": logprobs}
            for sequence, logprobs in zip(tokens, scores, strict=True)
        ]

    def _request(
        self,
        prompt: list[int],
        stop_ids: Collection[int],
        limit: int | None,
        temperature: float,
        top_p: float,
        logprobs: bool,
        echo: bool,
    ) -> Request:
        sampling = self.model.sampling.replace(
            temperature=temperature, top_p=top_p, top_k=0, seed=int(self._seeds.integers(2**63))
        )
        settings = AnswerSettings(
            sampling,
            stop_ids,
            max_tokens=min(limit or self.max_seq_len, self.max_seq_len - len(prompt)),
            top_logprobs=0 if logprobs else None,
            score_prompt=logprobs and echo,
        )
        return Request(prompt, settings)

    def _answers(self, requests: list[Request]) -> Iterator[Answer]:
        """A single prompt goes on from what the single one before left in the cache; several run at once."""
        if len(requests) == 1:
            answer = self.model.answer(requests[0].prompt, requests[0].settings, self._cache)
            for _ in answer:
                pass
            yield answer
            return
        self._cache.truncate(0)  # the batch takes its slots
        for outcome in Batch(self.model, self.max_batch_size).run(iter(requests)):
            if isinstance(outcome, LlamachatError):
                raise outcome
            yield outcome.answer
