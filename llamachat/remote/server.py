"""One OpenAI-compatible server."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from llamachat.errors import UsageError, reading
from llamachat.remote import faults, listing, request
from llamachat.remote.abilities import OTHER, Abilities
from llamachat.remote.asking import Address, Ended, Piece, Question, ServedModel, ServerError
from llamachat.remote.bearer import key
from llamachat.remote.connection import Connection, Head, Place, StoppedError, Waits
from llamachat.remote.reply import Reply, gathered, parsed
from llamachat.system.web_address import check_key_name, is_loopback, server_url
from llamachat.version import __version__

if TYPE_CHECKING:
    import ssl

LONGEST_LIST = 16 << 20  # bytes of a list of models
LONGEST_ERROR = 1 << 16  # bytes of an error's body that are looked at
LISTING_S = 30.0  # for a list of models
NEVER: Callable[[], bool] = lambda: False  # noqa: E731


class Server:
    """Its connections, and what it has been found to be able to do. May be used by several threads at once.

    A connection serves one request: nothing of it outlives the request, and closing it is what stops an answer.
    """

    def __init__(self, address: Address, *, offline: bool = False, waits: Waits = Waits()) -> None:  # noqa: B008
        """Raises UsageError for an address that is none, or that is not to be used so, ServerError for one that
        --offline forbids; asks nothing yet."""
        self.address = replace(address, url=server_url(address.url))
        self._place, self._waits = Place.of(self.address.url), waits
        _check(self.address, self._place, offline)
        self._lock = threading.Lock()
        self._refused: dict[str, set[str] | None] = {}  # keys, with the values that were; None: any
        self._listed: dict[str, Any] | None = None
        self._context: ssl.SSLContext | None = None
        self._closed = False

    def models(self) -> Sequence[ServedModel]:
        """Those that it has. Raises ServerError."""
        return self._models(self._is_closed)

    def ask(self, question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        """The answer as it comes: pieces, then how it ended. Raises ServerError before the first piece or behind any.

        `interrupted` is asked while it is waited for; then the connection is closed at once and Ended("interrupt") comes.
        Leaving the iterator closes the connection, too. Raises UsageError for a key that is missing, or no model named.
        """
        asking = _Asking(self, question, lambda: self._closed or interrupted())
        started, first = time.monotonic(), None
        reason: Literal["stop", "length", "interrupt"] = "interrupt"
        with closing(asking.pieces()) as pieces, suppress(StoppedError):
            for piece in pieces:
                first = first or time.monotonic() - started
                yield piece
            reason = asking.reply.reason or "stop"
        total = time.monotonic() - started
        ignored, notes = tuple(asking.ignored(reason)), tuple(asking.reply.notes)
        yield Ended(reason, asking.reply.usage, first or total, total, ignored, notes)

    def close(self) -> None:
        """Answers under way end as interrupted ones, and nothing can be asked any more."""
        self._closed = True
