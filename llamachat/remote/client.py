"""What is sent to one server, and to no other: requests with its key, over TLS where its address says so."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamachat.errors import UsageError, reading
from llamachat.remote.asking import Address, ServerError
from llamachat.remote.bearer import key
from llamachat.remote.connection import Connection, Head, Place, Waits
from llamachat.remote.faults import RefusedError, unfit
from llamachat.remote.reply import gathered, parsed, told
from llamachat.system.web_address import check_key_name, is_loopback
from llamachat.version import VERSION

if TYPE_CHECKING:
    import ssl

LONGEST_LIST = 4 << 20  # bytes of a list of models
LISTING_S = 30.0  # for all of a list of models
LONGEST_ERROR = 1 << 16  # bytes of what comes with an error


class Client:
    """Of one address, which has been normalised."""

    def __init__(self, address: Address, waits: Waits, offline: bool) -> None:
        """Raises UsageError and ServerError for an address that is not to be used so."""
        self._address, self._waits, self._place = address, waits, Place.of(address.url)
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self.name = self._place.name
        check(address, self._place, offline)

    def secret(self) -> str | None:
        """The key. Raises UsageError."""
        return key(self._address.key_env) if self._address.key_env else None

    @contextmanager
    def asked(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        stopped: Callable[[], bool],
        longest: float = math.inf,
    ) -> Iterator[tuple[Connection, Head]]:
        """The head of an answer, and the connection that its body is on; `longest`: seconds until it ends, at most.

        Raises RefusedError for another status than 200, UsageError, ServerError, StoppedError.
        """
        waits = replace(self._waits, first=min(self._waits.first, longest), whole=longest)
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode(errors="replace")
        with Connection(self._place, waits, stopped, self._tls()) as connection:
            head = connection.send(method, path, self._headers(body is not None), data)
            if head.status != 200:
                raise RefusedError(head.status, head.headers, _error(connection))
            if head.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
                raise unfit(self.name, "compresses its answer, which was not asked for")
            yield connection, head

    def listed(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """The list of models, as the server gives it."""
        with self.asked("GET", "/models", None, stopped, LISTING_S) as (connection, _):
            return parsed(gathered(connection.body(), self.name, LONGEST_LIST), self.name)

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"User-Agent": f"llamachat/{VERSION}", "Accept": "application/json, text/event-stream"}
        if has_body:
            headers["Content-Type"] = "application/json"
        if (secret := self.secret()) is not None:
            headers["Authorization"] = f"Bearer {secret}"
        return headers

    def _tls(self) -> "ssl.SSLContext | None":
        """The roots that downloads trust, too: the system's, or those of SSL_CERT_FILE."""
        if self._place.scheme != "https":
            return None
        with self._lock:
            if self._context is None:
                self._context = context(self._address.insecure)
            return self._context


def check(address: Address, place: Place, offline: bool) -> None:
    """Raises UsageError for a key or a certificate that would be given away, ServerError for what --offline forbids."""
    if address.key_env is not None:
        check_key_name(address.key_env)
    if is_loopback(address.url):
        return
    if offline:
        raise ServerError(
            f"{place.name} is not this machine", "--offline forbids asking it", "run once without --offline"
        )
    if address.insecure:
        remedy = "name its issuer's certificate in SSL_CERT_FILE"
        raise UsageError(f"{place.name} is not this machine", "--insecure is for this machine only", remedy)
    if address.key_env is not None and place.scheme != "https":
        cause = f"the key in {address.key_env} would go to {place.name} for everybody to read"
        raise UsageError(cause, "nothing was sent", "use an https:// address")


def context(insecure: bool) -> "ssl.SSLContext":
    """Raises UsageError where the file of SSL_CERT_FILE is none of certificates."""
    import ssl

    import httpx2

    if insecure:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    else:
        with reading(
            "the certificates of SSL_CERT_FILE", UsageError, "nothing was asked", "name a file of certificates"
        ):
            made = httpx2.create_ssl_context()
    made.set_alpn_protocols(["http/1.1"])
    return made


def _error(connection: Connection) -> object:
    """What comes with an error."""
    data = bytearray()
    connection.finish()
    try:
        for block in connection.body():
            data += block
            if len(data) > LONGEST_ERROR:
                break
    except ServerError:
        pass
    return told(data[:LONGEST_ERROR].decode(errors="replace"))
