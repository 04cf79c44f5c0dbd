"""How well a model predicts a text (perplexity), and how far it is from another (KL divergence), token by token.

The text is cut into windows that are run one by one; of each only a few numbers per token are kept, never the logits.
The statistics are those of llama.cpp's `perplexity --kl-divergence`, each mean with its standard error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import Cache, CacheStep
from llamachat.core.spec import ModelSpec
from llamachat.errors import UsageError

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]  # windows done, windows in all
ROWS = 64  # positions compared at a time
PERCENTILES = (99.9, 99, 95, 90, 50, 10, 5, 1)
WINDOW, MOST = 512, 64  # tokens in a window, windows of a text unless asked otherwise


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Tokens:
    """What is kept of each token: [n] arrays. Of positions without a next token, there is only KL and same_top."""

    nll: Floats  # -log of the next token's probability
    reference_nll: Floats | None = None
    kl: Floats | None = None
    same_top: NDArray[np.bool_] | None = None


def windows(ids: Sequence[int], size: int = WINDOW, most: int = MOST, bos: int | None = None) -> list[list[int]]:
    """Whole windows of a text's ids, each beginning with BOS if the model wants one. Raises UsageError without any."""
    step = size - (bos is not None)
    cut = [list(ids[at : at + step]) for at in range(0, len(ids) - step + 1, step)][:most]
    if not cut:
        raise UsageError(f"the text has {len(ids)} tokens, less than a window of {size}", remedy="take a longer one")
    return [[bos, *window] for window in cut] if bos is not None else cut


def silent(done: int, total: int) -> None:
    pass


class Predictor(Protocol):
    """What is asked of an engine here; llama.cpp can be one too."""

    config: ModelSpec
    slots: int

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["all"]) -> Floats: ...


def evaluate(
    engine: Predictor, cut: Sequence[list[int]], against: Predictor | None = None, progress: Progress = silent
) -> Tokens:
    """Run both engines over the windows. Their vocabularies must be one."""
    return evaluate_all([engine], cut, against, progress)[0]


def evaluate_all(
    engines: Sequence[Predictor], cut: Sequence[list[int]], against: Predictor | None, progress: Progress = silent
) -> list[Tokens]:
    """`evaluate` of several engines, for which the one they are compared with runs but once."""
    for engine in engines:
        if against and against.config.vocab_size != engine.config.vocab_size:
            sizes = f"{engine.config.vocab_size} and {against.config.vocab_size}"
            raise UsageError(f"the models have vocabularies of {sizes} tokens", "they cannot be compared")
    parts: list[list[Tokens]] = [[] for _ in engines]
    for number, ids in enumerate(cut):
        progress(number, len(cut))
        reference = None if against is None else run(against, ids)
        for engine, found in zip(engines, parts, strict=True):
            found += _window(run(engine, ids), ids, reference)
    progress(len(cut), len(cut))
    fields = ("nll",) if against is None else ("nll", "reference_nll", "kl", "same_top")
    return [Tokens(*(np.concatenate([getattr(part, field) for part in found]) for field in fields)) for found in parts]


def _window(logits: Floats, ids: list[int], reference: Floats | None) -> Iterator[Tokens]:
    for start in range(0, len(ids), ROWS):
        q = log_softmax(logits[start : start + ROWS])
        following = np.array(ids[start + 1 : start + 1 + len(q)], np.int64)
        rows = np.arange(len(following))
        if reference is None:
            yield Tokens(-q[rows, following])
            continue
        p = log_softmax(reference[start : start + ROWS])
        kl = np.einsum("ij,ij->i", np.exp(p), p - q)
        yield Tokens(-q[rows, following], -p[rows, following], kl, q.argmax(1) == p.argmax(1))


def run(engine: Predictor, ids: list[int]) -> Floats:
    """Logits [T, vocabulary] of a window that stands alone."""
    return engine.forward(ids, Cache(engine.slots).plan(len(ids)), "all")


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float32)


def summary(tokens: Tokens) -> dict[str, Any]:
    """Statistics by name: an Estimate, or a plain number where no error is known (percentiles, extremes)."""
    result: dict[str, Any] = {"tokens": len(tokens.nll), "perplexity": _perplexity(tokens.nll)}
    if tokens.kl is None or tokens.reference_nll is None or tokens.same_top is None:
        return result
    log_ratio = mean(tokens.nll - tokens.reference_nll)
    result["reference_perplexity"] = _perplexity(tokens.reference_nll)
    result["perplexity_ratio"] = Estimate(exp(log_ratio.value), exp(log_ratio.value) * log_ratio.error)
    result["kl_mean"] = mean(tokens.kl)
    result |= {"kl_max": float(tokens.kl.max())} | _percentiles("kl", tokens.kl)
    change = np.exp(-tokens.nll.astype(np.float64)) - np.exp(-tokens.reference_nll.astype(np.float64))
    squares = mean(change**2)
    root = sqrt(squares.value)
    result["dp_mean"] = mean(change)
    result["dp_rms"] = Estimate(root, squares.error / (2 * root) if root else 0.0)
    result |= _percentiles("dp", change)
    return result | {"same_top": mean(tokens.same_top)}


def mean(values: NDArray[Any]) -> Estimate:
    wide = values.astype(np.float64)
    return Estimate(float(wide.mean()), float(wide.std(ddof=1) / sqrt(len(wide))) if len(wide) > 1 else 0.0)


def _perplexity(nll: Floats) -> Estimate:
    average = mean(nll)
    return Estimate(exp(average.value), exp(average.value) * average.error)


def _percentiles(name: str, values: NDArray[Any]) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"{name}_p{each:g}": float(x) for each, x in zip(PERCENTILES, found, strict=True)}


def as_json(statistics: dict[str, Any]) -> dict[str, Any]:
    """Each Estimate as {"value", "error"}."""
    return {key: value._asdict() if isinstance(value, Estimate) else value for key, value in statistics.items()}


def manual() -> str:
    """A text that is always at hand: Python's own manual, as `help()` shows it."""
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))
