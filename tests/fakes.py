"""Stand-ins for the parts a test is not about."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Event as Flag

from llamachat.errors import UsageError
from llamachat.events import Event, Evicted, FinishReason, Stats, TextDelta, TurnDone

UNTIL_INTERRUPT = object()  # a step of an answer: nothing more comes until interrupt()

Step = str | Evicted | Exception | Callable[[], object] | object


class FakeSession:
    """A ChatSession whose answers are scripted with enqueue(); without a script it echoes."""

    def __init__(self, *answers: Iterable[Step]) -> None:
        self.history: list[tuple[str, str]] = []
        self.last_stats: Stats | None = None
        self.context_used, self.context_size = 0, 8192
        self.system: str | None = "Be brief."
        self.interrupts = 0
        self._answers: list[Iterable[Step]] = list(answers)
        self._parameters: dict[str, object] = {"temperature": 0.6, "top_k": None, "top_p": 0.9, "seed": 7}
        self._interrupted = Flag()

    def enqueue(self, *steps: Step) -> None:
        """The next answer: pieces of text, events, exceptions to raise and functions to call there."""
        self._answers.append(steps)

    def ask(self, text: str) -> Iterator[Event]:
        steps = self._answers.pop(0) if self._answers else ("You said: ", text)
        pieces: list[str] = []
        self._interrupted.clear()
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
                elif isinstance(step, Evicted):
                    yield step
        finally:
            self.history += [("user", text), ("assistant", "".join(pieces))]
        yield self._done(len(pieces), "interrupt" if self._interrupted.is_set() else "stop")

    def _done(self, tokens: int, reason: FinishReason) -> TurnDone:
        self.context_used += 10 + tokens
        self.last_stats = Stats(
            prompt_tokens=10,
            reused_tokens=4,
            completion_tokens=tokens,
            prefill_s=0.25,
            decode_s=(tokens - 1) / 40,
            context_used=self.context_used,
            context_size=self.context_size,
        )
        return TurnDone(self.last_stats, reason)

    def interrupt(self) -> None:
        self.interrupts += 1
        self._interrupted.set()

    def clear(self) -> None:
        self.history.clear()
        self.context_used = 0

    def set_system(self, text: str | None) -> None:
        self.system = text

    def parameters(self) -> Mapping[str, object]:
        return self._parameters

    def set_parameter(self, name: str, value: str) -> None:
        if name not in self._parameters:
            raise UsageError(f"no parameter is called {name}")
        self._parameters[name] = float(value)

    def describe(self) -> Mapping[str, str]:
        return {"model": "Fake-1B", "engine": "a script"}
