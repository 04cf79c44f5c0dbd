"""Where dialog, cache and generation meet: a conversation that can be asked, stopped, cleared and tuned."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from llamachat.answer import Answer, AnswerSettings
from llamachat.cache import Cache
from llamachat.dialog import Message
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import Event, Evicted, Stats, TextDelta, TurnDone
from llamachat.load import LoadedModel

ANSWER_SHARE = 4  # a quarter of the context is kept free for the answer when old turns can be dropped


class Session:
    """One conversation with a loaded model; `ask` streams events."""

    def __init__(
        self,
        model: LoadedModel,
        settings: AnswerSettings,
        system: str | None = None,
        overflow: Literal["refill", "stop"] = "refill",
    ) -> None:
        self.model = model
        self.settings = settings
        self.system = system
        self.overflow = overflow
        self.turns: list[Message] = []  # all of them; the model sees those from _first on
        self._first = 0
        self.last_stats: Stats | None = None
        self._cache = Cache(model.engine.slots)
        self._stop_asked = False

    @property
    def context_used(self) -> int:
        """Tokens the model remembers."""
        return len(self._cache)

    @property
    def context_size(self) -> int:
        """Tokens it can remember."""
        return self._cache.size

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a user's message. Leaving the iteration early, or `interrupt`, keeps what was said so far.

        Raises DoesNotFitError when the message cannot fit; the conversation is then as before.
        """
        self.turns.append(Message("user", text))
        try:
            dropped, prompt = self._fit()
        except DoesNotFitError:
            self.turns.pop()
            raise
        if dropped:
            yield dropped
        answer = self.model.answer(prompt, self.settings, self._cache, lambda: self._stop_asked)
        pieces: list[str] = []
        try:
            for piece in answer:
                pieces.append(piece)
                yield TextDelta(piece)
        finally:
            self._remember(answer, "".join(pieces))
            self._stop_asked = False  # here, not at the start: a Ctrl-C that comes early must count
        yield TurnDone(answer.stats(), answer.reason)

    def _remember(self, answer: Answer, text: str) -> None:
        """Keep the answer with its very ids, so that the next turn finds them in the cache."""
        whole = self.model.tokenizer.decode(answer.ids)
        exact = whole == text or whole.strip() == text.strip()  # not when a stop string cut it
        self.turns.append(Message("assistant", text, tuple(answer.ids) if exact else None))
        self.last_stats = answer.stats()

    def _fit(self) -> tuple[Evicted | None, list[int]]:
        """The dialog's ids, without as many oldest turns as must go; whole turns of question and answer."""
        ids = whole = self.model.dialog.encode(self._messages())
        limit = self._cache.size - (self._cache.size // ANSWER_SHARE if self.overflow == "refill" else 1)
        first = self._first
        while len(ids) > limit and self.overflow == "refill" and self._first + 2 < len(self.turns):
            self._first += 2
            ids = self.model.dialog.encode(self._messages())
        if len(ids) >= self._cache.size:
            self._first = first
            raise DoesNotFitError(
                f"the dialog makes {len(ids)} tokens, the context holds {self._cache.size}",
                "the message was not sent",
                "shorten it, /clear the dialog, or start with a larger --ctx-size",
            )
        gone = (self._first - first) // 2
        return (Evicted(gone, len(whole) - len(ids)) if gone else None), ids

    def _messages(self) -> list[Message]:
        return ([Message("system", self.system)] if self.system else []) + self.turns[self._first :]

    def interrupt(self) -> None:
        """Stop the answer in progress after the current token; may be called from a signal handler."""
        self._stop_asked = True

    def clear(self) -> None:
        """Forget the dialog, but not the system prompt."""
        self.turns.clear()
        self._first = 0
        self._cache.truncate(0)
        self.last_stats = None

    def set_system(self, text: str | None) -> None:
        """Another system prompt from the next message on; the dialog stays."""
        self.system = text or None

    def parameters(self) -> Mapping[str, object]:
        """What `set_parameter` can set, with the current values."""
        sampling = self.settings.sampling
        names = (name for name in sampling.__dataclass_fields__ if name != "logit_bias")
        return {**{name: getattr(sampling, name) for name in names}, "max_tokens": self.settings.max_tokens}

    def set_parameter(self, name: str, value: str) -> None:
        """Set a parameter from its text, "none" for no value. Raises UsageError on a bad name or value."""
        if name not in self.parameters():
            raise UsageError(f"there is no parameter {name!r}", remedy=f"known: {', '.join(self.parameters())}")
        parsed = _number(name, value)
        if name == "max_tokens":
            if parsed is not None and (not isinstance(parsed, int) or parsed < 1):
                raise UsageError(f"max_tokens cannot be {value!r}", remedy="give a whole number from 1 on, or none")
            self.settings = replace(self.settings, max_tokens=parsed)
        else:
            self.settings = replace(self.settings, sampling=self.settings.sampling.replace(**{name: parsed}))

    def describe(self) -> Mapping[str, str]:
        """Facts for people: model, engine, context."""
        return {**self.model.describe(), "overflow": self.overflow}


def _number(name: str, text: str) -> Any:
    """An int or float from its text; None for "none"."""
    if text.strip().lower() in ("none", "off", ""):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(f"{name} cannot be {text!r}", remedy="give a number, or none")
