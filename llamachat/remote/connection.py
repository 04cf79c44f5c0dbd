"""One request and its answer on a connection of their own, given up within a twentieth of a second wherever it waits.

h11 (https://h11.readthedocs.io) speaks HTTP/1.1 and bounds its headers; this moves the bytes. Nothing else happens: no
redirect is followed, nothing unpacked, no cookie kept, and neither .netrc nor a proxy taken from the environment.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from llamachat.remote import faults
from llamachat.remote.asking import ServerError

if TYPE_CHECKING:
    import ssl

    import h11

POLL = 0.05  # seconds between two looks at whether it is to be given up
BLOCK = 1 << 16  # bytes that are read at once
LONGEST_HEADERS = 1 << 16  # bytes
MOST_PRELIMINARY = 8  # answers of "100 Continue" and its like
TRIED = 3  # of a host's addresses there is time for, where none answers
LOOPBACK = ("127.0.0.1", "::1")  # what "localhost" is
Done = TypeVar("Done")


class StoppedError(Exception):
    """The one who asked wants no more."""


@dataclass(frozen=True)
class Waits:
    """Seconds that a server may let pass. A queue, or a long prompt, is before the first piece of an answer."""

    connect: float = 10.0
    first: float = 600.0
    between: float = 60.0
    after: float = 5.0  # behind the last piece, for the counts of tokens; in all
    whole: float = math.inf  # for all of an answer


@dataclass(frozen=True)
class Place:
    """Where an address leads."""

    scheme: str
    host: str
    port: int
    path: str  # of the address, without a slash at its end

    @classmethod
    def of(cls, url: str) -> "Place":
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(parts.scheme, parts.hostname or "", parts.port or (443 if secure else 80), parts.path)

    @property
    def name(self) -> str:
        """Scheme, host and port: what people are told, and what a Host header says behind the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return f"{self.scheme}://{host}" + ("" if usual else f":{self.port}")


@dataclass(frozen=True)
class Head:
    """What comes before an answer's body. The headers' names are small."""

    status: int
    headers: Mapping[str, str]


