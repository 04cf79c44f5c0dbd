"""`llamachat complete`: from prompts, or a JSONL file of them, to answers on stdout; a filter that scripts can rely on.

What answers, a model that runs here or a server, is a subclass's: completer.py, served.py.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TextIO, TypeVar

from llamachat.checks import shown
from llamachat.core.dialog import Message
from llamachat.errors import LlamachatError, UsageError
from llamachat.generation.jsonl import Source, numbered, parse_line
from llamachat.generation.thinking import Part, parted
from llamachat.system.metadata import is_record
from llamachat.system.sanitise import Sanitiser

if TYPE_CHECKING:
    from llamachat.events import FinishReason, Stats

PARALLEL = 32


class Reply(Protocol):
    """One answer: `parts` is iterated once, and all else is right wherever that is left off."""

    reason: "FinishReason"
    all_thought: bool  # it ended within a thought

    def parts(self) -> Iterator[Part]:
        """Its text in pieces, each with whether it is thought."""
        ...

    def stats(self) -> "Stats": ...


R = TypeVar("R", bound=Reply)  # an answer
Asked = TypeVar("Asked")  # what is asked, ready to be answered
Followed = TypeVar("Followed")  # what an answer must follow
Outcome = tuple[R, Iterable[Part]] | LlamachatError
Requests = Iterator[Asked | LlamachatError | None]  # see answers


Keep = Callable[[dict[str, Any]], None]


def lost(result: dict[str, Any]) -> None:
    """What nobody keeps."""


def check_stops(stop_strings: Sequence[str]) -> None:
    """Raises UsageError for any beside a grammar."""
    if stop_strings:
        raise UsageError("a stop string could cut an answer short of its grammar", remedy="leave --stop out")


class Prompting(Generic[R, Asked, Followed]):
    """How prompts are asked and answers written: the same whatever answers."""

    system: str | None
    raw: bool  # a prompt is a plain text to go on with
    grammar: Followed | None  # of every answer
    interrupted: Callable[[], bool]
    at_once = PARALLEL  # requests, unless told otherwise

    @property
    def name(self) -> str:
        """Of the model."""
        raise NotImplementedError

    @property
    def load_s(self) -> float:
        """Seconds that it took to load."""
        raise NotImplementedError

    @property
    def reads(self) -> bool:
        """Whether it answers a source, and has no dialog."""
        raise NotImplementedError

    def request(self, messages: list[Message] | str, followed: Followed | None) -> Asked:
        """The question that a dialog is, or (raw) a text to go on with. Raises LlamachatError."""
        raise NotImplementedError

    def schema(self, value: object) -> Followed:
        """Of a JSON schema as a line of a batch has it. Raises UsageError."""
        raise NotImplementedError

    def begin(self, asked: Asked) -> R:
        """The answer, which begins when it is iterated."""
        raise NotImplementedError

    def answers(
        self, parallel: int, requests: "Callable[[Callable[[], bool]], Requests[Asked]]"
    ) -> "Iterator[Outcome[R]]":
        """The outcomes of requests, in order, up to `parallel` of them at once; each answer with what it has given.

        `requests` is called with whether nothing can be done before the next one comes, which may then be waited for. None
        among them means that there is none yet; an error is passed on in its place.
        """
        raise NotImplementedError

    def before(self, reply: R) -> str:
        """What --echo puts before the answer."""
        raise NotImplementedError

    def tokens(self, reply: R) -> Sequence[int]:
        """The answer's, behind those of the prompt with --echo."""
        raise NotImplementedError

    def logprobs(self, reply: R) -> list[dict[str, Any]] | None:
        """None: none were asked for."""
        raise NotImplementedError

    def usage(self, reply: R) -> dict[str, int | None]:
        """None: nobody counted."""
        stats = reply.stats()
        return {"prompt_tokens": stats.prompt_tokens, "completion_tokens": stats.completion_tokens}

    def finished(self, reply: R) -> None:
        """An answer has been written: what else is to be said of it may be said now."""

    def start(self, messages: list[Message] | str) -> R:
        """The answer to a dialog, or (raw) the continuation of a text; iterate it for the text."""
        return self.begin(self.request(messages, self.grammar))

    def dialog(self, prompt: str) -> list[Message] | str:
        """What the model is given for one prompt text: the text itself (raw), or a dialog with it."""
        return prompt if self.raw else self._with_system([Message("user", prompt)])

    def _with_system(self, messages: list[Message]) -> list[Message]:
        """The system prompt goes before a dialog that has none of its own."""
        if not self.system or (messages and messages[0].role == "system"):
            return messages
        return [Message("system", self.system), *messages]

    def stream(self, prompt: str, out: TextIO, thoughts: TextIO | None = None) -> R:
        """Write the text as it comes (sanitised if `out` is a terminal), and a newline; and what was thought, if to anywhere.

        What has been written when an error ends the answer stays, on a line of its own.
        """
        reply = self.start(self.dialog(prompt))
        said, thought = _Written(out), _Written(thoughts)
        try:
            for text, is_thought in self._text(reply):
                if not is_thought and thought.begun:
                    thought.end()
                (thought if is_thought else said).write(text)
        except LlamachatError:
            for written in (thought, said):
                if written.begun:
                    written.end()
            raise
        if thought.begun:
            thought.end()
        said.end()
        self.finished(reply)
        return reply

    def _text(self, reply: R) -> Iterator[Part]:
        if before := self.before(reply):
            yield before, False
        yield from reply.parts()

    def result(self, messages: list[Message] | str, broken: Keep = lost) -> dict[str, Any]:
        """The JSON object of the CLI contract for one prompt. `broken` is given that of an answer that an error ends, if any of
        it has come, before the error is raised."""
        reply, parts = self.start(messages), list[Part]()
        try:
            for part in reply.parts():
                parts.append(part)
        except LlamachatError:
            if parts:
                broken(self._object(reply, parts))
            raise
        self.finished(reply)
        return self._object(reply, parts)

    def _object(self, reply: R, parts: Iterable[Part]) -> dict[str, Any]:
        thought, text = parted(parts)
        stats = reply.stats()
        result = {
            "model": self.name,
            "text": self.before(reply) + text,
            **({"reasoning": thought} if thought else {}),
            "tokens": self.tokens(reply),
            "finish_reason": reply.reason,
            "usage": self.usage(reply),
            "timings": {
                "load_s": round(self.load_s, 4),
                "prefill_s": round(stats.prefill_s, 4),
                "decode_s": round(stats.decode_s, 4),
                "prefill_tok_s": round(stats.prefill_tok_s, 2),
                "decode_tok_s": round(stats.decode_tok_s, 2),
            },
        }
        logprobs = self.logprobs(reply)
        return result if logprobs is None else {**result, "logprobs": logprobs}

    def batch(self, lines: Source, out: TextIO, parallel: int, skip: int = 0) -> bool:
        """One result a line for each line of JSON, in order; a bad line gives {"error": ...}. True when none was bad.

        parallel: requests to run at once. skip: requests that were answered before.
        """
        good = True
        for outcome in self.answers(parallel, lambda idle: self._requests(lines, idle, skip)):
            if isinstance(outcome, LlamachatError):
                good = False
                write_json({"error": str(outcome)}, out)
            else:
                write_json(self._object(*outcome), out)
                self.finished(outcome[0])
        return good

    def _requests(self, lines: Source, idle: Callable[[], bool], skip: int) -> "Requests[Asked]":
        for number, line in numbered(lines, idle):
            if line is None:
                yield None
            elif skip:
                skip -= 1
            else:
                yield line if isinstance(line, LlamachatError) else self.parsed(line, number)

    def parsed(self, line: str, number: int) -> Asked | LlamachatError:
        try:
            return self._parse(line, number)
        except LlamachatError as error:
            return error

    def _parse(self, line: str, number: int) -> Asked:
        """{"prompt": ...} or {"messages": ...}, and a "schema" if the answer must follow one."""
        request = parse_line(line, number)
        followed = self.grammar
        if isinstance(request, dict) and "schema" in request:
            followed = self.schema(request.pop("schema"))
        if is_record(request, {"prompt": str}):
            return self.request(self.dialog(request["prompt"]), followed)
        asks = is_record(request, {"messages": list}) and request["messages"]
        if asks and self.reads:
            cause = f"{self.name} answers a source text, it has no dialog"
            raise UsageError(cause, f"line {number} was skipped", 'write {"prompt": "..."}')
        if asks and not self.raw:
            messages = [Message.parse(message) for message in request["messages"]]
            return self.request(self._with_system(messages), followed)
        expected = '{"prompt": "..."}' + ("" if self.raw else ' or {"messages": [{"role": ..., "content": ...}]}')
        others = [key for key in request if key not in ("prompt", "messages")] if isinstance(request, dict) else []
        cause = (
            f"line {number} has {shown(others[0])}, which no request has"
            if others
            else f"line {number} is not a request"
        )
        raise UsageError(cause, "it was skipped", f"write {expected}" + "; options hold for all lines" * bool(others))


class _Written:
    """A text on its way to a stream, sanitised if that is a terminal; to none, it goes nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._sanitiser = Sanitiser() if stream and stream.isatty() else None
        self.begun = False

    def write(self, text: str) -> None:
        self.begun = True
        self._put(self._sanitiser.feed(text) if self._sanitiser else text)

    def end(self) -> None:
        """And a newline."""
        self.begun = False
        self._put((self._sanitiser.finish() if self._sanitiser else "") + "\n")

    def _put(self, text: str) -> None:
        if self._stream:
            self._stream.write(text)
            self._stream.flush()


def write_json(value: dict[str, Any], out: TextIO) -> None:
    """One line; in ASCII where its characters could act (a terminal) or would be lost (an encoding that lacks them)."""
    ascii_only = out.isatty() or (out.encoding or "utf-8").lower() != "utf-8"
    out.write(json.dumps(value, ensure_ascii=ascii_only) + "\n")
    out.flush()
