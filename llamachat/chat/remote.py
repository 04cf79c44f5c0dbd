"""The backend of a model on a server: a dialog goes there as messages, and comes back as text."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llamachat.chat.asked import Asked, Capability, Seen
from llamachat.chat.latest import Latest
from llamachat.chat.settings import Settings, thinking
from llamachat.chat.tree import Node, Tree
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import TAGGED
from llamachat.errors import LlamachatError, UsageError
from llamachat.events import Event, Stats, TextDelta, TextSize, TokenView, TurnDone
from llamachat.generation.thinking import Tagger
from llamachat.generation.until_loop import until_loop
from llamachat.remote.asking import NO_LOGPROBS, Address, Ended, Question, ScoredToken, ServedModel, TooLongError, Usage
from llamachat.remote.listing import some
from llamachat.remote.server import Server
from llamachat.system.web_address import is_loopback

if TYPE_CHECKING:
    from llamachat.chat.window import Overflow
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.sources import ServerSource

ALTERNATIVES = 10  # of each token
SCORED = 10_000  # tokens of the latest answers whose probabilities are kept; with their alternatives some 2 kB each
NO_BUDGET = "no server keeps a think_budget: thoughts end where the model ends them"

Open = Callable[[Address], Server]


class RemoteBackend:
    """A model elsewhere that answers one dialog at a time. Which of a server's several models that is may be open."""

    def __init__(
        self,
        entry: "ModelEntry",
        open: Open,
        overflow: "Overflow" = "roll",
        *,
        context: int | None = None,
    ) -> None:
        """`entry` is a server's. `context`: tokens, where a person knows better than the server. Raises ServerError, and
        UsageError for an address that is not to be used, or where no model is named."""
        self.entry, self.overflow, self._open = entry, overflow, open
        source = self._source
        self.server = open(Address(source.server, source.model, source.key_env, source.insecure))
        self.served = self.server.models()
        self.model = source.model or (self.served[0].name if len(self.served) == 1 else None)
        if not (self.model or self.served):
            raise UsageError(f"{self.host} names no model", "nothing was asked", "name one with -m, or load one there")
        self._context = context
        told = next((each.context for each in self.served if each.name == self.model), None)
        self._latest = Latest(context or told or entry.context, stops=overflow == "stop")
        self._scores = True  # until it is found not to
        self._wanted = False  # whether answers are to come with their tokens' probabilities
        self._scored: dict[Node, list[ScoredToken]] = {}  # the latest last
        self._ignored: set[str] = set()  # of what was asked for; that was told
        self._remarks: list[str] = []
        self._used, self._counts = 0, True

    # ---- what it is ----

    @property
    def _source(self) -> "ServerSource":
        from llamachat.models.sources import ServerSource

        source = self.entry.source
        assert isinstance(source, ServerSource)
        return source

    @property
    def host(self) -> str:
        return urlsplit(self.server.address.url).netloc

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"scores"} if self._scores else ())

    @property
    def name(self) -> str:
        return f"{self.model} on {self.host}" if self.model else self.host

    @property
    def reference(self) -> str:
        """The catalog's name; of an address that is in none, with the model that was chosen."""
        name, source = self.entry.name, self._source
        return replace(source, model=self.model).reference if name == source.reference else name

    @property
    def tokenizer(self) -> str:
        return ""

    @property
    def notes(self) -> Sequence[str]:
        away = not is_loopback(self.server.address.url)
        sent = [f"the whole dialog is sent to {self.host}"] if away else []
        names = [each.name for each in self.served]
        if self.model is None:
            return [*sent, f"{self._several()}; /model NAME takes one, Tab completes it"]
        unlisted = names and self.model not in names
        return [*sent, *([f"{self.host} does not list {self.model}; it has {some(names)}"] if unlisted else [])]

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams().replace(**self.entry.sampling)

    @property
    def system(self) -> str | None:
        return self.entry.system

    @property
    def context_used(self) -> int:
        return self._used

    @property
    def context_size(self) -> int:
        return self._latest.size or 0 if self._counts else 0

    def describe(self) -> Mapping[str, str]:
        here = " on this machine" if is_loopback(self.server.address.url) else ""
        size = self._latest.size
        return {
            "model": self.model or "none yet",
            "weights": f"on {self.host}; what they are is not known",
            "engine": f"a server{here}: {self.server.address.url}",
            "context": f"{size} tokens" if size else "of how many tokens is not known",
            "overflow": "stop" if self.overflow == "stop" else "refill",
            "memory": "",  # of no use here: the model's is elsewhere
            "privacy": f"the whole dialog is sent to {self.host}",
        }

    def check(self) -> None:
        """See Backend: whether a model can chat, its server knows."""

    def unheard(self, settings: Settings) -> str | None:
        """See Backend. What else a server does not do is known once it has answered."""
        return NO_BUDGET if settings.think_budget is not None else None

    def remarks(self) -> Sequence[str]:
        """See Backend."""
        new, self._remarks = self._remarks, []
        return new

    def require_model(self, consequence: str, remedy: str) -> None:
        """Raises UsageError as long as it is open which of several is meant."""
        if self.model is None:
            raise UsageError(self._several(), consequence, remedy)

    def weigh(self, text: str, system: str | None) -> TextSize | None:
        """See Backend: an estimate, once the server has counted something."""
        tokens = self._latest.expected(text)
        return None if tokens is None else TextSize(tokens, False)

    # ---- answering ----

    def respond(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        """See Backend. Raises UsageError as long as no model is chosen."""
        self.require_model("the message was not sent", "choose one with /model NAME")
        return self._answer(asked, settings)

    def _answer(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        """Of as much of the dialog as the server takes; where it takes nothing, all is as before."""
        before, begun = self._latest.begins, False
        gone = [self._latest.fit(asked, settings.max_tokens)]
        try:
            while not begun:
                try:
                    for event in self._reply(asked, settings):
                        if not begun:
                            yield from filter(None, gone)
                        begun = True
                        yield event
                except TooLongError as error:
                    if begun:
                        raise
                    gone.append(self._latest.refused(asked, error))
        except LlamachatError:
            if not begun:
                self._latest.begins = before
            raise

    def _reply(self, asked: Asked, settings: Settings) -> Iterator[Event]:
        messages, tagger, tokens = self._latest.messages(asked), Tagger(TAGGED), list[ScoredToken]()
        pieces = characters = 0
        question = self._question(messages, asked, settings)
        try:
            for part in until_loop(self.server, question, asked.interrupted, settings.allow_loops):
                if isinstance(part, Ended):
                    self._learn(part, messages, pieces, characters)
                    yield self._done(part, pieces)
                    return
                tokens += part.tokens
                if part.text:
                    pieces, characters = pieces + 1, characters + len(part.text)
                    yield TextDelta(tagger.tag([(part.text, part.thinking)]))
        finally:
            self._keep_scores(asked.answer, tokens)
        raise AssertionError("what a server says ends with Ended")

    def _question(self, messages: Sequence[Message], asked: Asked, settings: Settings) -> Question:
        return Question(
            messages,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            thinking=thinking(asked.answer.parameters),
            top_logprobs=ALTERNATIVES if self._scores and self._wanted else None,
        )

    def _learn(self, ended: Ended, messages: Sequence[Message], pieces: int, characters: int) -> None:
        """What is known of the server now."""
        self._scores = self._scores and NO_LOGPROBS not in ended.ignored
        ignored = [each for each in ended.ignored if each not in {NO_LOGPROBS, *self._ignored}]
        self._ignored.update(ignored)
        self._remarks += [*ended.notes, *([f"{self.host} ignores {', '.join(ignored)}"] if ignored else [])]
        if ended.usage:
            self._latest.counted(messages, ended.usage.prompt_tokens)
        elif pieces:
            self._latest.supposed(pieces, characters)

    def _done(self, ended: Ended, pieces: int) -> TurnDone:
        """What the answer took."""
        usage = ended.usage or Usage(0, pieces)
        if ended.usage or ended.reason not in ("interrupt", "repeat"):  # of a stopped answer no server tells
            self._counts = ended.usage is not None
            self._used = usage.prompt_tokens + usage.completion_tokens if self._counts else 0
        stats = Stats(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            ended.first_s,
            ended.total_s - ended.first_s,
            self.context_used,
            self.context_size,
            counted=ended.usage is not None,
        )
        return TurnDone(stats, ended.reason)

    # ---- the dialog ----

    def seen(self, line: Sequence[Node], system: str | None) -> Seen:
        """See Backend: what was not sent."""
        return Seen(self._latest.dropped(line))

    def forget(self) -> None:
        self._latest.begins, self._used, self._counts = None, 0, True

    def recall(self, answers: Callable[[str], Iterable[Sequence[int]]]) -> None:
        """See Backend: none leaves this machine."""

    def take_up(self, dialog: str, tree: Tree, say: Callable[[str], None]) -> None:
        """See Backend: nothing was kept."""
        self.forget()

    def keep(self, dialog: str) -> None:
        """See Backend: nothing is kept."""

    # ---- the server's other models ----

    def others(self) -> Sequence[tuple[str, str]]:
        """See Backend."""
        return [(each.name, f"on {self.host}{_size(each)}") for each in self.served]

    def sibling(self, name: str) -> "RemoteBackend | None":
        """See Backend."""
        from llamachat.models.catalog import on_server

        if all(each.name != name for each in self.served):
            return None
        entry = on_server(replace(self._source, model=name))
        context = None if self.model else self._context  # that was told of the model which is chosen now
        return RemoteBackend(entry, self._open, self.overflow, context=context)

    def _several(self) -> str:
        names = [each.name for each in self.served]
        return f"{self.host} has {len(names)} models: {some(names)}"

    # ---- seeing inside ----

    def tokens(self, asked: Asked, alternatives: int) -> Sequence[TokenView]:
        """See Scoring: of answers of this run, as the server told with them, which is all that servers do. They are asked for
        once somebody has wanted to see them: llama-cpp-python takes eight times as long for an answer with them."""
        if not (found := self._scored.get(asked.answer)):
            self._wanted = True
            cause, consequence = "this answer came without probabilities", "from now on they are asked for"
            raise UsageError(cause, consequence, "/regen gives another answer, with them")
        return [
            TokenView(each.text, None, each.logprob, tuple((a.text, None, a.logprob) for a in each.top[:alternatives]))
            for each in found
        ]

    def _keep_scores(self, answer: Node, tokens: list[ScoredToken]) -> None:
        """The oldest answers' go where there are too many."""
        if tokens:
            self._scored[answer] = tokens
        count = sum(map(len, self._scored.values()))
        for node in [*self._scored][:-1]:
            if count <= SCORED:
                break
            count -= len(self._scored.pop(node))


def _size(model: ServedModel) -> str:
    return f", context {model.context}" if model.context else ""
