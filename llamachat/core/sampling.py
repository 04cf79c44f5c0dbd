"""The settings of the sampler, without numpy: commands and the catalog check them before anything is loaded."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamachat.checks import LARGEST, require, require_number, require_whole
from llamachat.errors import UsageError

_RANGES = {
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
}


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits; the order is that of the fields, after a constraint."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.6
    top_k: int = 0  # 0: no limit
    top_p: float = 0.9
    min_p: float = 0.0
    seed: int | None = None  # None: different each time

    def __post_init__(self) -> None:
        """Raises UsageError naming field, value and what is allowed."""
        for name, (low, high) in _RANGES.items():
            require_number(name, getattr(self, name), low, high, UsageError)
        require_whole("top_k", self.top_k, 0, LARGEST["vocab_size"], UsageError)
        if self.seed is not None:
            require_whole("seed", self.seed, 0, 2**64 - 1, UsageError)
        for token, bias in self.logit_bias.items():
            require_whole("token id of logit_bias", token, 0, LARGEST["vocab_size"], UsageError)
            if bias != -math.inf:  # which bans the token
                require_number(f"logit_bias of token {token}", bias, -1e6, 1e6, UsageError)

    def replace(self, /, **changes: Any) -> "SamplingParams":
        """A copy with these fields changed. Raises UsageError on an unknown field or a bad value."""
        known = [each.name for each in dataclasses.fields(self)]
        for name in changes:
            require(name in known, "sampling parameter", name, "one of " + ", ".join(known), UsageError)
        return dataclasses.replace(self, **changes)
