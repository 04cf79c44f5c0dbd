"""What answers a dialog: the contract between a session, which knows the dialog, and a model, wherever that runs.

The least that a backend must do is to turn messages and settings into events. What else it can do it says by its
capabilities, and a session tells the person in one line what it lacks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from llamachat.chat.asked import Asked, Beginning, Capability, Seen
from llamachat.chat.settings import Settings
from llamachat.chat.tree import Node, Tree
from llamachat.core.sampling import SamplingParams
from llamachat.errors import UsageError
from llamachat.events import AdapterView, Event, TextSize, TokenView

if TYPE_CHECKING:
    from llamachat.chat.window import Overflow
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.load import LoadedModel

HERE = "/model goes on with one that runs here"
LACKING: Mapping[Capability, tuple[str, str]] = {  # what it lacks, and what to do
    "scores": ("does not tell how likely its tokens are", HERE),
    "draws": ("does not show how its tokens are drawn", HERE),
    "continues": ("cannot go on from the very tokens of an answer", f"/regen answers anew; {HERE}"),
    "window": ("does not tell what of the dialog it sees", HERE),
    "snapshots": ("keeps nothing of a dialog that is left", HERE),
    "adapters": ("takes no adapters", HERE),
}


class Backend(Protocol):
    """A model that answers dialogs. Every method raises LlamachatError, and then has changed nothing."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """scores: it is a `Scoring`. draws: it is a `Drawing`. continues: `respond` goes on with an answer that has ids.
        window: what it says of `seen` is known. snapshots: `keep` keeps what `take_up` finds again. adapters: it is an
        `Adapting`."""
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
        """Tokens that the model remembers; of one elsewhere, those that it was told and has said."""
        ...

    @property
    def context_size(self) -> int:
        """Tokens that it can remember; 0: that, or how many are used, is not known."""
        ...

    def describe(self) -> Mapping[str, str]:
        """What is running, for people; "model", "weights" (scheme and size) and "engine" are always among the keys. "memory" is
        what the model takes; without it, what the process does."""
        ...

    def check(self) -> None:
        """Raises UsageError for a model that has no dialog format."""
        ...

    def others(self) -> Sequence[tuple[str, str]]:
        """Models at the same place that `sibling` makes the backends of, each with a word on it."""
        ...

    def sibling(self, name: str) -> "Backend | None":
        """The backend of another model at the same place; None where there is none of this name."""
        ...

    def unheard(self, settings: Settings) -> str | None:
        """A line where it cannot do what the settings ask for, and does as it can."""
        ...

    def remarks(self) -> Sequence[str]:
        """Lines about the last answers that the person should see; each is handed out once."""
        ...

    def weigh(self, text: str, system: str | None) -> TextSize | None:
        """What a text would take of the context behind this system prompt, in bounded time; None where nobody can tell."""
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

    def recall(self, answers: Callable[[str], Iterable[Sequence[int]]]) -> None:
        """Answers of saved dialogs, by the tokenizer that their ids are of, may help to give others faster; those known so far
        may be so no more. They are read in the background."""
        ...


class Scoring(Backend, Protocol):
    """A backend that tells how likely its answers were. Slow; an interrupt raises UsageError."""

    def tokens(self, asked: Asked, alternatives: int) -> Sequence[TokenView]:
        """The answer token by token, each with its likeliest alternatives. Raises UsageError for one that it cannot score."""
        ...


class Drawing(Backend, Protocol):
    """A backend that can draw its answers' tokens again. Slow; an interrupt raises UsageError."""

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
        lacks, remedy = LACKING[capability]
        raise UsageError(f"{backend.name} {lacks}", remedy=remedy)


def scoring(backend: Backend) -> Scoring:
    """Raises UsageError for a backend that cannot score."""
    require(backend, "scores")
    return cast(Scoring, backend)


def drawing(backend: Backend) -> Drawing:
    """Raises UsageError for a backend that cannot draw again."""
    require(backend, "draws")
    return cast(Drawing, backend)


def adapting(backend: Backend) -> Adapting:
    """Raises UsageError for a backend that cannot be adapted."""
    require(backend, "adapters")
    return cast(Adapting, backend)


@dataclass(frozen=True)
class Wanted:
    """What a backend is made from."""

    entry: "ModelEntry"
    load: "Callable[[ModelEntry], LoadedModel]"  # for one that runs here
    overflow: "Overflow" = "roll"
    snapshots: bool = False  # whether keys and values may be kept on disk
    # for one that runs elsewhere:
    context: int | None = None  # tokens, as the person has it
    offline: bool = False
    asks: bool = True  # whether a person can still be asked which of several models is meant


def _local(wanted: Wanted) -> Backend:
    from llamachat.chat.local import LocalBackend

    return LocalBackend(wanted.load(wanted.entry), wanted.overflow, snapshots=wanted.snapshots)


def _server(wanted: Wanted) -> Backend:
    from llamachat.chat.remote import RemoteBackend
    from llamachat.remote.server import Server

    connect = partial(Server, offline=wanted.offline)
    backend = RemoteBackend(wanted.entry, connect, wanted.overflow, context=wanted.context)
    if not wanted.asks:
        backend.require_model("nothing was asked", "choose one with -m NAME")
    return backend


BACKENDS: Mapping[str, Callable[[Wanted], Backend]] = {"local": _local, "server": _server}


def opened(wanted: Wanted) -> Backend:
    """The backend for where this model is. Raises LlamachatError."""
    from llamachat.models.sources import ServerSource

    return BACKENDS["server" if isinstance(wanted.entry.source, ServerSource) else "local"](wanted)
