"""Meta's `Llama` with the meaning of its reference code (`llama/generation.py`), and twins of it that stream."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypedDict, TypeVar

import numpy as np

from llamachat.api.model_args import ModelArgs
from llamachat.api.outputs import Floats, outputs_of
from llamachat.api.streaming import Stream
from llamachat.api.text_reader import TextReader
from llamachat.api.tokenizer import ChatFormat, Dialog, Ids, Message, Tokenizer, listed, parsed, require_list
from llamachat.checks import require_whole
from llamachat.core.cache import Cache
from llamachat.core.detokenize import Detokenizer
from llamachat.core.engine import Outputs
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import Thoughts
from llamachat.engines.encoding import started
from llamachat.engines.memory import Remedies
from llamachat.engines.world import launched
from llamachat.errors import DoesNotFitError, LlamachatError, UsageError
from llamachat.generation.batch import Batch, Request
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.guesses import Guesses
from llamachat.generation.thinking import parted as split
from llamachat.models.heads import PREDICTS, USES, require_head
from llamachat.models.load import LoadedModel, load
from llamachat.models.packed_copy import behind
from quantize.prepare import prepare

MOST_AT_ONCE = 2**16
REMEDIES = Remedies("max_seq_len={}", "kv_bits={}", "force=True")


class Scored(TypedDict, total=False):
    """What is there only with logprobs=True: each token's text and logprob."""

    tokens: list[str]
    logprobs: list[float]


class CompletionPrediction(Scored):
    """What text_completion returns for a prompt."""

    generation: str


class Reasoned(TypedDict, total=False):
    """What is there only where the model thought before it answered: that, without its marks."""

    reasoning: str


class ChatPrediction(Scored, Reasoned):
    """What chat_completion returns for a dialog."""

    generation: Message


P = TypeVar("P")


@dataclass(frozen=True)
class _Wanted:
    """The arguments that all of them have."""

    max_gen_len: int | None
    temperature: float
    top_p: float
    logprobs: bool
    echo: bool = False
    ends_turn: bool = True  # whether what ends a turn ends the answer too
    thoughts: Thoughts | None = None  # how they are marked; None: they are told apart from nothing
    think_budget: int | None = None
    allow_loops: bool = True


