"""What a server answers, event by event, as pieces; and what it proves to have been ignored."""

import json
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import Any, Literal

from llamachat.checks import is_count
from llamachat.remote import faults
from llamachat.remote.asking import NO_LOGPROBS, Piece, Question, ServerError, Usage
from llamachat.remote.request import echoes
from llamachat.remote.scores import clean, offsets, scored
from llamachat.remote.sse import LONGEST_EVENT, Event, Events, OverlongError

LONGEST_BODY = 64 << 20  # bytes of an answer that comes as one
LONGEST_STREAM = 256 << 20  # bytes of one that comes in events
LONGEST_TEXT = 16 << 20  # characters of an answer and of what is thought before it
MOST_SCORES = 1 << 20  # tokens and alternatives of an answer
MOST_VALUES = 2 << 20  # of one JSON, each of which takes some 80 bytes
FAILED = ("error", "abort")  # reasons to end that are none
DONE = "[DONE]"


class Reply:
    """Reads one answer. `where`: the server, as errors name it; `secret`: what they must not say."""

    def __init__(self, question: Question, where: str, secret: str | None) -> None:
        self._question, self._where, self._secret = question, where, secret
        self.reason: Literal["stop", "length"] | None = None  # None: it has not ended
        self.usage: Usage | None = None
        self.notes: list[str] = []
        self.done = False  # nothing more is to come
        self._said = StringIO()
        self._length = self._scores = 0
        self._thought = self._called = self._mute = False

    @property
    def begun(self) -> bool:
        """There was a piece."""
        return self._length > 0

    def pieces(self, kind: str, blocks: Iterable[bytes]) -> Iterator[Piece]:
        """`kind`: the Content-Type. A server may give an answer as one although a stream is asked for."""
        media = kind.partition(";")[0].strip().lower()
        if media == "text/event-stream":
            return self.stream(blocks)
        if media == "application/json":
            return self.whole(blocks)
        told = f"answers with {faults.said(media, self._secret)}" if media else "does not say what it answers with"
        raise self._unfit(told)

    def stream(self, blocks: Iterable[bytes]) -> Iterator[Piece]:
        """The pieces of a stream of events. Raises ServerError where it ends too early, or is none.

        What goes wrong behind the end of an answer is no fault of it.
        """
        try:
            yield from self._events(blocks)
        except (ServerError, faults.RefusedError):
            if self.reason is None:
                raise
        if self.reason is None:
            raise faults.broken(self._where, self.begun)

    def _events(self, blocks: Iterable[bytes]) -> Iterator[Piece]:
        events, size = Events(), 0
        try:
            for block in blocks:
                size += len(block)
                if size > LONGEST_STREAM:
                    raise self._unfit(f"sends more than {LONGEST_STREAM >> 20} MiB")
                for event in events.add(block):
                    yield from self._event(event)
                    if self.done:
                        return
        except OverlongError as error:
            raise self._unfit(f"sends an event of more than {LONGEST_EVENT >> 20} MiB") from error

    def whole(self, blocks: Iterable[bytes]) -> Iterator[Piece]:
        """The pieces of an answer that is one JSON object."""
        answer = parsed(gathered(blocks, self._where, LONGEST_BODY), self._where)
        yield from self._chunk(answer)
        if self.reason is None:
            raise self._unfit("sends an answer without an end")

    def ignored(self) -> Iterator[str]:
        """What was asked for and, as the answer shows, was not done."""
        question = self._question
        if question.top_logprobs is not None and not self._scores and self._said.tell():
            yield NO_LOGPROBS
        if self._mute:
            yield "logprobs of the text itself"
        if question.thinking is False and self._thought:
            yield "not to think"
        if question.format and question.format.kind == "schema" and not self._follows_json():
            yield "the JSON schema"

    def _follows_json(self) -> bool:
        """Whether the answer is JSON or, where it was cut off, begins as JSON does."""
        text = self._said.getvalue().strip()
        return _is_json(text) if self.reason == "stop" else not text or text[0] in '{["-0123456789tfn'

    def _event(self, event: Event) -> Iterator[Piece]:
        if event.data.strip() == DONE:
            self.done = True
            return
        if event.name == "error":
            raise self._told(told(event.data) or "an error")
        yield from self._chunk(parsed(event.data.encode(), self._where, self.begun))

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[Piece]:
        if chunk.get("error") or chunk.get("object") == "error":
            raise self._told(chunk)
        self.usage = usage(chunk.get("usage")) or self.usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping) and not choice.get("index"):
                for piece in self._pieces(choice):
                    self._count(piece)
                    yield piece
                self._ends(choice.get("finish_reason"))
                return

    def _count(self, piece: Piece) -> None:
        """Raises ServerError for more than anyone can want."""
        self._length += max(len(piece.text), 1)
        if self._length > LONGEST_TEXT:
            raise self._unfit(f"sends an answer of more than {LONGEST_TEXT >> 20} million characters")
        self._scores += sum(1 + len(token.top) for token in piece.tokens)
        if self._scores > MOST_SCORES:
            raise self._unfit(f"sends more than {MOST_SCORES >> 20} million logprobs")
        self._thought |= piece.thinking
        if not piece.thinking:
            self._said.write(piece.text)

    def _pieces(self, choice: Mapping[str, Any]) -> Iterator[Piece]:
        """Of a chat's part or whole, or of a plain text's; whichever it is."""
        part = next((choice[key] for key in ("delta", "message") if isinstance(choice.get(key), Mapping)), choice)
        content, top = part.get("content"), self._question.top_logprobs
        thought = clean(part.get("reasoning_content")) or clean(part.get("reasoning")) or _words(content, "thinking")
        text = _words(content, "text") or clean(part.get("text")) or clean(part.get("refusal"))
        tokens = scored(choice.get("logprobs"), top) if top is not None else ()
        self._calls(part)
        if thought:
            yield Piece(thought, thinking=True, tokens=() if text else tokens)
        if echoes(self._question):
            yield from self._echoed(text, choice, tokens)
        elif text or (tokens and not thought):
            yield Piece(text, tokens=tokens)

    def _echoed(self, text: str, choice: Mapping[str, Any], tokens: Any) -> Iterator[Piece]:
        prompt = self._question.text or ""
        if not text.startswith(prompt):
            self._mute = True
            yield Piece(prompt)
            yield Piece(text, tokens=tokens)
            return
        starts = offsets(choice.get("logprobs")) or _starts(tokens)
        inside = sum(start < len(prompt) for start in starts)
        yield Piece(prompt, tokens=tokens[:inside])
        yield Piece(text[len(prompt) :], tokens=tokens[inside:])

    def _calls(self, part: Mapping[str, Any]) -> None:
        calls = part.get("tool_calls") or part.get("function_call")
        if not calls or self._called:
            return
        self._called = True
        first = calls[0] if isinstance(calls, list) else calls
        function = first.get("function", first) if isinstance(first, Mapping) else {}
        name = function.get("name") if isinstance(function, Mapping) else None
        shown = faults.said(name, self._secret) if isinstance(name, str) else "?"
        self.notes.append(f"the model calls the tool {shown!r}: tools are not run")

    def _ends(self, reason: object) -> None:
        if not isinstance(reason, str) or not reason:  # some say "" as long as there is none
            return
        if reason in FAILED:
            raise self._told(f"the answer ended with {reason!r}")
        if reason == "content_filter" and self.reason is None:
            self.notes.append("the server's filter ended the answer")
        self.reason = "length" if reason in ("length", "max_tokens") else "stop"

    def _told(self, error: object) -> Exception:
        """Before the first piece it may be one that a question without its cause would not meet."""
        if not self.begun:
            return faults.RefusedError(200, {}, error)
        return faults.told(self._where, error, self._secret, begun=True)

    def _unfit(self, what: str) -> ServerError:
        return faults.unfit(self._where, what, self.begun)


