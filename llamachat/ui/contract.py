"""What the UI asks of a chat. It is handed one and never makes one, so it imports neither engine nor session."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from llamachat.events import Event, Stats


class ChatSession(Protocol):
    """A dialog with a loaded model."""

    @property
    def system(self) -> str | None:
        """The system prompt."""
        ...

    @property
    def last_stats(self) -> Stats | None:
        """Of the last answer, if there was one."""
        ...

    @property
    def context_used(self) -> int:
        """Tokens in the cache."""
        ...

    @property
    def context_size(self) -> int:
        """Tokens that the cache can hold."""
        ...

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a message; ends with TurnDone. The session keeps what was answered, even of a stopped turn."""
        ...

    def interrupt(self) -> None:
        """Stop the answer under way, soon: its iterator then ends with TurnDone("interrupt"). Harmless otherwise.

        Called from a signal handler, perhaps more than once.
        """
        ...

    def clear(self) -> None:
        """Forget the dialog, but not the system prompt."""
        ...

    def set_system(self, text: str | None) -> None:
        """Replace or remove the system prompt."""
        ...

    def parameters(self) -> Mapping[str, object]:
        """The sampling and generation settings now in force, by name."""
        ...

    def set_parameter(self, name: str, value: str) -> None:
        """Raises UsageError on an unknown name or an impossible value."""
        ...

    def describe(self) -> Mapping[str, str]:
        """What is running, for people; "model" is always among the keys."""
        ...
