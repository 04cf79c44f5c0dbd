"""How a dialog is answered, whoever answers it: what /set shows and changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamachat.checks import is_whole, shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import THINKING
from llamachat.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """In force for the next answer."""

    sampling: SamplingParams
    max_tokens: int | None = None  # None: to the end of the turn or of the context
    stop: Sequence[str] = ()  # texts that end an answer
    think: str = "auto"  # before an answer: one of THINKING
    think_budget: int | None = None  # tokens of a thought, at which it is ended; None: as many as it takes
    allow_loops: bool = False  # not to end an answer that goes round in circles

    def parameters(self) -> Mapping[str, object]:
        """What can be set by name, with the current values."""
        own = ("max_tokens", "think", "think_budget", "allow_loops")
        return {
            **{name: getattr(self.sampling, name) for name in _names(self.sampling)},
            **{name: getattr(self, name) for name in own},
        }

    def changed(self, name: str, text: str) -> "Settings":
        """With a parameter set from its text, "none" for no value. Raises UsageError on a bad name or value."""
        known = self.parameters()
        if name not in known:
            raise UsageError(f"there is no parameter {name!r}", remedy=f"known: {', '.join(known)}")
        return self.having({**known, name: _KINDS.get(name, _number)(name, text)})

    def having(self, parameters: Mapping[str, Any]) -> "Settings":
        """With these values; what nobody sets in a dialog stays. Raises UsageError for impossible ones."""
        limit = parameters.get("max_tokens")
        if limit is not None and (not is_whole(limit) or limit < 1):
            raise UsageError(f"max_tokens cannot be {shown(limit)}", remedy="give a whole number from 1 on, or none")
        budget, think = (parameters.get(name, getattr(self, name)) for name in ("think_budget", "think"))
        if budget is not None and (not is_whole(budget) or budget < 0):
            raise UsageError(f"think_budget cannot be {shown(budget)}", remedy="give a whole number, or none")
        if think not in [*THINKING]:
            raise UsageError(f"think cannot be {shown(think)}", remedy=f"give one of {', '.join(THINKING)}")
        loops = parameters.get("allow_loops", self.allow_loops)
        if not isinstance(loops, bool):
            raise UsageError(f"allow_loops cannot be {shown(loops)}", remedy="give on or off")
        sampling = self.sampling_of(parameters)
        return replace(self, sampling=sampling, max_tokens=limit, think=think, think_budget=budget, allow_loops=loops)

    def sampling_of(self, parameters: Mapping[str, Any]) -> SamplingParams:
        """How an answer was drawn that was given with these values."""
        names = {*_names(self.sampling)}
        return self.sampling.replace(**{name: value for name, value in parameters.items() if name in names})


def thinking(parameters: Mapping[str, Any]) -> bool | None:
    """Whether an answer with these values is thought about first; None: as the model has it."""
    think = parameters.get("think")
    return THINKING.get(think) if isinstance(think, str) else None


def _names(sampling: SamplingParams) -> list[str]:
    return [name for name in sampling.__dataclass_fields__ if name != "logit_bias"]


def _number(name: str, text: str) -> Any:
    """An int or float from its text; None for "none"."""
    if text.strip().lower() in ("none", "off", ""):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(f"{name} cannot be {text!r}", remedy="give a number, or none")


def _word(name: str, text: str) -> str:
    return text.strip().lower()


def switched(name: str, text: str) -> bool:
    """Of "on" and "off". Raises UsageError."""
    found = SWITCH.get(text.strip().lower())
    if found is None:
        raise UsageError(f"{name} cannot be {text!r}", remedy="give on or off")
    return found


SWITCH = {"on": True, "true": True, "off": False, "false": False}
_KINDS: Mapping[str, Callable[[str, str], Any]] = {
    "think": _word,
    "allow_loops": switched,
}  # of those that are no numbers
