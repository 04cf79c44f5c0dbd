"""Logits -> one token id. numpy only; the sampler owns its random state.

Order: constraint -> logit bias -> repetition, frequency, presence penalty -> temperature -> top-k -> top-p -> min-p ->
draw. Temperature 0 is the argmax of what stands before it in that order: constraint, bias and penalties, whether given or
the model's own, still count there (as in transformers), filters do not. The Python API, which is Meta's, has none of them.

The filters are functions of an array and return the positions they keep. Each finds a cheap bound first and sorts only
what is left in doubt, so that a token out of 128,000 costs well under a millisecond in the usual settings.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.core.sampling import SamplingParams
from llamachat.errors import ModelError, UsageError

Floats = NDArray[np.floating]
Positions = NDArray[np.int64]

GREEDY_BELOW = 1e-5  # a lower temperature is argmax, to float32 at least
UNDERFLOW = 87  # exp of less than this, negated, is no normal float32: next to nothing, and it takes ten times as long
TAIL = 1e-6  # of the weight that top-p leaves out: less than that is not looked at
BLOCK = 256  # weights
FEW = 512  # weights, which are sorted before it is found out which of them need not be


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of a token's probability and of the likeliest tokens' (falling, ties by lower id)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Floats, token: int, top: int) -> TokenLogprobs:
    """Of the plain softmax: no temperature, penalty or filter. Computed in float64. Raises ModelError, see peak."""
    shifted = logits.astype(np.float64) - peak(logits)
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = largest(logits, top)
    return TokenLogprobs(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def peak(logits: Floats) -> float:
    """The largest logit. Raises ModelError unless there is one: NaN, +inf, or nothing but -inf (a masked token)."""
    highest = float(logits.max())  # NaN if any is
    if not np.isfinite(highest):
        remedy = "its weights are damaged, or every token is banned"
        raise ModelError(f"the model's largest logit is {highest}", "no token can be drawn", remedy)
    return highest


def repetition_penalised(logits: Floats, penalty: float) -> Floats:
    """CTRL (Keskar et al. 2019): positive logits are divided by the penalty, negative ones multiplied."""
    penalised: Floats = np.where(logits > 0, logits / penalty, logits * penalty)
    return penalised


def count_penalised(logits: Floats, counts: NDArray[np.int64], frequency: float, presence: float) -> Floats:
    """OpenAI's: less `frequency` for each occurrence, and less `presence` for having occurred at all."""
    penalised: Floats = logits - frequency * counts - presence * (counts > 0)
    return penalised


