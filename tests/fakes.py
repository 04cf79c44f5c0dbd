"""Stand-ins for the parts a test is not about."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llamachat.chat.asked import Asked, Beginning, Capability, Seen
from llamachat.chat.kept_dialog import Dialog
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.chat.tree import Node, Tree
from llamachat.core.sampling import SamplingParams
from llamachat.errors import CatalogError, UsageError
from llamachat.events import Event, Evicted, FinishReason, Progress, Stats, TextDelta, TextSize, TokenView, TurnDone

UNTIL_INTERRUPT = object()  # a step of an answer: nothing more comes until interrupt()

Step = str | TextDelta | Evicted | Exception | Callable[[], object] | object


class Script:
    """What models are to say, and what happens while something slow, no answer, is done."""

    def __init__(self, answers: Iterable[Iterable[Step]] = ()) -> None:
        self.answers: list[Iterable[Step]] = list(answers)
        self.at_work: Callable[[], object] | None = None

    def work(self) -> None:
        if self.at_work:
            self.at_work()


class Alone:
    """Of a backend: the only model where it is, which can chat and has nothing to remark."""

    def check(self) -> None:
        pass

    def others(self) -> Sequence[tuple[str, str]]:
        return ()

    def sibling(self, name: str) -> None:
        pass

    def remarks(self) -> Sequence[str]:
        return ()

    def weigh(self, text: str, system: str | None) -> TextSize | None:
        return None


class ScriptedBackend(Alone):
    """Answers as its script says, one piece a token; without a script it echoes."""

    tokenizer, notes, system, context_size = "pieces", (), "Be brief.", 8192
    sampling = SamplingParams(seed=7)

    def __init__(self, name: str = "Fake-1B", script: Script | None = None) -> None:
        self.capabilities: frozenset[Capability] = frozenset({"scores", "draws", "continues", "window"})
        self.name = self.reference = name
        self.script = script or Script()
        self.answering = False
        self.context_used = 0
        self._dropped = 0
        self._pieces: list[str] = []  # by id

    def describe(self) -> Mapping[str, str]:
        return {"model": self.name, "weights": "int4, 0.5 GB", "engine": "a script", "memory": "0.7 GB"}

    def unheard(self, settings: Settings) -> str | None:
        return None

    def weigh(self, text: str, system: str | None) -> TextSize:
        """A word is a token."""
        return TextSize(len(text.split()), True, self.context_size - 10, 2 * self.context_size)

    def respond(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        asked.path[-1].tokens = 6
        answers = self.script.answers
        return self._events(answers.pop(0) if answers else ("You said: ", asked.path[-1].text), asked)

    def _events(self, steps: Iterable[Step], asked: Asked) -> Iterator[Event]:
        tokens = len(asked.answer.ids or ())
        reason: FinishReason = "stop"
        self.answering = True
        try:
            for step in steps:
                event = self._event(step, asked)
                if asked.interrupted():
                    reason = "interrupt"
                    break
                if event:
                    tokens += isinstance(event, TextDelta)
                    yield event
        finally:
            self.answering = False
        self.context_used += 10 + tokens
        yield TurnDone(Stats(10, 4, tokens, 0.25, (tokens - 1) / 40, self.context_used, 8192), reason, exact=True)

    def _event(self, step: Step, asked: Asked) -> Event | None:
        if isinstance(step, Exception):
            raise step
        while step is UNTIL_INTERRUPT and not asked.interrupted():
            time.sleep(0.001)
        if callable(step):
            step()
        if isinstance(step, Evicted):
            self._dropped += step.turns
            return step
        if isinstance(step, TextDelta):
            step = f"<think>{step.text}</think>" if step.thinking else step.text
        return TextDelta(step, ids=self._ids(step)) if isinstance(step, str) else None

    def _ids(self, piece: str) -> tuple[int]:
        self._pieces.append(piece)
        return (len(self._pieces) - 1,)

    def seen(self, line: Sequence[Node], system: str | None) -> Seen:
        return Seen(self._dropped, 3)

    def forget(self) -> None:
        self.context_used = self._dropped = 0

    def take_up(self, dialog: str, tree: Tree, say: Callable[[str], None]) -> None:
        self.forget()

    def keep(self, dialog: str) -> None:
        pass

    def recall(self, answers: Callable[[str], Iterable[Sequence[int]]]) -> None:
        pass

    def tokens(self, asked: Asked, alternatives: int) -> Sequence[TokenView]:
        """Each token is as likely as its length says; the alternatives are the same three."""
        self.script.work()
        if asked.interrupted():
            raise UsageError("stopped")
        others = ((" maybe", 2, -1.5), (" never", 3, -3.0), (" ever", 4, -4.5))
        pieces = [self._pieces[id] for id in asked.answer.ids or ()]
        return [
            TokenView(piece, 1, -len(piece) / 4, ((piece, 1, -len(piece) / 4), *others)[:alternatives])
            for piece in pieces
        ]

    def why(self, asked: Asked, settings: Settings) -> Sequence[tuple[str, str]]:
        return [("temperature 0.6", "sharpened every choice"), ("top_p 0.9", "cut 3 of 10 choices")]

    def alternative(self, asked: Asked, index: int, choice: int) -> Beginning:
        tokens = self.tokens(asked, 10)
        if not 1 <= index <= len(tokens):
            raise UsageError(f"there is no token {index}", remedy=f"the last answer has {len(tokens)}")
        if choice > len(tokens[index - 1].top):
            raise UsageError(f"there is no alternative {choice} of token {index}")
        start = "".join(token.text for token in tokens[: index - 1]) + tokens[index - 1].top[choice - 1][0]
        self.script.answers.insert(0, (" and so on",))
        return Beginning(start, self._ids(start), ends=False)


ASKED = {name for name in {**vars(Dialog), **vars(Session)} if not name.startswith("_")} - {"interrupt"}


class FakeSession(Session):
    """A real session with scripted answers. Whatever is asked of it in the midst of one, interrupt() apart, is an
    AssertionError."""

    def __init__(self, *answers: Iterable[Step], archive: Archive | None = None) -> None:
        self.script = Script(answers)
        self.interrupts = 0
        self.pending_notices: list[str] = []
        backend = ScriptedBackend("Fake-1B", self.script)
        settings = Settings(backend.sampling)
        super().__init__(backend, settings, backend.system, archive=archive, another=self._another_model)

    def __getattribute__(self, name: str) -> Any:
        backend = object.__getattribute__(self, "__dict__").get("backend")
        assert not (name in ASKED and backend and backend.answering), "only interrupt() while an answer is under way"
        return super().__getattribute__(name)

    def _another_model(self, name: str, progress: Progress) -> ScriptedBackend:
        if name not in ("Fake-1B", "Fake-7B"):
            raise CatalogError(f"there is no model {name}")
        progress("packing", 1_000_000, 4_000_000)
        self.script.work()
        progress("packing", 3_000_000, 4_000_000)
        return ScriptedBackend(name, self.script)

    def enqueue(self, *steps: Step) -> None:
        """The next answer: pieces of text, events, exceptions to raise and functions to call there."""
        self.script.answers.append(steps)

    @property
    def said(self) -> list[tuple[str, str]]:
        """All that was said, in any branch."""
        return [(node.role, node.text) for node in self.history.tree]

    def notices(self) -> Sequence[str]:
        now, self.pending_notices = [*super().notices(), *self.pending_notices], []
        return now

    def interrupt(self) -> None:
        self.interrupts += 1
        super().interrupt()
