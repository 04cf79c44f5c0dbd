"""A server's logprobs, in both shapes: of chats (`content`: a list of tokens) and of the older completions (four lists)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from llamachat.checks import is_count, is_number, is_whole
from llamachat.remote.asking import Alternative, ScoredToken

ROUNDING = 0.01


def scored(value: object, top: int) -> tuple[ScoredToken, ...]:
    """The tokens of a choice's `logprobs`, each with at most `top` alternatives; none where it has none."""
    if not isinstance(value, Mapping):
        return ()
    if isinstance(content := value.get("content"), list):
        return tuple(_token(each, top) for each in content if isinstance(each, Mapping))
    return tuple(_of_lists(value, top))


def offsets(value: object) -> Sequence[int] | None:
    """Where in the text each token begins, in the older shape; None where that is not told."""
    given = value.get("text_offset") if isinstance(value, Mapping) else None
    return given if isinstance(given, list) and all(map(is_whole, given)) else None


def _token(entry: Mapping[str, Any], top: int) -> ScoredToken:
    given = entry.get("top_logprobs")
    others = [_alternative(each) for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    token = _alternative(entry)
    return ScoredToken(token.text, token.logprob, token.id, _falling(others, top))


def _alternative(entry: Mapping[str, Any]) -> Alternative:
    number = entry.get("id")
    return Alternative(_text(entry), logprob(entry.get("logprob")), number if is_count(number) else None)


def _text(entry: Mapping[str, Any]) -> str:
    """The token's bytes are what it says; its name may be an escape of them."""
    said = entry.get("bytes")
    try:
        if isinstance(said, list):
            return bytes(said).decode()
    except (TypeError, ValueError):
        pass
    return clean(entry.get("token"))


def _of_lists(value: Mapping[str, Any], top: int) -> Iterator[ScoredToken]:
    tokens, numbers, tops = (
        each if isinstance(each := value.get(name), list) else []
        for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    for text, number, others in zip_longest(tokens, numbers[: len(tokens)], tops[: len(tokens)]):
        pairs = others.items() if isinstance(others, Mapping) else ()
        alternatives = [Alternative(clean(other), logprob(said)) for other, said in pairs]
        yield ScoredToken(clean(text), logprob(number), None, _falling(alternatives, top))


def _falling(alternatives: Sequence[Alternative], top: int) -> tuple[Alternative, ...]:
    known = [each for each in alternatives if not math.isnan(each.logprob)]
    return tuple(sorted(known, key=lambda each: -each.logprob)[:top])


def logprob(value: object) -> float:
    """The logarithm of a probability, which is above 0 by rounding alone; nan for what is none."""
    return min(float(value), 0.0) if is_number(value) and value < ROUNDING else math.nan


def clean(text: object) -> str:
    """A text of JSON's; "" for what is none. Halves of characters, which JSON can spell, are replaced; two halves are one."""
    if not isinstance(text, str):
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
