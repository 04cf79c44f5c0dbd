"""One OpenAI-compatible server."""

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

from llamachat.core.detokenize import StopMatcher
from llamachat.errors import UsageError
from llamachat.remote import faults, listing, request
from llamachat.remote.abilities import OTHER, Abilities
from llamachat.remote.asking import Address, Ended, Piece, Question, ServedModel, ServerError
from llamachat.remote.client import Client
from llamachat.remote.connection import Connection, StoppedError, Waits
from llamachat.remote.faults import BrokenError, RefusedError
from llamachat.remote.reply import Reply
from llamachat.system.web_address import server_url

USUAL = Waits()


class Server:
    """What it has been found to be able to do. May be used by several threads at once: each request has a connection of its
    own, and closing that is what stops an answer.
    """

    def __init__(self, address: Address, *, offline: bool = False, waits: Waits = USUAL) -> None:
        """Raises UsageError for an address that is none, or that is not to be used so, and ServerError for one that
        --offline forbids; asks nothing yet."""
        self.address = replace(address, url=server_url(address.url))
        self._client = Client(self.address, waits, offline)
        self._lock = threading.Lock()
        self._refused: dict[str, set[str] | None] = {}  # keys, with the values that were refused; None: any
        self._renamed: set[str] = set()  # keys that go by their other name
        self._listed: dict[str, Any] | None = None
        self._closed = False

    def models(self) -> Sequence[ServedModel]:
        """Those that it has. Raises ServerError, and UsageError for a key that is missing."""
        with self._open():
            self._listed = self._list(self._is_closed)
            return listing.listed(self._listed)

    def model_name(self) -> str:
        """Of the model that is asked: the one named, or the only one. The list is asked for, which tells the kind of server, too.
        Raises ServerError, and UsageError for several."""
        with self._open():
            return self._model(self._is_closed, listing_helps=True)[0]

    def ask(self, question: Question, interrupted: Callable[[], bool]) -> Generator[Piece | Ended, None, None]:
        """The answer as it comes: pieces, then how it ended. Raises ServerError before the first piece or behind any.

        `interrupted` is asked while it is waited for; then the connection is closed at once and Ended("interrupt") comes.
        Leaving the iterator closes the connection, too. Raises UsageError where a key is missing, or no model is named.
        """
        reply, ignored = Reply(question, self._client.name, self._client.secret()), list[str]()
        started, first = time.monotonic(), None
        reason: Literal["stop", "length", "interrupt"] = "interrupt"
        with closing(self._pieces(question, reply, ignored, interrupted)) as pieces, suppress(StoppedError):
            for piece in _echoed(question, _up_to_stops(question, pieces)):
                first = first or time.monotonic() - started
                yield piece
            reason = reply.reason or "stop"
            ignored += reply.ignored()
        total = time.monotonic() - started
        yield Ended(reason, reply.usage, first or total, total, tuple(dict.fromkeys(ignored)), tuple(reply.notes))

    def close(self) -> None:
        """Answers under way end as interrupted ones, and nothing more is asked."""
        self._closed = True

    def _is_closed(self) -> bool:
        return self._closed

    @contextmanager
    def _open(self) -> Iterator[None]:
        """What is asked here is given up when the server is closed. Raises ServerError then."""
        try:
            yield
        except StoppedError:
            raise ServerError(f"{self._client.name} is asked no more", "its models are not known") from None

    def _pieces(
        self, question: Question, reply: Reply, ignored: list[str], interrupted: Callable[[], bool]
    ) -> Generator[Piece, None, None]:
        def stopped() -> bool:
            return self._closed or interrupted()

        path = "/chat/completions" if question.text is None else "/completions"
        model, abilities = self._model(stopped, request.particular(question))
        ignored += request.missing(question, abilities)
        whole = request.body(question, model, abilities)
        while True:
            sent, headed = self._allowed(whole), False
            try:
                with self._client.asked("POST", path, sent, stopped) as (connection, head):
                    headed = True
                    ignored += request.left_out(whole, sent)
                    kind = head.headers.get("content-type", "")
                    yield from _until(stopped, reply.pieces(kind, _blocks(connection, reply)))
                return
            except RefusedError as refused:
                if not self._learnt(refused, sent):
                    raise self._refusal(refused, stopped) from None
            except BrokenError:  # llama-cpp-python tells what is wrong only where it does not stream
                if reply.begun or not headed or not sent["stream"]:
                    raise
                whole = request.unstreamed(whole)

    def _allowed(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Without what the server has refused."""
        with self._lock:
            gone = [
                key
                for key, values in self._refused.items()
                if key in sent and request.optional(sent, key) and (values is None or json.dumps(sent[key]) in values)
            ]
            return request.renamed(request.without(sent, gone), self._renamed)

    def _learnt(self, refused: RefusedError, sent: Mapping[str, Any]) -> bool:
        """Whether the question may be asked again without what is refused."""
        keys = [key for key in refused.named(sent) if request.optional(sent, key)]
        others = refused.others(sent, request.OTHER_NAMES)
        with self._lock:
            self._renamed |= others
            for key in keys:
                if refused.of_any_value:
                    self._refused[key] = None
                elif (values := self._refused.setdefault(key, set())) is not None:
                    values.add(json.dumps(sent[key]))
        return bool(keys or others)

    def _refusal(self, refused: RefusedError, stopped: Callable[[], bool]) -> ServerError:
        names = list[str]()
        if refused.status == 404:
            with suppress(ServerError):
                names = [model.name for model in listing.listed(self._list(stopped))]
        return faults.refusal(self._client.name, refused, self.address.key_env, self._client.secret(), names)

    def _model(self, stopped: Callable[[], bool], listing_helps: bool) -> tuple[str, Abilities]:
        """The model's name, and what can be asked of it. The list is asked for once, and only where it matters."""
        name = self.address.model
        if name is not None and self._listed is None and not listing_helps:
            return name, OTHER
        try:
            found = self._listed = self._listed or self._list(stopped)
        except ServerError:
            if name is None:
                raise
            return name, OTHER
        return name or self._only(found), listing.kind(found, name)

    def _only(self, found: Mapping[str, Any]) -> str:
        names = [model.name for model in listing.listed(found)]
        if len(names) == 1:
            return names[0]
        some = faults.said(listing.some(names), self._client.secret())
        has = f"has {len(names)} models: {some}" if names else "has no model"
        raise UsageError(
            f"{self._client.name} {has}", "nothing was asked", "name one with -m" if names else "load one there"
        )

    def _list(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        try:
            return self._client.listed(stopped)
        except RefusedError as refused:
            raise faults.refusal(self._client.name, refused, self.address.key_env, self._client.secret()) from None


def _echoed(question: Question, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The text first, where the server is not asked for it, as nothing more is wanted of it."""
    before = question.text if question.echo and not request.echoes(question) else None
    for piece in pieces:
        if before is not None:
            yield Piece(before)
            before = None
        yield piece
    if before is not None:
        yield Piece(before)


def _up_to_stops(question: Question, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Up to a stop string: there are servers that give it, too (transformers), or that know of none and go on."""
    if question.stop and request.echoes(question):
        yield from islice(pieces, 1)
    stops, met = StopMatcher(question.stop), False
    for piece in pieces:
        if piece.thinking or not question.stop:
            yield piece
            continue
        if met and piece.text:
            return
        text, met = stops.add(piece.text)
        if text or piece.tokens:
            yield replace(piece, text=text)
    if held := stops.finish():
        yield Piece(held)


def _until(stopped: Callable[[], bool], pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        if stopped():
            raise StoppedError
        yield piece


def _blocks(connection: Connection, reply: Reply) -> Iterator[bytes]:
    """What comes; the connection learns how far the answer has come by it."""
    for block in connection.body():
        yield block
        connection.begun = reply.begun
        if reply.reason is not None:
            connection.finish()
