"""Texts -> vectors: what a model's last layer makes of their tokens, pooled to one a text (sentence-transformers' way)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from llamachat.checks import require_choice
from llamachat.core.generate import never
from llamachat.errors import LlamachatError, ModelError, UsageError
from llamachat.generation.texts import Job, Outcome, Rows, Runner, Text, encode, made
from llamachat.models.load import LoadedModel

Pool = Literal["mean", "last"]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """A text's vector [hidden_size], and how many tokens it was made of."""

    vector: Vector
    tokens: int


@dataclass(frozen=True)
class Embedder:
    """`pool`: "mean" of all tokens of the sequence, those that the tokenizer puts around it included, or "last" of them.

    `normalize`: vectors of length 1, whose products are cosines.
    """

    model: LoadedModel
    pool: Pool
    normalize: bool = True
    interrupted: Callable[[], bool] = never

    def __post_init__(self) -> None:
        require_choice("pool", self.pool, get_args(Pool), UsageError)

    def runner(self) -> Runner:
        """What runs its jobs, whose outcomes `embedded` takes."""
        return Runner(self.model, "all" if self.pool == "mean" else "last", self.interrupted, outputs="hidden")

    def job(self, text: str) -> Job:
        """Raises DoesNotFitError, and UsageError for a text without tokens."""
        ids = encode(self.model, Text(text)).ids
        return Job(len(ids), [ids])

    def embedded(self, outcome: Outcome) -> Embedded:
        """Raises ModelError where the model gives numbers that are none."""
        vector = pooled(outcome.rows[0])
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not np.isfinite(length) or (self.normalize and length == 0):
            raise ModelError("the model makes no vector of this text", "its values are not finite, or all are zero")
        return Embedded(vector / np.float32(length) if self.normalize else vector, outcome.job.item)

    def run(self, texts: Iterator[str]) -> Iterator[Embedded | LlamachatError]:
        """One for each text, in order; an error in the place of one that cannot be embedded."""
        for outcome in self.runner().run(made(self.job, text) for text in texts):
            yield outcome if isinstance(outcome, LlamachatError) else self.embedded(outcome)


def pooled(rows: Rows) -> Vector:
    """[hidden] of the last token as it is, or the mean of [T, hidden]."""
    mean: Vector = rows if rows.ndim == 1 else rows.mean(0, dtype=np.float64).astype(np.float32)
    return mean


def pool_of(model: LoadedModel, wanted: str | None = None) -> Pool:
    """As wanted, else as the model's files say, else the mean. Raises UsageError, and ModelError where they want another."""
    if wanted is not None:
        require_choice("pool", wanted, get_args(Pool), UsageError)
        return cast(Pool, wanted)
    own = model.checkpoint.pooling or "mean"
    if own not in get_args(Pool):
        raise ModelError(f"{model.name} makes vectors by {own}", "that is not done here", "give --pool mean or last")
    return cast(Pool, own)
