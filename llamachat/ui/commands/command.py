"""What a slash command is, and what it is given to work with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llamachat.chat.session import Session
from llamachat.errors import UsageError
from llamachat.events import Event, Finished, ModelView
from llamachat.ui.attach import Attachment
from llamachat.ui.render import Screen

Word = tuple[str, str]  # one that may be typed here, and a short help


class LeaveError(Exception):
    """The person has asked to leave."""


class Persona(Protocol):
    """A manner of answering that has a name."""

    @property
    def name(self) -> str: ...

    @property
    def system(self) -> str | None: ...

    @property
    def sampling(self) -> Mapping[str, float]:
        """Parameters to set; the others stay."""
        ...

    @property
    def said(self) -> Sequence[tuple[Literal["user", "assistant"], str]]:
        """The dialog's first questions and answers."""
        ...

    @property
    def model(self) -> str | None: ...

    @property
    def think(self) -> str | None:
        """Whether the model is to think before it answers: "on", "off" or "auto"; None: as it is set."""
        ...


class Library(Protocol):
    """What can be asked for by name besides saved dialogs. Its methods raise LlamachatError."""

    def models(self) -> Iterable[Word]:
        """Names, for completion: asked for at every key."""
        ...

    def views(self) -> Iterable[ModelView]: ...

    def view(self, name: str) -> ModelView | None:
        """None: there is nothing to be asked before it is loaded, which says what is wrong with the name. May ask a hub."""
        ...

    def better(self) -> ModelView | None:
        """One to offer: it fits."""
        ...

    def fetch(self, name: str, progress: Callable[[str, int, int | None], None]) -> None:
        """Have a model here that is not; slow. `progress` is told what is being done, how much of it is done, and of how much;
        what it raises ends it."""
        ...

    def personas(self) -> Iterable[Word]: ...

    def persona(self, name: str) -> Persona: ...


class EmptyLibrary:
    """Knows no names; whatever model is named may exist all the same."""

    def models(self) -> Iterable[Word]:
        return ()

    def views(self) -> Iterable[ModelView]:
        return ()

    def view(self, name: str) -> ModelView | None:
        return None

    def better(self) -> ModelView | None:
        return None

    def fetch(self, name: str, progress: Callable[[str, int, int | None], None]) -> None:
        raise UsageError(f"no model is called {name}")

    def personas(self) -> Iterable[Word]:
        return ()

    def persona(self, name: str) -> Persona:
        raise UsageError(f"no persona is called {name}")


@dataclass
class Context:
    """One chat, as commands see it."""

    session: Callable[[], Session]  # waits for loading, so it is called only by commands that need a session
    ready: Callable[[], Session | None]  # the session if it is loaded and idle; never waits
    screen: Screen
    send: Callable[[str], None] | None = None  # puts a control sequence of ours on the terminal; None off one
    library: Library = field(default_factory=EmptyLibrary)
    attached: list[Attachment] = field(default_factory=list)  # to the next message
    prefill: str = ""  # the next input begins with it
    confirm: Callable[[str], bool] = lambda question: False  # asks the person; waits for yes or no
    stopped: Callable[[], bool] = lambda: False  # whether the person wants what is being done to end
    before: Finished | None = None  # how all was before the answer that is under way

    def finished(self) -> Finished:
        """For commands that only look, which may be obeyed while an answer streams."""
        return self.before or self.session().finished()


@dataclass(frozen=True)
class Command:
    """`run` gets the argument: all that follows the name, stripped. One that answers returns the events, for the caller to
    show; the others show for themselves and return None.
    """

    names: tuple[str, ...]
    argument: str  # as /help shows it; empty: none is taken
    help: str
    run: Callable[[Context, str], Iterator[Event] | None]
    detail: str = ""  # what `/help NAME` adds
    words: Callable[[Context, Sequence[str]], Iterable[Word]] | None = None  # may come next, given the words before
    path: bool = False  # the argument may be a path
    several: bool = False  # or several, those with spaces in quotes
    private: bool = (
        False  # opens files or the clipboard: for people only, not for lines of who knows whose that are piped in
    )
    at_once: bool = False  # also while an answer streams: it only looks, at what is finished
    sends: bool = False  # the argument, as a message

    @property
    def usage(self) -> str:
        return f"{' '.join('/' + name for name in self.names)} {self.argument}".rstrip()
