"""What answers a dialog: the contract between a session, which knows the dialog, and a model, wherever that runs.

The least that a backend must do is to turn messages and settings into events. What else it can do it says by its
capabilities, and a session tells the person in one line what it lacks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from llamachat.chat.asked import Asked, Beginning, Capability, Seen
from llamachat.chat.settings import Settings
from llamachat.chat.tree import Node, Tree
from llamachat.core.sampling import SamplingParams
from llamachat.errors import UsageError
from llamachat.events import AdapterView, Event, TokenView

if TYPE_CHECKING:
    from llamachat.chat.window import Overflow
    from llamachat.models.load import LoadedModel

LACKING: Mapping[Capability, str] = {
    "scores": "does not tell how likely its tokens are",
    "continues": "cannot go on from the very tokens of an answer",
    "window": "does not tell what of the dialog it sees",
    "snapshots": "keeps nothing of a dialog that is left",
    "adapters": "takes no adapters",
}


class Backend(Protocol):
    """A model that answers dialogs. Every method raises LlamachatError, and then has changed nothing."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """scores: it is a `Scoring`. continues: `respond` goes on with an answer that has ids. window: what it says of
        `seen` is known. snapshots: `keep` keeps what `take_up` finds again. adapters: it is an `Adapting`."""
        ...

    @property
    def name(self) -> str:
        """Of the model, for people."""
        ...

    @property
    def reference(self) -> str:
        """What names the model from any folder."""
        ...

    @property
    def tokenizer(self) -> str:
        """Tells apart what ids mean: those of one tokenizer are none of another's. Empty where there are no ids."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know before the first question."""
        ...

    @property
    def sampling(self) -> SamplingParams:
        """The model's own defaults."""
        ...

    @property
    def system(self) -> str | None:
        """The model's default system prompt."""
        ...

    @property
    def context_used(self) -> int:
        """Tokens that the model remembers."""
        ...

    @property
    def context_size(self) -> int:
        """Tokens that it can remember."""
        ...

    def describe(self) -> Mapping[str, str]:
        """What is running, for people; "model", "weights" (scheme and size) and "engine" are always among the keys."""
        ...

    def check(self) -> None:
        """Raises UsageError for a model that has no dialog format."""
        ...

    def unheard(self, settings: Settings) -> str | None:
        """A line where it cannot do what the settings ask for, and does as it can."""
        ...

    def respond(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        """Answer, or go on with an answer; one that has ended (`reason` is "stop") is only taken note of.

        What cannot begin raises at once. The events end with TurnDone, also when `asked.interrupted` said so, and unless
        they raise. The text has thoughts within tags that `core.thoughts.TAGGED` knows, whatever the model's own are;
        ids come with it where there are any.
        """
        ...

    def seen(self, line: Sequence[Node], system: str | None) -> Seen:
        """What the model sees now of this line of messages."""
        ...

    def forget(self) -> None:
        """The dialog begins anew, as a rule with the same system prompt."""
        ...

    def take_up(self, dialog: str, tree: Tree, say: Callable[[str], None]) -> None:
        """Another dialog comes, of this identity: go on with what was kept of it. `say` is told what cannot be used."""
        ...

    def keep(self, dialog: str) -> None:
        """The dialog is left: keep what helps to go on with it."""
        ...


class Scoring(Backend, Protocol):
    """A backend that can look at its answers again. Slow; an interrupt raises UsageError."""

    def tokens(self, asked: Asked, alternatives: int) -> Sequence[TokenView]:
        """The answer token by token, each with its likeliest alternatives."""
        ...

    def why(self, asked: Asked, settings: Settings) -> Sequence[tuple[str, str]]:
        """Which settings shaped the answer, and what each did to it: rows for people."""
        ...

    def alternative(self, asked: Asked, index: int, choice: int) -> Beginning:
        """The answer up to its index-th token (from 1), with the choice-th likeliest (from 1) in place of that."""
        ...


class Adapting(Backend, Protocol):
    """A backend whose model can be adapted (LoRA). After a change the dialog is read anew with the next question."""

    def adapters(self) -> Sequence[AdapterView]:
        """Those that are there, off ones too, in the order in which they are added up."""
        ...

    def add_adapter(self, path: str) -> AdapterView:
        """One more, of "PATH[:SCALE]"; slow."""
        ...

    def scale_adapter(self, name: str, scale: float | None) -> AdapterView:
        """Another scale, 0: off, for one of them; None: on again."""
        ...


def require(backend: Backend, capability: Capability) -> None:
    """Raises UsageError for a backend that lacks it."""
    if capability not in backend.capabilities:
        raise UsageError(f"{backend.name} {LACKING[capability]}", remedy="/model goes on with one that runs here")


def scoring(backend: Backend) -> Scoring:
    """Raises UsageError for a backend that cannot score."""
    require(backend, "scores")
    return cast(Scoring, backend)


def adapting(backend: Backend) -> Adapting:
    """Raises UsageError for a backend that cannot be adapted."""
    require(backend, "adapters")
    return cast(Adapting, backend)


@dataclass(frozen=True)
class Wanted:
    """What a backend is made from."""

    model: str  # as it was asked for
    load: "Callable[[str], LoadedModel]"  # for one that runs here
    overflow: "Overflow" = "roll"
    snapshots: bool = False  # whether keys and values may be kept on disk


def _local(wanted: Wanted) -> Backend:
    from llamachat.chat.local import LocalBackend

    return LocalBackend(wanted.load(wanted.model), wanted.overflow, snapshots=wanted.snapshots)


BACKENDS: Mapping[str, Callable[[Wanted], Backend]] = {"local": _local}
