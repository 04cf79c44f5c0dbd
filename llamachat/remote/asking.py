"""What is asked of a server, and what comes back. Pure data, in the house's own terms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.errors import ModelError
from llamachat.events import FinishReason


class ServerError(ModelError):
    """A server cannot be reached, refuses, or breaks off."""

    retry_after: float | None = None  # seconds; where the server says when it is to be asked again


class TooLongError(ServerError):
    """A server refuses, before the first piece, what is too long for the model's context; None: it does not tell."""

    def __init__(
        self,
        cause: str,
        consequence: str = "",
        remedy: str = "",
        *,
        prompt: int | None = None,
        context: int | None = None,
    ) -> None:
        """`prompt`: tokens of what was asked; `context`: those that there is room for."""
        super().__init__(cause, consequence, remedy)
        self.prompt, self.context = prompt, context


NO_LOGPROBS = "logprobs"  # of `Ended.ignored`: they were asked for, and did not come


@dataclass(frozen=True)
class Address:
    """Where a server is, and what it is told."""

    url: str  # up to and with the version, as in "http://127.0.0.1:8080/v1"; no slash behind it
    model: str | None = None  # as the server names it; None: the only one that it has
    key_env: str | None = None  # the environment variable that holds its key; None: it gets none
    insecure: bool = False  # its certificate is not looked at; for loopback only


@dataclass(frozen=True)
class ServedModel:
    """One that a server has."""

    name: str
    context: int | None = None  # tokens, where the server tells


@dataclass(frozen=True)
class Format:
    """What an answer must follow."""

    kind: Literal["schema", "regex", "lark"]
    text: str  # a JSON schema, a regular expression, a grammar


@dataclass(frozen=True)
class Question:
    """A dialog to be answered, or (`text`) a plain text to go on with."""

    messages: Sequence[Message] = ()
    text: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    thinking: bool | None = None  # None: as the model has it
    top_logprobs: int | None = None  # alternatives of each token; None: no logprobs
    echo: bool = False  # the text, too, comes back first, with its logprobs where they are asked for
    format: Format | None = None


@dataclass(frozen=True)
class Alternative:
    """A token as servers tell of it: most give no id."""

    text: str
    logprob: float  # nan: it has none, as the first of a text
    id: int | None = None


@dataclass(frozen=True)
class ScoredToken(Alternative):
    """And its likeliest alternatives, falling."""

    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A further piece of an answer, or of what is thought before it."""

    text: str
    thinking: bool = False
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's, those that it had computed before


@dataclass(frozen=True)
class Ended:
    """How an answer ended; the last that a reply gives."""

    reason: FinishReason  # "repeat" comes from who asks
    usage: Usage | None  # None: the server tells nothing
    first_s: float  # seconds to the first piece
    total_s: float
    ignored: tuple[str, ...] = ()  # what was asked for and the server cannot do, in words for people: "min_p"
    notes: tuple[str, ...] = ()  # what else people should know of this answer, a sentence each
