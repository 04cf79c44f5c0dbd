"""Compiles grammars and computes masks in a limited process: llguidance is native code, which a grammar can make overflow
its stack, or work for hours. See grammars.py, which asks, and limited_worker.py.

Each request names what is to be done, and is answered by its result or by {"error": what llguidance says}.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

# As json.dumps writes: one line, and no white space that a small model could go on with for ever.
_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KEPT = 32  # compiled grammars that the next answer may have as well


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None
    library: LLTokenizer

    def __init__(self, tokens: list[str], specials: list[int], stops: list[int], ask: Callable[[Any], Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in tokens]
        self.special_token_ids, self.eos_token_id = specials, stops[0]
        self._ask = ask
        self.library = LLTokenizer(TokenizerWrapper(self), n_vocab=len(tokens), eos_token=stops)
        self.compiled = dict[str, LLMatcher]()

    def __call__(self, text: str) -> list[int]:
        """How text that is forced is written: as the tokenizer does, if it keeps every byte."""
        assert isinstance(text, str)  # the wrapper tries bytes first
        ids: list[int] | None = self._ask(text)
        return self.library.greedy_tokenize(text) if ids is None else ids

    def matcher(self, grammar: str) -> LLMatcher:
        """At the start of the grammar."""
        if grammar not in self.compiled:
            if len(self.compiled) >= _KEPT:
                del self.compiled[next(iter(self.compiled))]
            self.compiled[grammar] = LLMatcher(self.library, grammar, log_level=0)
        return self.compiled[grammar].deep_copy()


class Handler:
    """See limited_worker.py."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._ask = ask
        self._vocabularies = dict[int, _Vocabulary]()
        self._matchers = dict[int, LLMatcher]()

    def __call__(self, request: dict[str, Any]) -> Any:
        """Do what `do` says; `dropped` are matchers that nobody needs any more."""
        for number in request.pop("dropped", ()):
            self._matchers.pop(number, None)
        return getattr(self, f"_{request.pop('do')}")(**request)

    def _schema(self, text: str) -> Any:
        """The grammar of a JSON schema."""
        grammar = LLMatcher.grammar_from_json_schema(json.loads(text), defaults=_JSON_STYLE)
        return self._check(grammar)

    def _regex(self, text: str) -> Any:
        return self._check(LLMatcher.grammar_from_regex(text))

    def _lark(self, text: str) -> Any:
        return self._check(LLMatcher.grammar_from_lark(text))

    def _check(self, grammar: str) -> Any:
        message = LLMatcher.validate_grammar(grammar)
        return {"error": message} if message else {"grammar": grammar}

    def _vocabulary(self, number: int, tokens: list[str], specials: list[int], stops: list[int]) -> Any:
        self._vocabularies[number] = _Vocabulary(tokens, specials, stops, self._ask)
        return {}

    def _start(self, number: int, vocabulary: int, grammar: str, tokens: list[int]) -> Any:
        """A matcher that has consumed these."""
        matcher = self._matchers[number] = self._vocabularies[vocabulary].matcher(grammar)
        if tokens:
            matcher.consume_tokens(tokens)
        return self._state(number)

    def _state(self, number: int) -> dict[str, Any]:
        matcher = self._matchers[number]
        return {"error": matcher.get_error()} if matcher.is_error() else {"complete": matcher.is_stopped()}

    def _mask(self, number: int) -> Any:
        bits = self._matchers[number].compute_bitmask()
        return {"mask": base64.b64encode(bits).decode()} | self._state(number)

    def _forced(self, number: int) -> Any:
        return {"tokens": self._matchers[number].compute_ff_tokens()} | self._state(number)

    def _valid(self, number: int, tokens: list[int]) -> Any:
        """Which of these could come next."""
        valid = [bool(self._matchers[number].validate_tokens([token])) for token in tokens]
        return {"valid": valid} | self._state(number)

    def _add(self, number: int, token: int, forced: bool) -> Any:
        """The tokens that it forces then come along where they are wanted, as an answer takes longer than most steps."""
        self._matchers[number].consume_token(token)
        return self._forced(number) if forced else self._state(number)
