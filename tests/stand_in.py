"""A server that does what a script says, byte by byte, and keeps what it was sent."""

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

RESET = "reset"  # the connection, at once
WAIT = "wait"  # until the client goes
PAUSE = "pause"  # long enough for what comes behind to be another read
Step = bytes | str
Script = Sequence[Step]


@dataclass
class Request:
    """As it came."""

    line: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class StandIn:
    """One connection a script, in turn; the last for all that follow."""

    scripts: list[Script]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    left: list[float] = field(default_factory=list)  # when a client went while it was waited for
    waiting: threading.Event = field(default_factory=threading.Event)  # a script has come to its WAIT

    def serve(self, connection: socket.socket, script: Script) -> None:
        with connection, suppress(OSError):
            self.requests.append(_request(connection))
            for step in script:
                if step == RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if step == WAIT:
                    self.waiting.set()
                    select.select([connection], [], [], 60)
                    self.left.append(time.monotonic())
                elif step == PAUSE:
                    time.sleep(0.002)
                else:
                    assert isinstance(step, bytes)
                    connection.sendall(step)


def _request(connection: socket.socket) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            raise OSError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Request(line, headers, json.loads(body) if body else {})


@contextmanager
def standing_in(*scripts: Script, tls: Callable[[socket.socket], socket.socket] | None = None) -> Iterator[StandIn]:
    """It runs in threads; `tls` wraps each connection."""
    stand_in = StandIn(list(scripts))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stand_in.url = f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    script = stand_in.scripts.pop(0) if len(stand_in.scripts) > 1 else stand_in.scripts[0]
                    threading.Thread(target=start, args=(connection, script), daemon=True).start()

        def start(connection: socket.socket, script: Script) -> None:
            with suppress(OSError):
                stand_in.serve(tls(connection) if tls else connection, script)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield stand_in
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def head(status: int = 200, kind: str | None = "text/event-stream", *more: str) -> bytes:
    """Of an answer that ends where the connection does."""
    fields = ["Connection: close", *([f"Content-Type: {kind}"] if kind else []), *more]
    return "".join(f"{line}\r\n" for line in [f"HTTP/1.1 {status} X", *fields, ""]).encode()


def document(value: object, status: int = 200, *more: str) -> bytes:
    """An answer of JSON."""
    return head(status, "application/json", *more) + json.dumps(value).encode()


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str | None = None, reason: str | None = None, **more: Any) -> bytes:
    """A part of a chat's answer."""
    return event({"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": reason}]})


DONE = b"data: [DONE]\n\n"
SAID = [delta("Hello"), delta(" there")]
WHOLE = b"".join([head(), *SAID, delta(reason="stop"), DONE])
