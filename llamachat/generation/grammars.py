"""Grammars as a process of their own sees them (grammar_worker.py): nothing that one does there reaches us or the others.

There is one such process. It may end at any request: whose grammar it was is then refused, and what the others had in it
is made again in the next process when they are asked for.
"""

import base64
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from llamachat.system.limited import EndedError, Limited

MAX_SOURCE = 1 << 20  # characters of a grammar
MAX_MEMORY = 1 << 30  # bytes of the process
TIMEOUT = 10.0  # seconds of one request
PATIENCE = 0.1  # seconds of each token of an answer, on the whole, beside twice TIMEOUT
_WORKER = Path(__file__).with_name("grammar_worker.py")

Request = dict[str, Any]
Lives = Mapping[int, Callable[[], Request]]  # number of what must live in the process -> the request that makes it
Answering = Callable[[Any], Any]  # what the process asks meanwhile -> the answer


class RefusedError(Exception):
    """`str()` is what is wrong with the grammar."""


class Process:
    """The process that all grammars share. It is started when there is a first one."""

    def __init__(self) -> None:
        self._limited: Limited | None = None
        self._lives = set[int]()
        self.dropped = list[int]()  # matchers that nobody has any more
        self.numbers = count()

    def start(self) -> Limited:
        """The process; it is sooner there for who starts it before it is needed."""
        if self._limited is None or not self._limited.alive:
            self._limited, self._lives = Limited(_WORKER, MAX_MEMORY, TIMEOUT), set()
        return self._limited

    def compiled(self, kind: str, text: str) -> str:
        """A grammar of a `kind` (schema, regex, lark) as llguidance writes it. Raises RefusedError."""
        if len(text) > MAX_SOURCE:
            raise RefusedError(f"it has more than {MAX_SOURCE:,} characters")
        grammar: str = self.ask({"do": kind, "text": text}, {}, str)["grammar"]
        return grammar

    def ask(self, request: Request, lives: Lives, answering: Answering) -> Request:
        """Its answer. Raises RefusedError.

        Too much memory may be what others hold: then all is tried once more in a new process, alone.
        """
        alone = self._lives <= lives.keys()
        try:
            return self._asked(request, lives, answering)
        except EndedError as error:
            self._limited = None
            if alone or error.timed_out:
                reason = f"more than {TIMEOUT:g} s" if error.timed_out else "too much memory, or too deep a recursion"
                raise RefusedError(f"it needs {reason}") from error
        return self.ask(request, lives, answering)

    def _asked(self, request: Request, lives: Lives, answering: Answering) -> Request:
        limited = self.start()
        for number in [each for each in lives if each not in self._lives]:  # in this order
            _checked(limited.ask(lives[number](), answering))
            self._lives.add(number)
        dropped = [self.dropped.pop() for _ in range(len(self.dropped))]
        self._lives.difference_update(dropped)
        return _checked(limited.ask({**request, "dropped": dropped}, answering))


def _checked(answer: Request) -> Request:
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer


@cache
def process() -> Process:
    return Process()


class Vocabulary:
    """What a model can write.

    tokens: the bytes of each. encode: how its tokenizer writes a text; None where it would not keep every byte.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        specials: Sequence[int],
        stops: Sequence[int],
        encode: Callable[[str], list[int] | None],
    ) -> None:
        self._tokens, self._specials, self._stops, self.encode = tokens, specials, stops, encode
        self.number = next(process().numbers)

    def made(self) -> Request:
        return {
            "do": "vocabulary",
            "number": self.number,
            "tokens": [token.decode("latin-1") for token in self._tokens],
            "specials": self._specials,
            "stops": self._stops,
        }


class Matcher:
    """How far a text has come in a grammar. Each method raises RefusedError."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        self._vocabulary, self._grammar = vocabulary, grammar
        self._number = next(process().numbers)
        self._tokens = list[int]()
        self._forced: list[int] | None = None  # what comes next; None where nobody has asked
        self._spent = 0.0  # seconds
        self.complete = False
        weakref.finalize(self, process().dropped.append, self._number).atexit = False

    def start(self) -> None:
        """Compile the grammar; what is asked for does it too."""
        self._ask("state")

    def mask(self) -> bytes:
        """A bit for each token that may come next, the lowest first."""
        return base64.b64decode(self._ask("mask")["mask"])

    def forced(self) -> list[int]:
        """Tokens that come next as there is no other way."""
        if self._forced is None:
            self._forced = list[int](self._ask("forced")["tokens"])
        return self._forced

    def valid(self, tokens: Sequence[int]) -> list[bool]:
        """Which of these could come next."""
        valid: list[bool] = self._ask("valid", tokens=list(tokens))["valid"]
        return valid

    def add(self, token: int) -> None:
        self._forced = self._ask("add", token=token, forced=self._forced is not None).get("tokens")
        self._tokens.append(token)

    def _ask(self, what: str, **more: Any) -> Request:
        if self._spent > 2 * TIMEOUT + PATIENCE * len(self._tokens):
            raise RefusedError(f"it takes more than {PATIENCE:g} s for each token")
        begin = time.perf_counter()
        lives = {self._vocabulary.number: self._vocabulary.made, self._number: self._made}
        answer = process().ask({"do": what, "number": self._number, **more}, lives, self._vocabulary.encode)
        self._spent += time.perf_counter() - begin
        self.complete = answer["complete"]
        return answer

    def _made(self) -> Request:
        vocabulary = self._vocabulary.number
        return {
            "do": "start",
            "number": self._number,
            "vocabulary": vocabulary,
            "grammar": self._grammar,
            "tokens": self._tokens,
        }