def largest(values: Floats, k: int) -> Positions:
    """Positions of the k largest values (all, if there are fewer), falling; of equals the lower position is first."""
    k = min(k, len(values))
    if k == 0:
        return np.empty(0, np.int64)
    # The k-th largest of the maxima of any k or more groups is a lower bound of the k-th largest value.
    width = max(1, min(64, len(values) // k))
    groups = len(values) // width
    maxima = values[: groups * width].reshape(width, groups).max(axis=0)
    bound = np.partition(maxima, groups - k)[groups - k]
    return falling(values, np.flatnonzero(values >= bound))[:k]


def nucleus(weights: NDArray[np.float32], p: float) -> Positions:
    """Positions, in any order, of the smallest set with at least the share p of all weight; ties go to the lower one.

    Top-p of Holtzman et al. 2020: the largest weights, the one that crosses p included, so there is always one.
    """
    if len(weights) <= FEW:
        order = falling(weights, np.arange(len(weights)))
        mass = weights[order].cumsum(dtype=np.float64)
        return order[: int(mass.searchsorted(p * mass[-1])) + 1]
    total = float(weights.sum(dtype=np.float64))
    # What is not below some floor holds the nucleus if its weight suffices; the last floor's always does.
    for floor in (1e-3 * total, 1e-5 * total, (1 - p) * total / len(weights)):
        ids = np.flatnonzero(weights >= floor)
        if len(ids) and weights[ids].sum(dtype=np.float64) >= p * total:
            break
    # As integers, positive floats keep their order: the upper 12 bits are steps of an eighth of a power of two.
    steps = weights[ids].view(np.uint32) >> 20
    mass = np.bincount(steps, weights[ids])[::-1].cumsum()  # of the highest step, the two highest, ...
    crossing = min(int(np.searchsorted(mass, p * total)), len(mass) - 1)
    step = len(mass) - 1 - crossing
    doubtful = falling(weights, ids[steps == step])
    cumulative = (mass[crossing - 1] if crossing else 0) + np.cumsum(weights[doubtful], dtype=np.float64)
    needed = int(np.searchsorted(cumulative, p * total)) + 1
    return np.concatenate([ids[steps > step], doubtful[:needed]])


def likely(weights: Floats, min_p: float) -> Positions:
    """Positions of weights of at least min_p times the largest (Nguyen et al. 2024), in their order."""
    return np.flatnonzero(weights >= min_p * weights.max())


def falling(values: Floats, positions: Positions) -> Positions:
    """Rising positions, sorted by falling value; of equal values the lower position comes first."""
    return positions[np.argsort(-values[positions], kind="stable")]


def drawn(weights: Floats, random: "np.random.Generator") -> int:  # whose import takes as long as ten tokens
    """A position, each with its share of the weight; never one of weight 0."""
    at, share = 0, random.random()
    # Running sums of all take ten times as long as those of blocks, and then of the block that is hit.
    for step in (BLOCK, 1) if len(weights) > BLOCK else (1,):
        sums = np.add.reduceat(weights, np.arange(0, len(weights), step), dtype=np.float64).cumsum()
        # share * sums[-1] rounds to less than sums[-1], and a step of height 0 is never the first to lie above it.
        hit = int(sums.searchsorted(wanted := share * sums[-1], side="right"))
        before = sums[hit - 1] if hit else 0.0
        share = min((wanted - before) / (sums[hit] - before), np.nextafter(1, 0))
        at, weights = at + hit * step, weights[hit * step :][:step]
    return at


class Constraint(Protocol):
    """What an answer must be, token by token; see constrain.py."""

    @property
    def complete(self) -> bool:
        """Nothing may follow, not even more of the same."""
        ...

    def allowed(self) -> NDArray[np.bool_] | None:
        """[vocab_size] which tokens may come next; those that end the answer too, where it may end. None: any."""
        ...

    def forced(self) -> list[int]:
        """Tokens that come next as there is no other way; not all of them need be known."""
        ...

    def add(self, token: int) -> None:
        """This one, which is allowed, came."""
        ...


class Sampler:
    """Draws the tokens of one answer.

    The repetition penalty counts what is in the prompt or was drawn (as transformers does); frequency and presence
    penalties count only what was drawn (as OpenAI and vLLM do).
    """

    def __init__(self, params: SamplingParams, vocab_size: int, constraint: Constraint | None = None) -> None:
        """Raises UsageError when logit_bias names a token that the vocabulary lacks."""
        for token in params.logit_bias:
            if token >= vocab_size:
                raise UsageError(f"logit_bias names token {token}", remedy=f"ids are below {vocab_size}")
        self.params = params
        self._constraint = constraint
        self._random = None if params.temperature < GREEDY_BELOW else np.random.default_rng(params.seed)
        self._ids, self._seen = np.arange(vocab_size), np.zeros(vocab_size, bool)
        self._drawn = np.zeros(vocab_size, np.int64)
        self._biased = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)

    def observe_prompt(self, ids: Iterable[int]) -> None:
        """Let the repetition penalty count these."""
        self._seen[np.fromiter(ids, np.int64)] = True

    def observe_drawn(self, ids: Sequence[int]) -> None:
        """Go on as if these had been drawn, the random state included: one number was taken for each."""
        if self._random:
            self._random.random(len(ids))
        for token in ids:
            self._seen[token] = True
            self._drawn[token] += 1

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The next token, from logits [vocab_size], which stay as they are. Raises ModelError, see peak."""
        ids, weights = self.candidates(logits)
        token = int(ids[drawn(weights, self._random) if self._random else 0])
        self._seen[token] = True
        self._drawn[token] += 1
        if self._constraint:
            self._constraint.add(token)
        return token

    def _adjusted(self, logits: Floats) -> Floats:
        """Logits with constraint, bias and penalties; the same array when there are none."""
        params = self.params
        counting = bool(params.frequency_penalty or params.presence_penalty)
        allowed = self._constraint.allowed() if self._constraint else None
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        if params.repetition_penalty == 1 and not counting and not len(self._biased):
            return logits
        logits = logits.copy()
        logits[self._biased] += self._bias
        if params.repetition_penalty != 1:
            seen = np.flatnonzero(self._seen)
            logits[seen] = repetition_penalised(logits[seen], params.repetition_penalty)
        if counting:
            ids = np.flatnonzero(self._drawn)
            counts = self._drawn[ids]
            logits[ids] = count_penalised(logits[ids], counts, params.frequency_penalty, params.presence_penalty)
        return logits

    @np.errstate(over="ignore", invalid="ignore")  # -inf has the weight 0; peak refuses +inf and NaN
    def candidates(self, logits: Floats) -> tuple[Positions, Floats]:
        """Ids that can be drawn from logits, after everything but the draw, and their weights; one id when greedy."""
        params, logits = self.params, self._adjusted(logits)
        highest = peak(logits)
        if params.temperature < GREEDY_BELOW:
            return np.array([logits.argmax()]), np.ones(1)
        ids = largest(logits, params.top_k) if params.top_k else self._ids
        values = logits[ids] if params.top_k else logits
        # What top-p leaves out weighs more than TAIL times all that lies so far below the largest.
        far = UNDERFLOW if params.top_p == 1 else min(UNDERFLOW, math.log(len(values) / (1 - params.top_p) / TAIL))
        heavy = values >= highest - far * params.temperature
        if np.count_nonzero(heavy) > len(values) // 4:  # to leave out the others takes longer than to keep them
            heavy = values >= highest - UNDERFLOW * params.temperature
        if not heavy.all():
            ids, values = ids[kept := np.flatnonzero(heavy)], values[kept]
        weights = values - highest  # in place from here on: large arrays that come and go cost page faults
        weights /= params.temperature
        np.exp(weights, out=weights)
        for keep, limit, off in ((nucleus, params.top_p, 1), (likely, params.min_p, 0)):
            if limit != off:
                ids, weights = ids[kept := keep(weights, limit)], weights[kept]
        return ids, weights
