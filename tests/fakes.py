"""Stand-ins for the parts a test is not about."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Literal

from llamachat.errors import CatalogError, UsageError
from llamachat.events import (
    Branch,
    Event,
    Evicted,
    FinishReason,
    SavedDialog,
    Stats,
    TextDelta,
    TokenView,
    Turn,
    TurnDone,
)

UNTIL_INTERRUPT = object()  # a step of an answer: nothing more comes until interrupt()

Step = str | TextDelta | Evicted | Exception | Callable[[], object] | object


@dataclass(frozen=True)
class Exchange:
    """A question with its answer, one piece a token."""

    question: str
    pieces: tuple[str, ...] = ()
    reason: FinishReason = "stop"

    @property
    def answer(self) -> str:
        return "".join(self.pieces)


class FakeSession:
    """A ChatSession whose answers are scripted with enqueue(); without a script it echoes.

    A branch is the list of its exchanges; its id is its place from 1 on. Whatever is called in the midst of an answer,
    interrupt() apart, is an AssertionError.
    """

    def __init__(self, *answers: Iterable[Step]) -> None:
        self.history: list[tuple[str, str]] = []  # all that was said since clear(), in any branch
        self.interrupts = 0
        self.pending_notices: list[str] = []
        self.disk: dict[str, list[Exchange]] = {}
        self.models = ["Fake-1B", "Fake-7B"]
        self._answers: list[Iterable[Step]] = list(answers)
        self._parameters: dict[str, object] = {"temperature": 0.6, "top_k": None, "top_p": 0.9, "seed": 7}
        self._model = self.models[0]
        self._system: str | None = "Be brief."
        self._stats: Stats | None = None
        self._used = 0
        self._name: str | None = "fake-dialog"
        self._branches: list[list[Exchange]] = [[]]
        self._active = 0
        self._dropped = 0
        self._answering = False
        self._interrupted = Flag()
        self.at_work: Callable[[], object] | None = None  # what happens while something slow, no answer, is done

    def enqueue(self, *steps: Step) -> None:
        """The next answer: pieces of text, events, exceptions to raise and functions to call there."""
        self._answers.append(steps)

    # ---- what it is ----

    @property
    def system(self) -> str | None:
        self._idle()
        return self._system

    @property
    def last_stats(self) -> Stats | None:
        self._idle()
        return self._stats

    @property
    def context_used(self) -> int:
        self._idle()
        return self._used

    @property
    def context_size(self) -> int:
        self._idle()
        return 8192

    @property
    def name(self) -> str | None:
        self._idle()
        return self._name

    def describe(self) -> Mapping[str, str]:
        self._idle()
        return {"model": self._model, "weights": "int4, 0.5 GB", "engine": "a script", "memory": "0.7 GB"}

    def notices(self) -> Sequence[str]:
        self._idle()
        now, self.pending_notices = self.pending_notices, []
        return now

    # ---- answering ----

    def ask(self, text: str) -> Iterator[Event]:
        return self._answer(self._dialog(), Exchange(text))

    def regenerate(self) -> Iterator[Event]:
        *before, last = self._some_dialog()
        return self._answer(self._branch(before), Exchange(last.question))

    def resume(self) -> Iterator[Event]:
        dialog = self._some_dialog()
        if dialog[-1].reason == "stop":
            raise UsageError("the last answer had ended by itself")
        return self._answer(dialog, dialog.pop())

    def edit(self, number: int, text: str) -> Iterator[Event]:
        dialog = self._some_dialog()
        if not 1 <= number <= len(dialog):
            raise UsageError(f"there is no question {number}")
        return self._answer(self._branch(dialog[: number - 1]), Exchange(text))

    def take_alternative(self, index: int, choice: int) -> Iterator[Event]:
        *before, last = self._some_dialog()
        tokens = self.tokens()
        if not 1 <= index <= len(tokens) or not 1 <= choice <= len(tokens[index - 1].top):
            raise UsageError(f"there is no alternative {choice} of token {index}")
        start = last.answer[: len("".join(last.pieces[: index - 1]))] + tokens[index - 1].top[choice - 1][0]
        self._answers.insert(0, (start, " and so on"))
        return self._answer(self._branch(before), Exchange(last.question))

    def interrupt(self) -> None:
        self.interrupts += 1
        self._interrupted.set()

    def _answer(self, dialog: list[Exchange], exchange: Exchange) -> Iterator[Event]:
        self._idle()
        self._interrupted.clear()  # what is stopped is what comes from here on
        return self._stream(dialog, exchange)

    def _stream(self, dialog: list[Exchange], exchange: Exchange) -> Iterator[Event]:
        steps = self._answers.pop(0) if self._answers else ("You said: ", exchange.question)
        pieces = list(exchange.pieces)
        self._answering = True
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if step is UNTIL_INTERRUPT:
                    self._interrupted.wait()
                if callable(step):
                    step()
                if self._interrupted.is_set():
                    break
                if isinstance(step, str):
                    pieces.append(step)
                    yield TextDelta(step)
                elif isinstance(step, TextDelta):
                    yield step
                elif isinstance(step, Evicted):
                    self._dropped += step.turns
                    yield step
        finally:
            reason: FinishReason = "interrupt" if self._interrupted.is_set() else "stop"
            self._interrupted.clear()
            self._answering = False
            dialog.append(replace(exchange, pieces=tuple(pieces), reason=reason))
            self.history += [("user", exchange.question), ("assistant", "".join(pieces))]
        yield self._done(len(pieces), reason)

    def _done(self, tokens: int, reason: FinishReason) -> TurnDone:
        self._used += 10 + tokens
        self._stats = Stats(
            prompt_tokens=10,
            reused_tokens=4,
            completion_tokens=tokens,
            prefill_s=0.25,
            decode_s=(tokens - 1) / 40,
            context_used=self._used,
            context_size=8192,
        )
        return TurnDone(self._stats, reason)

    # ---- the dialog ----

    def turns(self) -> Sequence[Turn]:
        self._idle()
        system = [Turn(0, "system", self._system, 3, "pinned")] if self._system else []
        return system + [turn for number, one in enumerate(self._dialog(), 1) for turn in self._both(number, one)]

    def _both(self, number: int, exchange: Exchange) -> tuple[Turn, Turn]:
        seen: Literal["kept", "dropped"] = "dropped" if number <= self._dropped else "kept"
        question = Turn(number, "user", exchange.question, 6, seen)
        return question, Turn(number, "assistant", exchange.answer, len(exchange.pieces), seen)

    def clear(self) -> None:
        self._idle()
        self._branches, self._active, self._used, self._dropped = [[]], 0, 0, 0
        self.history.clear()

    def begin(self, messages: Sequence[tuple[Literal["user", "assistant"], str]]) -> None:
        self.clear()
        pairs = zip(messages[::2], messages[1::2], strict=True)
        self._branches = [[Exchange(question, (answer,)) for (_, question), (_, answer) in pairs]]

    def set_system(self, text: str | None) -> None:
        self._idle()
        self._system = text

    def undo(self, count: int = 1) -> int:
        dialog = self._some_dialog()
        undone = min(count, len(dialog))
        self._branch(dialog[: len(dialog) - undone])
        return undone

    def fork(self) -> int:
        self._idle()
        left = self._active + 1
        self._branch(list(self._dialog()))
        return left

    def branches(self) -> Sequence[Branch]:
        self._idle()
        return [self._view(place, dialog) for place, dialog in enumerate(self._branches)]

    def _view(self, place: int, dialog: list[Exchange]) -> Branch:
        shared = next((n for n, (a, b) in enumerate(zip(dialog, self._dialog(), strict=False)) if a != b), None)
        forked = min(len(dialog), len(self._dialog())) if shared is None else shared
        last = dialog[-1].question.partition("\n")[0] if dialog else ""
        return Branch(place + 1, place == self._active, len(dialog), last, forked)

    def switch(self, branch: int) -> None:
        self._idle()
        if not 1 <= branch <= len(self._branches):
            raise UsageError(f"there is no branch {branch}")
        self._active = branch - 1

    def _dialog(self) -> list[Exchange]:
        return self._branches[self._active]

    def _some_dialog(self) -> list[Exchange]:
        self._idle()
        if not self._dialog():
            raise UsageError("nothing was asked yet")
        return self._dialog()

    def _branch(self, dialog: list[Exchange]) -> list[Exchange]:
        self._branches.append(dialog)
        self._active = len(self._branches) - 1
        return dialog

    # ---- on disk ----

    def save(self, name: str) -> None:
        self._idle()
        if name in self.disk:
            raise UsageError(f"a dialog {name} exists already")
        self.disk[name], self._name = list(self._dialog()), name

    def load(self, name: str) -> None:
        self._idle()
        if name not in self.disk:
            raise UsageError(f"no dialog is called {name}")
        self._branches, self._active, self._name = [list(self.disk[name])], 0, name

    def saved(self) -> Sequence[SavedDialog]:
        self._idle()
        return [
            SavedDialog(name, 1e9, len(dialog), dialog[0].question if dialog else "", self._model)
            for name, dialog in self.disk.items()
        ]

    def export(self, path: Path) -> None:
        said = [(turn.role, turn.text) for turn in self.turns()]
        if path.exists():
            raise UsageError(f"{path} exists already")
        text = json.dumps(said) if path.suffix == ".json" else "".join(f"**{role}**: {text}\n\n" for role, text in said)
        path.write_text(text, encoding="utf-8")

    def close(self) -> None:
        self._idle()

    # ---- settings ----

    def parameters(self) -> Mapping[str, object]:
        self._idle()
        return self._parameters

    def set_parameter(self, name: str, value: str) -> None:
        self._idle()
        if name not in self._parameters:
            raise UsageError(f"no parameter is called {name}")
        self._parameters[name] = float(value)

    def use_model(self, name: str) -> None:
        self._idle()
        if name not in self.models:
            raise CatalogError(f"there is no model {name}")
        self._at_work()
        self._model = name

    # ---- seeing inside ----

    def tokens(self, alternatives: int = 10) -> Sequence[TokenView]:
        """Each token is as likely as its length says; the alternatives are the same three."""
        pieces = self._some_dialog()[-1].pieces
        self._at_work()
        others = ((" maybe", 2, -1.5), (" never", 3, -3.0), (" ever", 4, -4.5))
        return [
            TokenView(piece, 1, -len(piece) / 4, ((piece, 1, -len(piece) / 4), *others)[:alternatives])
            for piece in pieces
        ]

    def why(self) -> Sequence[tuple[str, str]]:
        self._some_dialog()
        return [("temperature 0.6", "sharpened every choice"), ("top_p 0.9", "cut 3 of 10 choices")]

    def _at_work(self) -> None:
        self._interrupted.clear()
        if self.at_work:
            self.at_work()
        if self._interrupted.is_set():
            raise UsageError("stopped")

    def _idle(self) -> None:
        assert not self._answering, "only interrupt() may be called while an answer is under way"
