"""Answers that must follow a JSON schema, a regular expression or a grammar: llguidance says which tokens may come next.

https://github.com/guidance-ai/llguidance. It reads a grammar byte by byte, so that any tokenizer will do whose tokens'
bytes are known. Its masks go into the sampler before everything else.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llamachat.core.sampler import Constraint
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, ModelError
from llamachat.generation.grammars import Matcher, RefusedError, Vocabulary, process
from llamachat.generation.prompts import schema_text, unusable

if TYPE_CHECKING:
    from llamachat.remote.asking import Format


def compiled(wanted: "Format") -> str:
    """The grammar of what an answer must follow. Raises UsageError."""
    return {"schema": from_schema, "regex": from_regex, "lark": from_lark}[wanted.kind](wanted.text)


def from_schema(schema: object) -> str:
    """A JSON schema, parsed or as text -> a grammar. Raises UsageError where llguidance does not know a part of it."""
    return _compiled("JSON schema", "schema", schema_text(schema))


def from_regex(regex: str) -> str:
    """A regular expression (Rust's syntax: no look-around, no references) for the whole answer -> a grammar."""
    return _compiled("regular expression", "regex", regex)


def from_lark(text: str) -> str:
    """A context-free grammar in llguidance's kind of Lark, which begins at `start`."""
    return _compiled("grammar", "lark", text)


def _compiled(what: str, kind: str, text: str) -> str:
    try:
        return process().compiled(kind, text)
    except RefusedError as error:
        raise unusable(what, _reason(str(error))) from error


def _reason(message: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    lines = message.splitlines() or [""]
    return next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")[:200]


class Constrainer:
    """Makes constraints for one model's vocabulary: `size` ids, of which `stop_ids` end an answer.

    `drops_space`: the first space of an answer is no part of its text (see Tokenizer.dummy_prefix). So each token that
    begins with one has a twin without it, behind the vocabulary, which stands for it at the start.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, stop_ids: Collection[int], drops_space: bool) -> None:
        self._tokenizer, self.size, self.drops_space = tokenizer, size, drops_space
        self._refused = dict[str, str]()  # grammar -> why: a batch may ask for one that costs seconds on every line
        self._stop_ids = sorted(token for token in stop_ids if token < size)
        self._bytes = [tokenizer.token_bytes(token) for token in range(size)]
        self._spaced = [i for i, data in enumerate(self._bytes) if drops_space and data.startswith(b" ")]
        self.twins = {token: size + at for at, token in enumerate(self._spaced)}

    def of(self, grammar: str) -> Callable[[], Constraint]:
        """What makes a constraint for each answer to this grammar. Raises UsageError."""
        if reason := self._refused.get(grammar):
            raise unusable("grammar", _reason(reason))
        start = Matcher(self._vocabulary, grammar)
        try:
            start.start()
            first = self._first(start) if self.drops_space else None
        except RefusedError as error:
            self._refused[grammar] = str(error)
            raise unusable("grammar", _reason(str(error))) from error
        return lambda: Guided(self, Matcher(self._vocabulary, grammar), first)

    def mask(self, matcher: Matcher) -> NDArray[np.bool_]:
        """[size] the tokens that may come next. Raises RefusedError."""
        bits = np.frombuffer(matcher.mask(), np.uint8)
        return np.unpackbits(bits, count=self.size, bitorder="little").view(np.bool_)

    def is_lone_space(self, token: int) -> bool:
        return self._bytes[token] == b" "

    def _first(self, start: Matcher) -> NDArray[np.bool_]:
        """The tokens that may come first: with their twins in the place of those that begin with a space.

        A mask would have of these only what llguidance's way to write forced text has. A lone space changes nothing.
        """
        mask = self.mask(start)
        valid = start.valid([self.twins[token] for token in self._spaced])
        for token, fits in zip(self._spaced, valid, strict=True):
            mask[token] = self.is_lone_space(token) or fits
        return mask

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        tokens = [*self._bytes, *(self._bytes[token].removeprefix(b" ") for token in self._spaced)]
        names = {token: name for name, token in self._tokenizer.specials.items() if token < self.size}
        names = {token: f"<|stop {token}|>" for token in self._stop_ids} | names
        stops = self._stop_ids
        if not stops:  # it must have one; this is none of the model's
            stops, names[len(tokens)] = [len(tokens)], "<|stop|>"
            tokens.append(b"")
        for token, name in names.items():
            tokens[token] = name.encode()
        return Vocabulary(tokens, sorted(names), stops, self._written)

    def _written(self, text: str) -> list[int] | None:
        """How text that is forced is written: as the tokenizer does, if it keeps every byte. No error may come of it."""
        try:
            ids = self._tokenizer.encode(text, start=False)
        except FormatError:
            return None
        exact = b"".join(map(self._tokenizer.token_bytes, ids)) == text.encode()
        return ids if exact else None


class Guided:
    """A Constraint: how far an answer has come in its grammar."""

    def __init__(self, vocabulary: Constrainer, matcher: Matcher, first: NDArray[np.bool_] | None) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher
        self._first = first  # what may come first, where that is special

    @property
    def complete(self) -> bool:
        return self._matcher.complete

    def allowed(self) -> NDArray[np.bool_]:
        """Raises ModelError where the grammar needs more work than may be done for a token."""
        if self._first is not None:
            return self._first
        with _too_much():
            return self._vocabulary.mask(self._matcher)

    def forced(self) -> list[int]:
        if self._first is not None:
            return []
        with _too_much():
            return list(takewhile(lambda token: token < self._vocabulary.size, self._matcher.forced()))

    def add(self, token: int) -> None:
        """Raises ModelError, as `allowed`."""
        if self._first is not None:
            self._first = None
            if self._vocabulary.is_lone_space(token):
                return
            token = self._vocabulary.twins.get(token, token)
        with _too_much():
            self._matcher.add(token)


@contextmanager
def _too_much() -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        reason = _reason(str(error))
        if (
            "doesn't satisfy the grammar" in reason
        ):  # it was allowed: where nothing fits, llguidance offers what does not
            reason = "the model's tokenizer cannot write what the grammar wants"
            raise ModelError(reason, "the answer ends here") from error
        raise ModelError(f"the grammar is too much: {reason}", "the answer ends here") from error
