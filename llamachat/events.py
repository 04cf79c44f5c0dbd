"""What a session tells whoever shows it: all that the UI ever sees of generation."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "interrupt"]


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one answer."""

    prompt_tokens: int  # in the whole rendered dialog
    reused_tokens: int  # of those, already in the cache
    completion_tokens: int
    prefill_s: float
    decode_s: float
    context_used: int  # tokens in the cache afterwards
    context_size: int

    @property
    def prefill_tok_s(self) -> float:
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """The first token comes out of the prefill, so it is not counted here."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s and self.completion_tokens > 1 else 0.0


@dataclass(frozen=True)
class TextDelta:
    """A further piece of the answer: whole characters, unfiltered."""

    text: str


@dataclass(frozen=True)
class Evicted:
    """The window was full: so many of the oldest turns are no longer seen by the model."""

    turns: int
    tokens: int


@dataclass(frozen=True)
class TurnDone:
    stats: Stats
    reason: FinishReason


Event = TextDelta | Evicted | TurnDone
