"""What an answer looks like to the model itself: each token's probability, and what the settings did to the choice."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.generate import Interrupted, Logits, advance, score
from llamachat.core.sampler import GREEDY_BELOW, Sampler, TokenLogprobs, token_logprobs
from llamachat.core.sampling import SamplingParams
from llamachat.errors import UsageError

ROWS = 64  # tokens whose logits are held at once

FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # setting -> where it does nothing
PENALTIES = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


def scored(
    engine: Engine, cache: Cache, ids: Sequence[int], count: int, top: int, interrupted: Callable[[], bool]
) -> list[TokenLogprobs]:
    """Of the last `count` of ids, given all before them; the cache holds all ids afterwards, or all but the last as before."""
    whole = len(cache) >= len(ids)
    cache.truncate(min(len(cache), len(ids) - count - 1))
    try:
        found, last = score(engine, cache, ids[len(cache) : -1], top, interrupted)
    except Interrupted as error:
        raise UsageError("stopped") from error
    if whole:
        advance(engine, cache, list(ids[-1:]))
    return [*found, token_logprobs(last, ids[-1], top)][-count:]


def reasons(
    engine: Engine, cache: Cache, ids: Sequence[int], count: int, params: SamplingParams, stopped: Callable[[], bool]
) -> list[tuple[str, str]]:
    """Rows for people: what each setting in force did to the last `count` of ids, found by drawing them once more."""
    whole = len(cache) >= len(ids)
    rows = _rows(engine, cache, ids, count, stopped)
    tally = _Tally(engine.config.vocab_size, params, ids[: len(ids) - count])
    for token, logits in zip(ids[len(ids) - count :], rows, strict=True):
        tally.add(token, logits)
    if whole:
        advance(engine, cache, list(ids[-1:]))
    return tally.report()


def _rows(
    engine: Engine, cache: Cache, ids: Sequence[int], count: int, stopped: Callable[[], bool]
) -> Iterator[Logits]:
    """The logits that each of the last `count` ids was drawn from."""
    cache.truncate(min(len(cache), len(ids) - count - 1))
    first = len(ids) - count - 1
    for at in range(len(cache), len(ids) - 1, ROWS):
        if stopped():
            raise UsageError("stopped")
        logits = advance(engine, cache, list(ids[at : min(at + ROWS, len(ids) - 1)]), "all")
        yield from logits[max(0, first - at) :]


class _Tally:
    """Counts over the tokens of an answer."""

    def __init__(self, vocab_size: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params, self.tokens, self.unlikely = params, 0, 0
        drawn = params.temperature >= GREEDY_BELOW
        active = [name for name, neutral in FILTERS.items() if drawn and getattr(params, name) != neutral]
        self._filters = {name: params.replace(**{**FILTERS, name: getattr(params, name)}) for name in active}
        if len(active) > 1:
            self._filters["all together"] = params
        greedy = params.replace(temperature=0.0)
        active = [name for name, neutral in PENALTIES.items() if getattr(params, name) != neutral]
        self._penalties = {name: greedy.replace(**{**PENALTIES, name: getattr(params, name)}) for name in active}
        if params.logit_bias:
            self._penalties["logit_bias"] = greedy.replace(**PENALTIES)
        self._samplers = {name: Sampler(p, vocab_size) for name, p in {**self._filters, **self._penalties}.items()}
        for sampler in self._samplers.values():
            sampler.observe_prompt(prompt)
        self._left: dict[str, list[int]] = {name: [] for name in self._filters}
        self._changed = dict.fromkeys(self._penalties, 0)

    def add(self, token: int, logits: Logits) -> None:
        likeliest = int(np.argmax(logits))
        self.tokens += 1
        self.unlikely += token != likeliest
        for name, sampler in self._samplers.items():
            found = sampler.candidates(logits)[0]
            if name in self._left:
                self._left[name].append(len(found))
            else:
                self._changed[name] += int(found[0]) != likeliest
            sampler.observe_drawn([token])

    def report(self) -> list[tuple[str, str]]:
        params, places = self.params, f"of {self.tokens} tokens"
        rows = [("temperature", f"{params.temperature:g}: {self.unlikely} {places} were not the likeliest")]
        if params.temperature < GREEDY_BELOW:
            rows = [
                (
                    "temperature",
                    f"0: always the likeliest, after penalties; scored anew, {self.unlikely} {places} are not",
                )
            ]
        for name, left in self._left.items():
            value = f"{getattr(params, name):g}: " if name in FILTERS else ""
            only = sum(count == 1 for count in left)
            mean = sum(left) / len(left)
            rows.append((name, f"{value}left {mean:.1f} tokens on average to draw from, a single one {only} times"))
        for name, changed in self._changed.items():
            value = f"{getattr(params, name):g}: " if name in PENALTIES else ""
            rows.append((name, f"{value}made another token the likeliest {changed} times"))
        return rows
