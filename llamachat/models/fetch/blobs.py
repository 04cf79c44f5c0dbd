"""Files of a hub's repository, downloaded into the cache that all of its tools share: resumable, verified, and put where
huggingface_hub expects them (its documentation, "Understand caching"): blobs/DIGEST, to which snapshots/COMMIT/NAME links.

Its own downloads start over after an interruption, and succeed without comparing checksums (its issue 3643).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import CatalogError, LlamachatError
from llamachat.events import Progress
from llamachat.models.fetch.hub_answers import RepoFile, streaming
from llamachat.models.fetch.verified import CHUNK, digest, shared_lock
from llamachat.system.known import remember

ATTEMPTS, PAUSE = 5, 2.0  # downloads in a row that bring nothing, seconds between them
HEAD = 1 << 20  # bytes
BUSY = (408, 429, 500, 502, 503, 504)  # answers of a server that may be better a moment later


@dataclass(frozen=True)
class Shifted:
    """Progress of one file, told as progress of all: `before` bytes of other files are done already."""

    progress: Progress
    called: str
    before: int
    total: int

    def __call__(self, done: int) -> None:
        self.progress(f"fetching {self.called}", self.before + done, self.total)


@dataclass(frozen=True)
class Blob:
    """Where a file of this content lies, and where it grows and is locked meanwhile."""

    digest: str
    size: int
    final: Path
    partial: Path
    lock: Path

    @classmethod
    def of(cls, file: RepoFile, repo: Path) -> "Blob":
        final = repo / "blobs" / file.digest
        partial = final.with_name(f"{file.digest}.incomplete")
        return cls(file.digest, file.size, final, partial, repo.parent / ".locks" / repo.name / f"{file.digest}.lock")

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        here = next((file.stat().st_size for file in (self.final, self.partial) if file.exists()), 0)
        return max(0, self.size - here)


def fetch_blob(url: str, blob: Blob, report: Shifted, check: Callable[[Path], None] | None = None) -> None:
    """Download a file, on from where an earlier attempt stopped; it gets its name only once verified.

    check: looks at its first HEAD bytes before the rest is fetched, and raises LlamachatError where there is no use in it.
    """
    blob.final.parent.mkdir(parents=True, exist_ok=True)
    with shared_lock(blob.lock):
        if blob.final.exists():
            return
        if check:
            _begin(url, blob, report, check)
        _stream(url, blob.partial, blob.size, report)
        if digest(blob.partial, report.progress, len(blob.digest) == 40, report.called) != blob.digest:
            blob.partial.unlink()
            raise CatalogError(f"{url} came with a wrong checksum", "it was thrown away", "fetch it again")
        blob.partial.replace(blob.final)
        remember(blob.final, blob.digest)


def _begin(url: str, blob: Blob, report: Shifted, check: Callable[[Path], None]) -> None:
    _stream(url, blob.partial, min(blob.size, HEAD), report)
    try:
        check(blob.partial)
    except LlamachatError:
        blob.partial.unlink()
        raise


def place(blob: Blob, file: Path) -> None:
    """Let `file` be the blob: a link, as short as it can be, or the blob itself where links are not to be had (Windows)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    file.unlink(missing_ok=True)  # a link to a blob that has gone
    try:
        file.symlink_to(os.path.relpath(blob.final, file.parent))
    except FileExistsError:  # another process was quicker
        return
    except OSError:
        blob.final.replace(file)
        remember(file, blob.digest)


def _stream(url: str, partial: Path, size: int, report: Shifted) -> None:
    """Append to `partial` until it has this size, on a new connection whenever one breaks. Raises httpx2.HTTPError."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    idle = 0
    partial.touch()
    while (done := partial.stat().st_size) < size:  # a longer one has a wrong checksum, and goes
        try:
            _append(url, partial, size, report)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if idle == ATTEMPTS or (isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY):
                raise
            time.sleep(PAUSE)
        idle = idle + 1 if partial.stat().st_size == done else 0
        if idle > ATTEMPTS:
            raise httpx2.ReadError(f"the server sends no more than {done} of {size} bytes")


def _append(url: str, partial: Path, size: int, report: Shifted) -> None:
    """One GET of what `partial` lacks; a server that ignores the range sends it all, and we start over."""
    done = partial.stat().st_size
    with streaming(url, {"Range": f"bytes={done}-{size - 1}", "Accept-Encoding": "identity"}) as response:
        if response.status_code != 206:
            done = 0
        with partial.open("ab" if done else "wb") as out:
            for chunk in response.iter_bytes(CHUNK):
                done += out.write(chunk[: size - done])
                report(done)
                if done == size:  # whatever a server sends beyond
                    break
            out.flush()
            os.fsync(out.fileno())
