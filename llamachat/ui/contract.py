"""What the UI asks of a chat. It is handed one and never makes one, so it imports neither engine nor session."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from llamachat.events import Branch, Event, SavedDialog, Stats, TokenView, Turn


class ChatSession(Protocol):
    """A dialog with a loaded model.

    What returns an iterator of events answers something: it ends with TurnDone, and whatever was answered is kept, even of
    a stopped turn, and even when the iterator is left. Every method raises LlamachatError (UsageError for what makes no
    sense now) and then has changed nothing. Only `interrupt` may be called while another is at work.
    """

    # ---- what it is ----

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

    @property
    def name(self) -> str | None:
        """Under which the dialog is saved; None when it leaves no trace."""
        ...

    def describe(self) -> Mapping[str, str]:
        """What is running, for people; "model", "weights" (scheme and size) and "engine" are always among the keys."""
        ...

    def notices(self) -> Sequence[str]:
        """Lines that the person should see and has not yet: each is handed out once."""
        ...

    # ---- answering ----

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a message."""
        ...

    def regenerate(self) -> Iterator[Event]:
        """Answer the last question once more, as another branch."""
        ...

    def resume(self) -> Iterator[Event]:
        """Go on with the last answer from exactly the tokens it has. Raises UsageError where it had ended by itself."""
        ...

    def edit(self, number: int, text: str) -> Iterator[Event]:
        """Ask question `number` in other words, as another branch."""
        ...

    def take_alternative(self, index: int, choice: int) -> Iterator[Event]:
        """Put the choice-th likeliest token (from 1) in place of the last answer's index-th (from 1) and go on from there,
        as another branch; the first TextDelta brings the text up to and with it."""
        ...

    def interrupt(self) -> None:
        """Stop what is under way, soon: an answer's iterator then ends with TurnDone("interrupt"), and what is slow raises
        UsageError. Harmless otherwise.

        Called from a signal handler or another thread, perhaps more than once.
        """
        ...

    # ---- the dialog ----

    def turns(self) -> Sequence[Turn]:
        """The active branch from the system prompt on, dropped turns included."""
        ...

    def clear(self) -> None:
        """Begin anew: no turns, same system prompt. What was said stays saved."""
        ...

    def begin(self, messages: Sequence[tuple[Literal["user", "assistant"], str]]) -> None:
        """`clear`, then have these said, question and answer in turn (a persona's first messages)."""
        ...

    def set_system(self, text: str | None) -> None:
        """Replace or remove the system prompt from the next answer on; the turns stay."""
        ...

    def undo(self, count: int = 1) -> int:
        """Go back before the last `count` questions; returns how many that were. They stay in the tree."""
        ...

    def fork(self) -> int:
        """Mark this point: a new branch that shares all turns so far; returns the id of the one left behind."""
        ...

    def branches(self) -> Sequence[Branch]:
        """All of them, in the order they began."""
        ...

    def switch(self, branch: int) -> None:
        """Make another branch the active one."""
        ...

    # ---- on disk ----

    def save(self, name: str) -> None:
        """Call the dialog this from now on. Raises UsageError for a bad or taken name."""
        ...

    def load(self, name: str) -> None:
        """Leave this dialog (it stays saved) and open another."""
        ...

    def saved(self) -> Sequence[SavedDialog]:
        """Every dialog on disk, the latest first."""
        ...

    def export(self, path: Path) -> None:
        """The active branch as Markdown, or as JSON where the name ends in .json; an existing file is refused."""
        ...

    def close(self) -> None:
        """Leave the dialog, which stays as it was saved; harmless when repeated."""
        ...

    # ---- settings ----

    def parameters(self) -> Mapping[str, object]:
        """The sampling and generation settings now in force, by name."""
        ...

    def set_parameter(self, name: str, value: str) -> None:
        """Raises UsageError on an unknown name or an impossible value."""
        ...

    def use_model(self, name: str) -> None:
        """Put another model in this one's place and keep the dialog; slow. The old one stays where that fails or is stopped."""
        ...

    # ---- seeing inside ----

    def tokens(self, alternatives: int = 10) -> Sequence[TokenView]:
        """The last answer, token by token, scored anew by the model (slow for long answers)."""
        ...

    def why(self) -> Sequence[tuple[str, str]]:
        """Which settings shaped the last answer, and what each did to it: rows for people."""
        ...
