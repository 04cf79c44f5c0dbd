"""`llamachat complete` by a server."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from llamachat.core.dialog import Message
from llamachat.core.thoughts import TAGGED, Thoughts
from llamachat.errors import LlamachatError
from llamachat.events import FinishReason, Stats
from llamachat.generation.in_flight import USUAL, InFlight, Patience
from llamachat.generation.prompting import Outcome, Prompting, Requests, check_stops
from llamachat.generation.prompts import schema_text
from llamachat.generation.thinking import Part, ThinkSplitter, trimmed
from llamachat.generation.until_loop import until_loop
from llamachat.remote.asking import Alternative, Ended, Format, Question, ScoredToken
from llamachat.remote.server import Server

Say = Callable[[str], None]


@dataclass
class Served:
    """A server's answer; what it tells of it is known when it has ended."""

    server: Server
    question: Question
    interrupted: Callable[[], bool]
    allow_loops: bool = True  # see loops.py
    scored: list[ScoredToken] = field(default_factory=list)
    ended: Ended | None = None
    reason: FinishReason = "interrupt"  # until it ends in another way
    all_thought: bool = False
    first_s: float = 0.0
    total_s: float = 0.0

    def parts(self) -> Iterator[Part]:
        """Raises LlamachatError, before the first piece or behind any."""
        begin = time.perf_counter()
        try:
            for part in trimmed(self._pieces()):
                self.first_s = self.first_s or time.perf_counter() - begin
                self.all_thought = part[1]
                yield part
        finally:
            self.total_s = time.perf_counter() - begin

    def _pieces(self) -> Iterator[Part]:
        """There are servers that leave a thought in the text, within the model's own marks. What is gone on with has none."""
        marks = ThinkSplitter(TAGGED if self.question.text is None else Thoughts({}))
        try:
            with closing(until_loop(self.server, self.question, self.interrupted, self.allow_loops)) as pieces:
                for each in pieces:
                    if isinstance(each, Ended):
                        self.ended, self.reason = each, each.reason
                    else:
                        self.scored += each.tokens
                        yield from [(each.text, True)] if each.thinking else marks.add(each.text)
        except LlamachatError:
            yield from marks.finish()
            raise
        yield from marks.finish()

    def stats(self) -> Stats:
        """Its tokens are 0 where the server does not count them."""
        usage = self.ended.usage if self.ended else None
        prompt, completion, cached = (
            (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) if usage else (0, 0, 0)
        )
        first = self.ended.first_s if self.ended else self.first_s
        total = self.ended.total_s if self.ended else self.total_s
        return Stats(prompt, cached, completion, first, total - first, context_used=0, context_size=0)


@dataclass(frozen=True)
class ServedCompleter(Prompting[Served, Question, Format]):
    """A server with all that stays the same from prompt to prompt."""

    server: Server
    model: str
    settings: Question  # what all questions have in common
    system: str | None
    raw: bool
    interrupted: Callable[[], bool]
    say: Say  # is told, once, of what the server cannot do
    grammar: Format | None = None
    patience: Patience = USUAL
    allow_loops: bool = True
    at_once = 8
    _said: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.model

    @property
    def load_s(self) -> float:
        return 0.0

    @property
    def reads(self) -> bool:
        return False

    def request(self, messages: list[Message] | str, followed: Format | None) -> Question:
        if followed:
            check_stops(self.settings.stop)
        if isinstance(messages, str):
            return replace(self.settings, text=messages, format=followed)
        return replace(self.settings, messages=messages, format=followed)

    def schema(self, value: object) -> Format:
        return Format("schema", schema_text(value))

    def begin(self, asked: Question) -> Served:
        return Served(self.server, asked, self.interrupted, self.allow_loops)

    def answers(
        self, parallel: int, requests: Callable[[Callable[[], bool]], Requests[Question]]
    ) -> Iterator[Outcome[Served]]:
        flight = InFlight(self._answered, parallel, self.interrupted, self.once, self.patience)
        with closing(flight.run(requests(lambda: flight.idle))) as outcomes:
            yield from outcomes

    def _answered(self, asked: Question, stopped: Callable[[], bool]) -> tuple[Served, list[Part]]:
        reply = Served(self.server, asked, stopped, self.allow_loops)
        return reply, list(reply.parts())

    def before(self, reply: Served) -> str:
        """Nothing: the server echoes."""
        return ""

    def tokens(self, reply: Served) -> Sequence[int]:
        """Where the server gives the ids of all of them; none otherwise."""
        ids = [token.id for token in reply.scored if token.id is not None]
        return ids if len(ids) == len(reply.scored) else []

    def usage(self, reply: Served) -> dict[str, int | None]:
        known = reply.ended is not None and reply.ended.usage is not None
        return super().usage(reply) if known else {"prompt_tokens": None, "completion_tokens": None}

    def logprobs(self, reply: Served) -> list[dict[str, Any]] | None:
        if self.settings.top_logprobs is None:
            return None
        return [{**_entry(token), "top": [_entry(other) for other in token.top]} for token in reply.scored]

    def finished(self, reply: Served) -> None:
        if reply.ended:
            ignored = ", ".join(reply.ended.ignored)
            for line in [f"the server ignores {ignored}"] * bool(ignored) + [*reply.ended.notes]:
                self.once(line)

    def once(self, line: str) -> None:
        """Say it, unless it has been said."""
        with self._lock:
            fresh = line not in self._said
            self._said.add(line)
        if fresh:
            self.say(line)


def _entry(token: Alternative) -> dict[str, Any]:
    return {"id": token.id, "token": token.text, "logprob": None if math.isnan(token.logprob) else token.logprob}