def gathered(blocks: Iterable[bytes], where: str, longest: int) -> bytes:
    """All of a body. Raises ServerError beyond so many bytes."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) > longest:
            raise faults.unfit(where, f"sends more than {longest >> 20} MiB")
    return bytes(data)


def parsed(data: bytes, where: str, begun: bool = False) -> dict[str, Any]:
    """The JSON object that bytes hold. Raises ServerError."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise faults.unfit(where, f"sends JSON of more than {MOST_VALUES >> 20} million values", begun)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise faults.unfit(where, "sends what is no JSON", begun) from error
    if not isinstance(value, dict):
        raise faults.unfit(where, "sends JSON that is no object", begun)
    return value


def told(text: str) -> object:
    """What an error says: as JSON, or as a text, of which a page for browsers says nothing to people."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else text


def usage(value: object) -> Usage | None:
    """The counts of tokens; None where they are none."""
    if not isinstance(value, Mapping):
        return None
    counts = [value.get("prompt_tokens"), value.get("completion_tokens")]
    if not all(map(is_count, counts)):
        return None
    more = value.get("prompt_tokens_details")
    cached = more.get("cached_tokens") if isinstance(more, Mapping) else 0
    return Usage(counts[0], counts[1], cached if is_count(cached) else 0)  # type: ignore[arg-type]


def _words(content: object, kind: Literal["text", "thinking"]) -> str:
    """A text, or all of this kind among the parts of one, as Mistral sends them: thoughts are parts of their own."""
    if not isinstance(content, list):
        return clean(content) if kind == "text" else ""
    parts = [each.get(kind) for each in content if isinstance(each, Mapping) and each.get("type") == kind]
    return "".join(clean(part) if kind == "text" else _words(part, "text") for part in parts)


def _starts(tokens: Iterable[Any]) -> list[int]:
    starts, at = list[int](), 0
    for token in tokens:
        starts.append(at)
        at += len(token.text)
    return starts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