class Connection:
    """Use it as a context; leaving that closes it. Of one thread. Whatever fails is a ServerError.

    `begun`: a piece of the answer has come, so that the wait for the next is a shorter one.
    """

    def __init__(self, place: Place, waits: Waits, stopped: Callable[[], bool], tls: "ssl.SSLContext | None") -> None:
        import h11

        self._place, self._waits, self._stopped, self._tls = place, waits, stopped, tls
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEADERS)
        self._socket: socket.socket | None = None
        self.begun = False
        self._heard = False  # any byte has come
        self._last = math.inf  # when the last byte that is waited for must have come, however many come before it

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Head:
        """Ask for a path below the place's own, and wait for the head of the answer. Raises ServerError, StoppedError."""
        import h11

        self._connect()
        own = {"Host": self._place.name.partition("://")[2], "Accept-Encoding": "identity", "Connection": "close"}
        sent = [*own.items(), *headers.items(), *([("Content-Length", str(len(body)))] if body else [])]
        request = h11.Request(method=method, target=self._place.path + path, headers=sent)
        out = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        self._write(b"".join(self._protocol.send(event) or b"" for event in out))
        asked = time.monotonic()
        self._last = asked + self._waits.first
        found = self._head()
        self._last = asked + self._waits.whole
        return found

    def body(self) -> Iterator[bytes]:
        """What follows the head, as it comes; it is whole when this ends."""
        import h11

        while not isinstance(event := self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise faults.broken(self._place.name, self.begun)
            yield bytes(event.data)

    def finish(self) -> None:
        """All that matters has come; what follows may take `after` seconds in all."""
        self._last = min(self._last, time.monotonic() + self._waits.after)

    def _connect(self) -> None:
        opening = _Opening(self._place, self._waits.connect)
        try:
            while not opening.ready(POLL):
                self._look()
            self._socket = opening.opened()
            self._socket.settimeout(POLL)
            if self._tls is not None:
                self._socket = self._tls.wrap_socket(
                    self._socket, server_hostname=self._place.host, do_handshake_on_connect=False
                )
                self._until(time.monotonic() + self._waits.connect, self._socket.do_handshake)
        except OSError as error:
            raise faults.unreachable(self._place.name, error) from error
        finally:
            opening.leave(self._socket)

    def _write(self, data: bytes) -> None:
        """What a server refuses to take it may have answered already."""
        assert self._socket is not None
        left, end = memoryview(data), time.monotonic() + self._waits.between
        try:
            while left:
                taken = self._until(end, lambda part=left: self._socket.send(part))  # type: ignore[misc]
                left, end = left[taken:], time.monotonic() + self._waits.between
        except TimeoutError as error:
            raise faults.stalled(self._place.name, self._waits.between, self.begun) from error
        except OSError:
            return

    def _head(self) -> Head:
        import h11

        for _ in range(MOST_PRELIMINARY):
            event = self._event()
            if isinstance(event, h11.Response):
                pairs = ((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
                return Head(event.status_code, dict(pairs))
            if not isinstance(event, h11.InformationalResponse):
                break
        raise faults.unfit(self._place.name, "does not come to an answer")

    def _event(self) -> "h11.Event | type[h11.PAUSED]":
        import h11

        try:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                data = self._read()
                if not data and self._protocol.their_state is h11.SEND_RESPONSE:
                    raise self._headless()
                self._protocol.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise self._unspoken(error) from None  # which quotes the server
        return event  # type: ignore[return-value]

    def _headless(self) -> ServerError:
        """The server has gone, and what came until then was no head."""
        if self._protocol.trailing_data[0][:5] in (b"", b"HTTP/"):
            return faults.broken(self._place.name, self.begun)
        return faults.unfit(self._place.name, "does not speak HTTP as it should")

    def _unspoken(self, error: "h11.RemoteProtocolError") -> ServerError:
        if self._protocol.trailing_data[1]:  # the end of what came was in the middle of a body
            return faults.broken(self._place.name, self.begun)
        if error.error_status_hint == 431:
            return faults.unfit(self._place.name, f"sends more than {LONGEST_HEADERS >> 10} KiB of headers")
        return faults.unfit(self._place.name, "does not speak HTTP as it should", self.begun)

    def _read(self) -> bytes:
        """The next bytes; none: the server has closed the connection."""
        assert self._socket is not None
        seconds, now = self._waits.between if self.begun else self._waits.first, time.monotonic()
        try:
            if now >= self._last:
                raise TimeoutError
            data = self._until(min(now + seconds, self._last), lambda: self._socket.recv(BLOCK))  # type: ignore[union-attr]
        except TimeoutError as error:
            if self._heard and time.monotonic() >= self._last:
                raise faults.slow(self._place.name, self.begun) from error
            raise faults.stalled(self._place.name, seconds, self.begun) from error
        except OSError as error:
            raise faults.broken(self._place.name, self.begun) from error
        self._heard = True
        return data

    def _until(self, end: float, act: Callable[[], Done]) -> Done:
        """What an act on the socket gives, which times out each POLL seconds. Raises TimeoutError at the end."""
        while True:
            self._look()
            try:
                return act()
            except TimeoutError:
                if time.monotonic() >= end:
                    raise

    def _look(self) -> None:
        if self._stopped():
            raise StoppedError


class _Opening:
    """A connection under way in a thread of its own, since neither the look-up of a host nor a connect can be broken off."""

    def __init__(self, place: Place, seconds: float) -> None:
        self._hosts = LOOPBACK if place.host == "localhost" else (place.host,)  # no name service is asked
        self._port, self._seconds, self._end = place.port, seconds, time.monotonic() + seconds
        self._result: Future[socket.socket] = Future()
        threading.Thread(target=self._open, daemon=True).start()

    def ready(self, seconds: float) -> bool:
        """Whether there is a result, after so many seconds at most. Raises TimeoutError when it is late."""
        wait([self._result], seconds)
        if not self._result.done() and time.monotonic() > self._end:
            raise TimeoutError
        return self._result.done()

    def opened(self) -> socket.socket:
        """Once it is ready. Raises OSError."""
        return self._result.result()

    def leave(self, used: socket.socket | None) -> None:
        """Whatever comes yet is closed, unless it is the socket that is used."""
        if used is None and not self._result.cancel() and self._result.exception() is None:
            self._result.result().close()

    def _open(self) -> None:
        error: OSError | None = None
        for host in self._hosts:
            try:
                opened = socket.create_connection((host, self._port), timeout=self._seconds / TRIED)
            except (OSError, UnicodeError) as failed:
                error = error or (failed if isinstance(failed, OSError) else socket.gaierror(str(failed)))
                continue
            self._give(opened)
            return
        with suppress(InvalidStateError):
            self._result.set_exception(error or OSError())

    def _give(self, opened: socket.socket) -> None:
        try:
            self._result.set_result(opened)
        except InvalidStateError:  # nobody waits for it
            opened.close()
