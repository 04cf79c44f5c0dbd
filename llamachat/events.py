"""What a session tells whoever shows it: all that the UI ever sees of generation and of the dialog."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "interrupt", "repeat"]  # repeat: it said the same over and over
Progress = Callable[
    [str, int, int | None], None
]  # what is being done, how much of it is done, and of how much if known


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one answer."""

    prompt_tokens: int  # in the whole rendered dialog
    reused_tokens: int  # of those, already in the cache
    completion_tokens: int
    prefill_s: float
    decode_s: float
    context_used: int  # tokens in the cache afterwards
    context_size: int  # 0: it, or how much of it is used, is not known
    thought_tokens: int = 0  # of the completion's, what was thought before the answer
    thought_s: float = 0.0
    counted: bool = True  # False: nobody told; the answer's are the pieces that it came in, the prompt's none

    @property
    def prefill_tok_s(self) -> float:
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """The first token comes out of the prefill, so it is not counted here."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s and self.completion_tokens > 1 else 0.0


@dataclass(frozen=True)
class TextDelta:
    """A further piece of the answer: whole characters, unfiltered. `thinking`: of what it thinks before it answers."""

    text: str
    thinking: bool = False
    ids: tuple[int, ...] = ()  # the tokens since the last piece, where the backend has any
    used: int = field(default=0, compare=False)  # tokens in the context by then; 0: not known

    @property
    def tokens(self) -> int:
        """How many that are: a piece of text is nearly always a token."""
        return len(self.ids) or 1


@dataclass(frozen=True)
class Reading:
    """So much of a long prompt is read; comes before the answer's first piece, and only from a model that runs here."""

    done: int
    total: int  # tokens that are to be read: those that the cache has already are none of them


@dataclass(frozen=True)
class Evicted:
    """The window was full: so many of the oldest turns are no longer seen by the model.

    `turns` is 0 where one turn is larger than the window and its beginning went. `refilled`: what was kept was computed
    anew, as if the dialog had begun there.
    """

    turns: int
    tokens: int  # 0: not known
    refilled: bool = False


@dataclass(frozen=True)
class TurnDone:
    """The end of an answer. From a backend also what the answer is, which the dialog keeps."""

    stats: Stats
    reason: FinishReason
    exact: bool = False  # the tokens told stand for the whole text
    text: str | None = None  # all of the answer, where that is not the sum of its pieces


Event = TextDelta | Reading | Evicted | TurnDone


@dataclass(frozen=True)
class Turn:
    """One message of the dialog as people count them: `number` from 1 on, a question and its answer have the same."""

    number: int
    role: Literal["system", "user", "assistant", "tool"]
    text: str
    tokens: int  # 0: not known yet
    seen: Literal["pinned", "kept", "partly", "dropped"]  # by the model, now; partly: its end only


@dataclass(frozen=True)
class TextSize:
    """What a text would take of the context."""

    tokens: int
    counted: bool  # False: an estimate
    room: int = 0  # tokens that the context has for one message; 0: not known
    most: int = 0  # tokens of context that the model was made for and this machine has memory for; 0: not known

    @property
    def fits(self) -> bool:
        return not self.room or self.tokens <= self.room


@dataclass(frozen=True)
class Branch:
    """One line of the dialog's tree, named by the id of its last message."""

    id: int
    active: bool
    turns: int  # questions in it
    last: str  # its last question's first line
    forked_at: int  # turns shared with the active branch
    answer: str = ""  # the first line of what was said to that


@dataclass(frozen=True)
class TokenView:
    """A token of an answer with its probability under the model's own, untempered distribution."""

    text: str
    id: int | None  # None: a server's, told by their texts
    logprob: float
    top: tuple[tuple[str, int | None, float], ...]  # the likeliest: text, id, logprob; falling


@dataclass(frozen=True)
class AdapterView:
    """What was trained beside a model's weights and is added to them."""

    name: str
    scale: float  # what it adds is multiplied by; 0: it is off
    rank: int
    matrices: int  # of the model, that it adds to
    replaced: int  # tensors of the model in whose place it has its own
    size: str


@dataclass(frozen=True)
class SavedDialog:
    """A session on disk."""

    name: str
    modified: float  # seconds since the epoch
    turns: int  # questions of the branch that it goes on with
    title: str  # the first question's first line
    model: str


@dataclass(frozen=True)
class ModelView:
    """A model that can be asked for by name."""

    name: str
    size: str = ""  # of what is here, or is to be fetched; "": not known
    fits: bool | None = None  # into the memory that is free now; None: not known
    here: bool = True
    note: str = ""  # what it is, or why it cannot run
    place: str = ""  # the program that has it; "": the catalog
    runs: bool = True
    needs: str = ""  # of memory, for people
    file: str = ""  # what is fetched, where the name leaves that open


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, as a person looks back at them."""

    number: int  # from 1 on
    question: str  # in the person's own words
    attached: tuple[str, ...]  # files that went with it, each with its size
    thought: str  # before the answer; empty: there was none
    answer: str
    reason: FinishReason


@dataclass(frozen=True)
class Found:
    """A line of a saved dialog in which a text was found."""

    name: str  # the dialog's
    role: Literal["user", "assistant"]
    line: str


@dataclass(frozen=True)
class Forgotten:
    """What went with a dialog that was deleted."""

    name: str
    snapshots: int  # bytes of keys and values
    typed: int  # entries of the input history


@dataclass(frozen=True)
class Place:
    """Where something is kept, and how large that is."""

    what: str
    path: str
    size: str  # empty: not measured


@dataclass(frozen=True)
class Finished:
    """A session between two answers, for who must not ask it while it answers: nothing of this changes."""

    name: str | None  # under which it is saved
    on_disk: bool
    about: Mapping[str, str]
    last_stats: Stats | None
    context_used: int
    context_size: int
    all_turns: Sequence[Turn]
    saved: Callable[[], Sequence[SavedDialog]]  # reads what is on disk now

    def describe(self) -> Mapping[str, str]:
        return self.about

    def turns(self) -> Sequence[Turn]:
        return self.all_turns
