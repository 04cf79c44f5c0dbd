"""What a session hands to a backend, and what it gets back besides events. Pure data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamachat.chat.tree import Node
from llamachat.core.dialog import Message

Capability = Literal["scores", "draws", "continues", "window", "snapshots", "adapters"]  # of a backend


@dataclass(frozen=True)
class Asked:
    """A question in its dialog, with the answer that is to be given, gone on with or looked into."""

    path: Sequence[Node]  # question, answer, ..., question
    answer: Node  # with what it has already
    system: str | None
    interrupted: Callable[[], bool]  # asked between steps: whether to stop

    @property
    def messages(self) -> list[Message]:
        """The dialog up to the question, the system prompt first."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *(node.message for node in self.path)]


@dataclass(frozen=True)
class Seen:
    """What the model sees of a line of the dialog."""

    dropped: int = 0  # questions that it no longer sees, with their answers
    system: int = 0  # tokens of the system prompt's turn; 0: not known yet
    lost: Mapping[int, int] = field(
        default_factory=dict
    )  # tokens that have gone from the start of messages, by their place


@dataclass(frozen=True)
class Beginning:
    """How another answer is to begin."""

    text: str
    ids: tuple[int, ...]
    ends: bool  # it is the whole answer