class Llama(TextReader):
    """A loaded model. Prompts of a batch may differ in length; each gives what it would give alone.

    A token is drawn as Meta draws it: argmax at temperature 0, else from the nucleus top_p of softmax(logits /
    temperature). Penalties and filters that a model's own defaults ask for are the chat's and have no place here. Logprobs
    are natural logarithms of the model's own distribution, before temperature and top_p. Models with a head that classifies
    have TextReader's methods instead. Not for several threads at once.
    """

    def __init__(self, model: LoadedModel, max_batch_size: int = 32, seed: int = 1) -> None:
        require_whole("seed", seed, 0, 2**64 - 1, UsageError)
        require_whole("max_batch_size", max_batch_size, 1, MOST_AT_ONCE, UsageError)
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_seq_len = model.context
        self.tokenizer = Tokenizer(model.tokenizer, model.stop_ids, model.checkpoint.config.pad_token_id)
        self.args = ModelArgs.of(model.checkpoint.config, max_batch_size, self.max_seq_len)
        self._cache, self._guesses = Cache(self.max_seq_len), Guesses()
        self._seeds = np.random.default_rng(seed)
        self._reading: Stream[Any] | None = None  # the one that has begun last
        if copying := behind(self, model.copy, model.engine):
            copying.begin()

    @classmethod
    def build(
        cls,
        path_or_name: str | os.PathLike[str] | None = None,
        tokenizer_path: str | os.PathLike[str] | None = None,
        max_seq_len: int | None = None,
        max_batch_size: int = 32,
        model_parallel_size: int | None = None,
        seed: int = 1,
        *,
        ckpt_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "Llama":
        """Load a model by path or catalog name (`ckpt_dir` is Meta's word for it); without either, the catalog's default.

        tokenizer_path: the tokenizer's file, where it does not lie with the model. max_seq_len: tokens of prompt and answer
        together. max_batch_size: prompts a call; so many are held at once where memory allows. model_parallel_size: processes to
        split the model over, whatever the number of shards in its files; under torchrun its number, and the processes of other
        ranks do not return from here.
        `options` are those of llamachat.models.load.load (device, engine, dtype, adapters, ...). Raises LlamachatError.
        """
        if path_or_name is not None and ckpt_dir is not None:
            raise UsageError("path_or_name and ckpt_dir were both given", "nothing was loaded", "give one of them")
        given = path_or_name if ckpt_dir is None else ckpt_dir
        name = None if given is None else os.fspath(given)
        _follow_rank_0()
        require_whole("max_batch_size", max_batch_size, 1, MOST_AT_ONCE, UsageError)
        model = load(
            name,
            ctx_size=max_seq_len,
            parallel=max_batch_size,
            tokenizer_path=tokenizer_path,
            tensor_parallel=model_parallel_size,
            **options,
            prepare=prepare,
            heads=(*USES,),
            remedies=REMEDIES,
        )
        return cls(model, max_batch_size, seed)

    def scale_adapter(self, name: str, scale: float) -> None:
        """Another scale for one of the adapters that it was built with, which are called as their folders are; 0: off. The
        weights stay loaded. Raises UsageError."""
        self._begin(None)
        self.model.adapters.scale(name, scale)
        self._cache.truncate(0)  # keys and values are those of before

    @cached_property
    def formatter(self) -> ChatFormat:
        """Dialogs -> ids. Raises UsageError for a model that has no dialog format."""
        return ChatFormat(self.model.dialog, self.tokenizer.bos_id)

    def generate(
        self,
        prompt_tokens: Sequence[Ids],
        max_gen_len: int | None = None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue each prompt; returns the generated ids (the prompt's first with `echo`) and their logprobs, or None.

        Generation ends before a stop id, after max_gen_len tokens (0: only the prompt is scored; None: no limit), or when
        prompt and answer make max_seq_len. The first token of a prompt, which nothing precedes, has the logprob 0.0. Two
        oddities of Meta's code are left out: an echoed prompt is not cut at a stop id that is in it, and logprobs are of the
        place before each token also where the prompts leave nothing to generate.
        Raises UsageError for a batch over max_batch_size or a prompt that is empty or has no ids, ModelError for ids that
        the model lacks, DoesNotFitError for a prompt over max_seq_len.
        """
        wanted = _Wanted(max_gen_len, temperature, top_p, logprobs, echo)
        answers = self._answers(prompt_tokens, wanted)
        scores = [_logprobs(answer, wanted) for answer in answers] if logprobs else None
        return [_ids(answer, wanted) for answer in answers], scores

    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        *,
        allow_loops: bool = True,
    ) -> list[CompletionPrediction]:
        """Continue plain texts, each begun with BOS; arguments and errors as in `generate`.

        allow_loops: False ends a text that says the same over and over for hundreds of tokens.
        """
        wanted = _Wanted(max_gen_len, temperature, top_p, logprobs, echo, ends_turn=False, allow_loops=allow_loops)
        require_list(prompts, "prompts", "text_stream takes a single one")
        ids = [self._text_ids(prompt) for prompt in prompts]
        return [self._completion(answer, wanted) for answer in self._answers(ids, wanted)]

    def chat_completion(
        self,
        dialogs: Sequence[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        *,
        think: bool | None = None,
        think_budget: int | None = None,
        allow_loops: bool = True,
    ) -> list[ChatPrediction]:
        """Answer dialogs, each a list of {"role": system|user|assistant|tool, "content": text}; the rest as in `generate`.

        think: whether the model is to think before it answers, where its template has a switch for that; None: as the
        template has it. think_budget: tokens at which a thought is ended and the answer begins. An answer comes without
        its thought, which is then the prediction's "reasoning". allow_loops: as in `text_completion`.
        """
        wanted = self._to_chat(
            _Wanted(max_gen_len, temperature, top_p, logprobs, allow_loops=allow_loops), think_budget
        )
        require_list(dialogs, "prompts", "chat_stream takes a single one")
        ids = [self.model.encode_dialog(parsed(dialog), think) for dialog in dialogs]
        return [self._chat(answer, wanted) for answer in self._answers(ids, wanted)]

    def text_stream(
        self,
        prompt: str,
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        *,
        allow_loops: bool = True,
    ) -> Stream[CompletionPrediction]:
        """`text_completion` of one prompt, piece by piece: the pieces make up its `generation`; `.result` is the whole."""
        wanted = _Wanted(max_gen_len, temperature, top_p, logprobs, echo, ends_turn=False, allow_loops=allow_loops)
        return self._stream(self._text_ids(prompt), wanted, self._completion)

    def chat_stream(
        self,
        dialog: Dialog,
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        *,
        think: bool | None = None,
        think_budget: int | None = None,
        allow_loops: bool = True,
    ) -> Stream[ChatPrediction]:
        """`chat_completion` of one dialog, piece by piece: the pieces make up the answer; `.result` is the whole."""
        ids = self.model.encode_dialog(parsed(dialog), think)
        wanted = self._to_chat(
            _Wanted(max_gen_len, temperature, top_p, logprobs, allow_loops=allow_loops), think_budget
        )
        return self._stream(ids, wanted, self._chat)

    def logits(self, tokens: Ids, return_hidden_states: bool | None = None) -> Floats | tuple[Floats, Floats]:
        """Logits float32 [T, vocab_size] after each token of a sequence; of a head that classifies, [T, num_labels].

        return_hidden_states: with what the head was given, [T, hidden_size], behind them, as MindFormers' models return it
        under the setting of that name; None: as the model's configuration has it. Raises UsageError, ModelError for ids that
        the model lacks, DoesNotFitError for more than max_seq_len.
        """
        logits = self._outputs(tokens, "logits")
        if return_hidden_states is None:
            return_hidden_states = self.model.checkpoint.config.return_hidden_states
        return (logits, self._outputs(tokens, "hidden")) if return_hidden_states else logits

    def hidden_states(self, tokens: Ids) -> Floats:
        """[layers + 1, T, hidden_size]: what each layer is given, and what the head is, as transformers' `output_hidden_states`.

        Of the torch engine. Errors as in `logits`.
        """
        return self._outputs(tokens, "hidden_states")

    def attentions(self, tokens: Ids) -> Floats:
        """[layers, heads, T, T]: each head's shares of all tokens for each, 0 where it does not see one, as transformers'
        `output_attentions`; with learned sinks they add up to less than 1.

        Of the torch engine. Errors as in `logits`.
        """
        return self._outputs(tokens, "attentions")

    def _outputs(self, tokens: Ids, outputs: Outputs) -> Floats:
        self.take_slots()
        return outputs_of(self.model, listed(tokens), outputs)

    def take_slots(self) -> None:
        """What the cache holds is written over."""
        self._begin(None)
        self._cache.truncate(0)

    def _text_ids(self, prompt: str) -> list[int]:
        return [*self.tokenizer.encode(prompt, bos=True, eos=False), *self.model.text_end]

    def _to_chat(self, wanted: _Wanted, think_budget: int | None) -> _Wanted:
        if think_budget is not None:
            require_whole("think_budget", think_budget, 0, 2**63, UsageError)
        return replace(wanted, thoughts=self.model.dialog.thoughts, think_budget=think_budget)

    def _completion(self, answer: Answer, wanted: _Wanted) -> CompletionPrediction:
        return {"generation": self.tokenizer.decode(_ids(answer, wanted)), **self._scored(answer, wanted)}

    def _chat(self, answer: Answer, wanted: _Wanted) -> ChatPrediction:
        thought, text = split(answer.parts([self._text(answer)]))
        said: Message = {"role": "assistant", "content": text}
        reasoned: Reasoned = {"reasoning": thought} if thought else {}
        return {"generation": said, **reasoned, **self._scored(answer, wanted)}

    def _text(self, answer: Answer) -> str:
        detokenizer = Detokenizer(self.model.tokenizer, spelled={**self.tokenizer.spelled, **answer.spelled})
        return "".join(map(detokenizer.add, answer.ids)) + detokenizer.finish()

    def _scored(self, answer: Answer, wanted: _Wanted) -> Scored:
        if not wanted.logprobs:
            return {}
        logprobs = _logprobs(answer, wanted)
        ids = _ids(answer, wanted)[: len(logprobs)]  # a stream that was closed has scored no more
        return {"tokens": [self.tokenizer.decode([token]) for token in ids], "logprobs": logprobs}

    def _answers(self, prompts: Sequence[Ids], wanted: _Wanted) -> list[Answer]:
        if len(prompts) > self.max_batch_size:
            raise UsageError(f"a batch of {len(prompts)} prompts exceeds max_batch_size={self.max_batch_size}")
        requests = [self._request(listed(prompt), wanted) for prompt in prompts]
        self._begin(None)
        return list(self._answered(requests))

    def _request(self, prompt: list[int], wanted: _Wanted) -> Request:
        require_head(self.model.name, self.model.checkpoint.config, PREDICTS)
        if not prompt:
            raise UsageError("a prompt without tokens cannot be continued", "nothing was computed")
        length = len(started(self.model.engine, prompt))
        if length > self.max_seq_len:
            cause = f"a prompt of {length} tokens exceeds max_seq_len={self.max_seq_len}"
            raise DoesNotFitError(cause, "nothing was computed", "shorten it, or build with a larger one")
        limit = self.max_seq_len if wanted.max_gen_len is None else wanted.max_gen_len
        require_whole("max_gen_len", limit, 0, 2**63, UsageError)
        seed = int(self._seeds.integers(2**63))
        settings = AnswerSettings(
            SamplingParams(temperature=wanted.temperature, top_p=wanted.top_p, seed=seed),
            self.model.stop_ids if wanted.ends_turn else self.model.text_stop_ids,
            max_tokens=min(limit, self.max_seq_len - length),
            top_logprobs=0 if wanted.logprobs else None,
            score_prompt=wanted.logprobs and wanted.echo,
            think_budget=wanted.think_budget,
            allow_loops=wanted.allow_loops,
        )
        return Request(prompt, settings, thoughts=wanted.thoughts)

    def _answered(self, requests: list[Request]) -> Iterator[Answer]:
        """A single prompt goes on from what the single one before left in the cache; several run at once."""
        if len(requests) == 1:
            answer = requests[0].answer(self.model, self._cache, guesses=self._guesses)
            for _ in answer:
                pass
            yield answer
            return
        self.take_slots()
        for outcome in Batch(self.model, self.max_batch_size).run(iter(requests)):
            if isinstance(outcome, LlamachatError):
                raise outcome
            yield outcome.answer

    def _stream(self, ids: list[int], wanted: _Wanted, predict: Callable[[Answer, _Wanted], P]) -> Stream[P]:
        request, inner = self._request(ids, wanted), self.model.tokenizer
        answer = Answer(
            self.model.engine,
            inner,
            self._cache,
            request.prompt,
            request.settings,
            continues_text=wanted.echo,
            spelled=self.tokenizer.spelled,
            thoughts=wanted.thoughts,
            guesses=self._guesses,
        )
        answer.check()
        return Stream(answer, self._pieces(answer, wanted.echo), self._begin, lambda answer: predict(answer, wanted))

    def _pieces(self, answer: Answer, echo: bool) -> Generator[str]:
        if echo:
            yield self.tokenizer.decode(answer.prompt)
        yield from (text for text, thought in answer.parts() if not thought)

    def _begin(self, stream: Stream[Any] | None) -> None:
        """The model's next request; an unfinished stream ends, as the cache is this one's now."""
        if self._reading is not None:
            self._reading.give_way()
        self._reading = stream


def _ids(answer: Answer, wanted: _Wanted) -> list[int]:
    return [*answer.prompt, *answer.ids] if wanted.echo else answer.ids


def _logprobs(answer: Answer, wanted: _Wanted) -> list[float]:
    unscored = [0.0] * answer.unscored
    before = [*unscored, *(entry.logprob for entry in answer.prompt_logprobs)] if wanted.echo else []
    return before + [entry.logprob for entry in answer.logprobs]


def _follow_rank_0() -> None:
    """In a process that torchrun has started beside rank 0's: do what that does until it ends, and end then."""
    if (world := launched()) and world.rank:
        from llamachat.models.rank import of_torchrun

        raise SystemExit(of_torchrun(world, prepare))
