"""The backend that runs a model in this process: its cache, the window on the dialog, answers, and a look at them again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import get_args

from llamachat.chat import insight
from llamachat.chat.asked import Asked, Beginning, Capability, Seen
from llamachat.chat.model_facts import depends_on_length, tokenizer_fingerprint, weights
from llamachat.chat.recall import Recall
from llamachat.chat.settings import Settings
from llamachat.chat.tree import Node, Tree
from llamachat.chat.window import Overflow, Window
from llamachat.core.cache import Cache
from llamachat.core.detokenize import Detokenizer
from llamachat.core.dialog import Message
from llamachat.core.sampler import TokenLogprobs
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import THINKING
from llamachat.engines.memory import size
from llamachat.errors import LlamachatError, LostError, UsageError, reading
from llamachat.events import AdapterView, Event, Stats, TextDelta, TextSize, TokenView, TurnDone
from llamachat.generation import snapshot
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.thinking import Tagger, spelled_marks, unheard
from llamachat.models.adapters import Held
from llamachat.models.load import LoadedModel
from llamachat.models.packed_copy import behind

REFILLS = (
    "positions of this model depend on the context's length: "
    "when that is full, what stays of the dialog is computed anew"
)


def _view(held: Held) -> AdapterView:
    adapter = held.adapter
    count = len(adapter.matrices), len(adapter.replaced)
    return AdapterView(held.name, held.scale, adapter.rank, *count, size(adapter.nbytes))


ALL: frozenset[Capability] = frozenset(get_args(Capability))
ENDS = {
    "stop": "the model ended it",
    "length": "max_tokens or the context ended it",
    "interrupt": "it was stopped",
    "repeat": "it repeated itself",
}


class LocalBackend:
    """A loaded model that answers one dialog at a time."""

    def __init__(self, model: LoadedModel, overflow: Overflow = "roll", *, snapshots: bool = False) -> None:
        """`snapshots`: whether a dialog's keys and values are kept on disk when it is left. Raises UsageError for a model that
        answers sources, which no template can make chat."""
        self.model = model
        if model.reads:
            self.check()
        refills = overflow == "roll" and depends_on_length(model)
        self.overflow: Overflow = "refill" if refills else overflow
        self.notes = [*model.notes, *([REFILLS] if refills else [])]
        self.capabilities: frozenset[Capability] = ALL if snapshots else ALL - {"snapshots"}
        self._copying = behind(self, model.copy, model.engine)
        self.recalled = Recall()
        self._start()

    def _start(self) -> None:
        self.cache = Cache(self.model.engine.slots)
        self.window = Window(self.model, self.cache, self.overflow)

    # ---- what it is ----

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def reference(self) -> str:
        return self.model.reference

    @cached_property
    def tokenizer(self) -> str:
        return tokenizer_fingerprint(self.model.tokenizer)

    @property
    def sampling(self) -> SamplingParams:
        return self.model.sampling

    @property
    def system(self) -> str | None:
        return self.model.system

    @property
    def context_used(self) -> int:
        return len(self.cache)

    @property
    def context_size(self) -> int:
        return self.cache.size

    def describe(self) -> Mapping[str, str]:
        return {**self.model.describe(), "weights": weights(self.model), "overflow": self.overflow}

    def check(self) -> None:
        _ = self.model.dialog

    def unheard(self, settings: Settings) -> str | None:
        """See Backend."""
        thinking = THINKING[settings.think]
        try:
            return None if thinking is None else unheard(self.name, self.model.dialog, thinking)
        except LlamachatError as error:  # of its chat template
            return str(error)

    def remarks(self) -> Sequence[str]:
        """See Backend: of the copy of its weights, which is written behind the first answer."""
        return self._copying.remarks() if self._copying else ()

    def weigh(self, text: str, system: str | None) -> TextSize:
        """See Backend."""
        around = [Message("system", system)] if system else []
        room = self.cache.size - len(self.model.dialog.encode([*around, Message("user", "")])) - 1
        tokens, counted = self.model.count(text, self.cache.size)
        return TextSize(tokens, counted, max(room, 1), self.model.largest_context)

    # ---- answering ----

    def respond(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        """See Backend. Raises DoesNotFitError where the prompt finds no room."""
        prompt = self.window.prompt(asked)
        return iter([self._whole(prompt)]) if asked.answer.reason == "stop" else self._answer(asked, settings, prompt)

    def _whole(self, prompt: list[int]) -> TurnDone:
        """The end of an answer for which nothing had to be computed."""
        return TurnDone(Stats(len(prompt), len(prompt), 0, 0.0, 0.0, len(self.cache), self.cache.size), "stop", True)

    def _answer(self, asked: Asked, settings: Settings, prompt: list[int]) -> Iterator[Event]:
        begun = asked.answer.ids or ()
        answer = Answer(
            self.model.engine,
            self.model.tokenizer,
            self.cache,
            prompt,
            AnswerSettings(
                settings.sampling,
                self.model.stop_ids,
                settings.stop,
                settings.max_tokens,
                think_budget=settings.think_budget,
                allow_loops=settings.allow_loops,
            ),
            interrupted=asked.interrupted,
            room=self.window.room,
            begun=begun,
            thoughts=self.model.dialog.thoughts,
            guesses=self.recalled.guesses,
        )
        with self.recalled.paused():
            yield from self._pieces(answer)
        text = self._text([*begun, *answer.ids], asked.answer) if begun and answer.exact else None
        if self._copying:
            self._copying.begin()
        yield TurnDone(answer.stats(), answer.reason, answer.exact, text)

    def _pieces(self, answer: Answer) -> Iterator[Event]:
        """The answer's text begins with the mark of a thought that its header has begun."""
        told, tagger = 0, Tagger(self.model.dialog.thoughts)
        tagger.add(self._detokenized(answer.begun))
        opened = "" if answer.begun else answer.opened
        yield from self.window.take_events()
        yield from answer.reading()
        for piece in answer:
            yield from self.window.take_events()
            yield TextDelta(tagger.add(opened + piece), ids=tuple(answer.ids[told:]), used=len(self.cache))
            opened, told = "", len(answer.ids)
        yield from self.window.take_events()
        rest = tagger.add(opened) + tagger.finish()
        if rest or told < len(answer.ids):  # tokens without a text of their own
            yield TextDelta(rest, ids=tuple(answer.ids[told:]))

    def _text(self, ids: Sequence[int], like: Node) -> str:
        """What ids say as an answer to the question that the window shows, with the mark of a thought that the header has
        begun where another answer has it."""
        thoughts, view = self.model.dialog.thoughts, self.window.view
        opened = thoughts.opened_by("".join(map(self.model.token_text, view.opened if view else [])))
        tagger, text = Tagger(thoughts), self._detokenized(ids)
        return tagger.add(opened + text if like.text.startswith(opened) else text) + tagger.finish()

    def _detokenized(self, ids: Sequence[int]) -> str:
        tokenizer = self.model.tokenizer
        detokenizer = Detokenizer(tokenizer, spelled=spelled_marks(tokenizer, self.model.dialog.thoughts))
        return "".join(map(detokenizer.add, ids)) + detokenizer.finish()

    # ---- the window ----

    def seen(self, line: Sequence[Node], system: str | None) -> Seen:
        """See Backend."""
        view = self.window.view
        pinned = len(view.pinned) if view and view.system == system else 0
        return Seen(self.window.first(line), pinned, self.window.lost(line))

    def forget(self) -> None:
        self.window.forget()
        if not self.recalled.saved:
            self.recalled.guesses.forget()

    def recall(self, answers: Callable[[str], Iterable[Sequence[int]]]) -> None:
        """See Backend: drafts are guessed by them."""
        self.recalled.begin(answers(self.tokenizer), self.model.engine.config.vocab_size)

    # ---- adapters ----

    def adapters(self) -> Sequence[AdapterView]:
        return [_view(each) for each in self.model.adapters.held]

    def add_adapter(self, path: str) -> AdapterView:
        return self._after(lambda: self.model.adapters.add(path))

    def scale_adapter(self, name: str, scale: float | None) -> AdapterView:
        return self._after(lambda: self.model.adapters.scale(name, scale))

    def _after(self, change: Callable[[], Held]) -> AdapterView:
        """Keys and values are those of the model as it was before a change."""
        before = self.model.adapters.scaled
        adapter = change()
        if self.model.adapters.scaled != before:
            self._start()
        return _view(adapter)

    # ---- others ----

    def others(self) -> Sequence[tuple[str, str]]:
        """See Backend: those that run here are the catalog's."""
        return ()

    def sibling(self, name: str) -> None:
        """See Backend."""

    # ---- on disk ----

    def take_up(self, dialog: str, tree: Tree, say: Callable[[str], None]) -> None:
        """See Backend."""
        self._start()
        if "snapshots" not in self.capabilities:
            return
        try:
            with reading("the keys and values that were kept"):
                state = snapshot.restore(self._place(dialog), self.model.engine, self.cache, say)
                if state is not None:
                    self.window.take_up(state, tree)
        except LlamachatError:  # of another dialog, or the model's files have been removed
            self.cache.truncate(0)

    def keep(self, dialog: str) -> None:
        """See Backend."""
        if "snapshots" in self.capabilities and (state := self.window.state()):
            with suppress(OSError, LostError):  # a full disk, an engine that has gone: it is computed anew next time
                snapshot.save(self._place(dialog), self.model.engine, self.cache, state)

    def _place(self, dialog: str) -> Path:
        return snapshot.place(self.model, f"dialog {dialog}")

    # ---- seeing inside ----

    def tokens(self, asked: Asked, alternatives: int) -> Sequence[TokenView]:
        """See Scoring."""
        text = self.model.token_text
        return [
            TokenView(text(each.id), each.id, each.logprob, tuple((text(id), id, value) for id, value in each.top))
            for each in self._scored(asked, alternatives)
        ]

    def why(self, asked: Asked, settings: Settings) -> Sequence[tuple[str, str]]:
        """See Drawing."""
        answer = asked.answer
        params, count = settings.sampling_of(answer.parameters), len(_tokens(asked))
        rows = insight.reasons(self.model.engine, self.cache, self._ids(asked), count, params, asked.interrupted)
        limit = answer.parameters.get("max_tokens")
        return [*rows, ("max_tokens", f"{'none' if limit is None else limit}: {ENDS[answer.reason]}")]

    def alternative(self, asked: Asked, index: int, choice: int) -> Beginning:
        """See Drawing."""
        count = len(_tokens(asked))
        if not 1 <= index <= count:
            raise UsageError(f"there is no token {index}", remedy=f"the last answer has {count}")
        if not 1 <= choice <= self.model.engine.config.vocab_size:
            raise UsageError(f"there is no alternative {choice}", remedy="count from 1")
        token = self._scored(asked, choice, only=index)[0].top[choice - 1][0]
        ends = token in self.model.stop_ids
        ids = (*_tokens(asked)[: index - 1], *(() if ends else (token,)))
        return Beginning(self._text(ids, asked.answer), ids, ends)

    def _scored(self, asked: Asked, top: int, only: int | None = None) -> list[TokenLogprobs]:
        """Logprobs of the answer's tokens, or of one of them (from 1)."""
        count, whole = len(_tokens(asked)), self._ids(asked)
        if only is not None:
            whole, count = whole[: len(whole) - count + only], 1
        return insight.scored(self.model.engine, self.cache, whole, count, top, asked.interrupted)

    def _ids(self, asked: Asked) -> list[int]:
        """All up to the end of the answer. Raises UsageError where the model sees only its end."""
        whole = self.window.in_step(asked)
        view = self.window.view
        if view is None or view.gone or len(whole) - 1 > self.cache.size:
            raise UsageError("question and answer are not in the context as a whole", "the answer cannot be scored")
        return whole


def _tokens(asked: Asked) -> tuple[int, ...]:
    """The answer's. Raises UsageError where it has none of this model."""
    if not asked.answer.ids:
        raise UsageError("the last answer has no tokens of this model", remedy="/regen answers anew")
    return asked.answer.ids
