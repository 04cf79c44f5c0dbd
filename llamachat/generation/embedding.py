"""Texts -> vectors: what a model's last layer makes of their tokens, pooled to one a text (sentence-transformers' way)."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from llamachat.checks import require_choice
from llamachat.errors import ModelError, UsageError
from llamachat.generation.texts import Job, Outcome, Text, encode
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

    `normalize`: vectors of length 1, whose products are cosines. `cut`: what is too long is cut at its end.
    """

    model: LoadedModel
    pool: Pool
    normalize: bool = True
    cut: bool = False

    @property
    def rows(self) -> Literal["last", "all"]:
        """Those of hidden states that it needs: see texts.Runner."""
        return "all" if self.pool == "mean" else "last"

    def job(self, text: str) -> Job:
        """Raises DoesNotFitError, and UsageError for a text without tokens."""
        ids = encode(self.model, Text(text), self.cut).ids
        return Job(len(ids), [ids])

    def embedded(self, outcome: Outcome) -> Embedded:
        """Of a runner of these `rows` of hidden states. Raises ModelError for a vector that has no direction."""
        rows = outcome.rows[0]
        vector = rows if rows.ndim == 1 else rows.mean(0, dtype=np.float64).astype(np.float32)
        if self.normalize:
            length = np.linalg.norm(vector.astype(np.float64))
            if length == 0:
                raise ModelError("the model makes nothing but zeros of the text", "they have no direction")
            vector = vector / np.float32(length)
        return Embedded(vector, outcome.job.item)

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """As JSON has it."""
        found = self.embedded(outcome)
        usage = {"prompt_tokens": found.tokens}
        return {"model": self.model.name, "pool": self.pool, "embedding": numbers(found.vector), "usage": usage}


def numbers(vector: Vector) -> list[float]:
    """As short as float32 has them."""
    return [float(str(number)) for number in vector]


def pool_of(model: LoadedModel, wanted: str | None = None) -> Pool:
    """As wanted, else as the model's files say, else the mean. Raises UsageError, and ModelError where they want another."""
    if wanted is not None:
        require_choice("pool", wanted, get_args(Pool), UsageError)
        return cast(Pool, wanted)
    own = model.checkpoint.pooling or "mean"
    if own not in get_args(Pool):
        raise ModelError(f"{model.name} makes vectors by {own}", "that is not done here", "give --pool mean or last")
    return cast(Pool, own)
