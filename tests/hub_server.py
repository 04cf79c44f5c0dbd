"""A stand-in for the Hugging Face hub: as much of its API as a download needs, and ways to misbehave."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """One repository, and what the server is to do wrong."""

    repo: str
    files: dict[str, bytes]
    url: str = ""
    gated: bool = False  # files need the token
    hidden: bool = False  # so does everything
    token: str = "secret"
    cut: list[int] = field(default_factory=list)  # the next answers with weights break off after so many bytes
    flipped: set[str] = field(default_factory=set)  # files whose last byte arrives changed
    whole_only: bool = False  # ranges are ignored
    status: int = 0  # answered to everything
    body: bytes = b""  # with that
    found: list[Any] = field(default_factory=list)  # what a search finds
    moved: str = ""  # another server, which has the files
    slow: float = 0.0  # seconds before each 256 kB of a file
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range

    keys: set[str | None] = field(default_factory=set)  # Authorization headers that came
    asked: dict[str, list[str]] = field(default_factory=dict)  # of the last search

    def sent(self, name: str) -> list[str | None]:
        """The Range header of each download of this file."""
        return [span for method, path, span in self.log if method == "GET" and path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.log.append((self.command, path, self.headers["Range"]))
        hub.keys.add(self.headers["Authorization"])
        trusted = self.headers["Authorization"] == f"Bearer {hub.token}"
        api, place = f"/api/models/{hub.repo}", f"/{hub.repo}/resolve/"
        if hub.status:
            self.reply(hub.status, hub.body)
        elif path == "/api/models":
            hub.asked = parse_qs(urlsplit(self.path).query)
            self.reply(200, json.dumps(hub.found[: int(hub.asked["limit"][0])]).encode())
        elif not path.startswith((api, place)) or (hub.hidden and not trusted):
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(api):
            self.describe(path.removeprefix(api))
        elif hub.moved:
            self.reply(302, b"", {"Location": hub.moved + self.path})
        elif hub.gated and not trusted:
            self.reply(403 if "Authorization" in self.headers else 401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            revision, _, name = path.removeprefix(place).partition("/")
            self.send_file(revision, name)

    def describe(self, rest: str) -> None:
        if rest not in ("", "/revision/main", f"/revision/{COMMIT}", f"/tree/{COMMIT}"):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        facts = [self.facts(name, data) for name, data in self.hub.files.items()]
        if rest.startswith("/tree"):
            self.reply(200, json.dumps(facts).encode())
            return
        siblings = [
            {"rfilename": fact["path"], "size": fact["size"], "blobId": fact["oid"]}
            | ({"lfs": {**fact["lfs"], "sha256": fact["lfs"]["oid"]}} if "lfs" in fact else {})
            for fact in facts
        ]
        told = {"id": self.hub.repo, "sha": COMMIT, "siblings": siblings, "tags": [], "gated": self.hub.gated}
        self.reply(200, json.dumps(told).encode())

    def facts(self, name: str, data: bytes) -> dict[str, Any]:
        fact: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
        if is_big(name):
            fact["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return fact

    def send_file(self, revision: str, name: str) -> None:
        hub, data = self.hub, self.hub.files.get(name)
        if data is None or revision not in ("main", COMMIT):
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(data).hexdigest() if is_big(name) else git_sha1(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
        if name in hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        span = None if hub.whole_only else self.headers["Range"]
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = hub.cut.pop(0) if hub.cut and is_big(name) and self.command == "GET" else None
        self.reply(206 if span else 200, data[start:], headers, cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):  # who asked has heard enough
            for start in range(0, len(body[:cut]) if self.command == "GET" else 0, 1 << 18):
                time.sleep(self.hub.slow)
                self.wfile.write(body[:cut][start : start + (1 << 18)])
        if cut is not None:
            self.close_connection = True


def is_big(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Run the server in a thread; `hub.url` is its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


@contextmanager
def reachable(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run the server, as the only hub that there is, with empty caches in `home`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    from llamachat.models.fetch import blobs

    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf/token"))
    monkeypatch.setattr(blobs, "PAUSE", 0.0)
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        close_session()
