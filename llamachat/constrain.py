"""Answers that must follow a JSON schema, a regular expression or a grammar: llguidance says which tokens may come next.

https://github.com/guidance-ai/llguidance. It reads a grammar byte by byte, so that any tokenizer will do whose tokens'
bytes are known. Its masks go into the sampler before everything else.
"""

import json
from collections.abc import Callable, Collection
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamachat.errors import FormatError, ModelError, UsageError
from llamachat.sample import Constraint
from llamachat.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# As json.dumps writes: one line, and no white space that a small model could go on with for ever.
_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def from_schema(schema: object) -> str:
    """A JSON schema, parsed or as text -> a grammar. Raises UsageError where llguidance does not know a part of it."""
    from llguidance import LLMatcher

    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        schema = json.loads(text, parse_int=_exact, parse_constant=_exact)
        if not isinstance(schema, dict):
            raise ValueError("it is not an object")
        grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_STYLE)
    except (ValueError, RecursionError) as error:
        raise _refusal("JSON schema", str(error)) from error
    return _checked("JSON schema", grammar)


def _exact(digits: str) -> int:
    """Raises ValueError for what llguidance, which computes with float64, would change; Infinity and NaN among it."""
    if abs(number := int(digits)) > 2**53:
        raise ValueError(f"{number} is too large")
    return number


def from_regex(regex: str) -> str:
    """A regular expression (Rust's syntax: no look-around, no references) for the whole answer -> a grammar."""
    from llguidance import LLMatcher

    return _checked("regular expression", LLMatcher.grammar_from_regex(regex))


def from_lark(text: str) -> str:
    """A context-free grammar in llguidance's kind of Lark, which begins at `start`."""
    from llguidance import LLMatcher

    return _checked("grammar", LLMatcher.grammar_from_lark(text))


def _checked(what: str, grammar: str) -> str:
    from llguidance import LLMatcher

    if message := LLMatcher.validate_grammar(grammar):
        raise _refusal(what, message)
    return grammar


def _refusal(what: str, message: str) -> UsageError:
    return UsageError(f"the {what} cannot be used: {_reason(message)}", "nothing was generated")


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
        self._stop_ids = sorted(token for token in stop_ids if token < size)
        self._bytes = [tokenizer.token_bytes(token) for token in range(size)]
        self._spaced = [i for i, data in enumerate(self._bytes) if drops_space and data.startswith(b" ")]
        self.twins = {token: size + at for at, token in enumerate(self._spaced)}

    def of(self, grammar: str) -> Callable[[], Constraint]:
        """What makes a constraint for each answer to this grammar. Raises UsageError."""
        from llguidance import LLMatcher

        start = LLMatcher(self._library, grammar, log_level=0)
        if start.is_error():
            raise _refusal("grammar", start.get_error())
        first = self._first(start) if self.drops_space else None
        return lambda: Guided(self, start.deep_copy(), first)

    def mask(self, matcher: "LLMatcher") -> NDArray[np.bool_]:
        """[size] the tokens that may come next."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self.size, bitorder="little").view(np.bool_)

    def is_lone_space(self, token: int) -> bool:
        return self._bytes[token] == b" "

    def _first(self, start: "LLMatcher") -> NDArray[np.bool_]:
        """The tokens that may come first: with their twins in the place of those that begin with a space.

        A mask would have of these only what llguidance's way to write forced text has. A lone space changes nothing.
        """
        mask = self.mask(start)
        for token in self._spaced:
            mask[token] = self.is_lone_space(token) or start.validate_tokens([self.twins[token]])
        return mask

    @cached_property
    def _library(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = [*self._bytes, *(self._bytes[token].removeprefix(b" ") for token in self._spaced)]
        names = {token: name for name, token in self._tokenizer.specials.items() if token < self.size}
        names = {token: f"<|stop {token}|>" for token in self._stop_ids} | names
        stops = self._stop_ids
        if not stops:  # it must have one; this is none of the model's
            stops, names[len(tokens)] = [len(tokens)], "<|stop|>"
            tokens.append(b"")
        for token, name in names.items():
            tokens[token] = name.encode()
        vocabulary = _Vocabulary(self._tokenizer, tokens, sorted(names), stops[0])
        vocabulary.library = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=len(tokens), eos_token=stops)
        return vocabulary.library


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None
    library: "LLTokenizer"

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], specials: list[int], stop: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, specials, stop
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """How text that is forced is written: as the tokenizer does, if it keeps every byte. No error may come of it."""
        assert isinstance(text, str)  # the wrapper tries bytes first
        try:
            ids = self._tokenizer.encode(text, start=False)
        except FormatError:
            ids = []
        exact = b"".join(map(self._tokenizer.token_bytes, ids)) == text.encode()
        return ids if exact else self.library.greedy_tokenize(text)


class Guided:
    """A Constraint: how far an answer has come in its grammar."""

    def __init__(self, vocabulary: Constrainer, matcher: "LLMatcher", first: NDArray[np.bool_] | None) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher
        self._first = first  # what may come first, where that is special

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.bool_]:
        """Raises ModelError where the grammar needs more work than llguidance does for a token."""
        if self._first is not None:
            return self._first
        mask = self._vocabulary.mask(self._matcher)
        self._check()
        return mask

    def forced(self) -> list[int]:
        tokens = self._matcher.compute_ff_tokens() if self._first is None else []
        return list(takewhile(lambda token: token < self._vocabulary.size, tokens))

    def add(self, token: int) -> None:
        """Raises ModelError, as `allowed`."""
        if self._first is not None:
            self._first = None
            if self._vocabulary.is_lone_space(token):
                return
            token = self._vocabulary.twins.get(token, token)
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        reason = _reason(self._matcher.get_error())
        if (
            "doesn't satisfy the grammar" in reason
        ):  # it was allowed: where nothing fits, llguidance offers what does not
            raise ModelError("the model's tokenizer cannot write what the grammar wants", "the answer ends here")
        raise ModelError(f"the grammar is too much: {reason}", "the answer ends here")
