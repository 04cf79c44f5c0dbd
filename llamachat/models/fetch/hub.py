"""A model from the Hugging Face hub, in the cache that all of its tools share (HF_HOME), resumable and verified.

huggingface_hub does the naming, the links and the small files. Big files are downloaded here, to where it expects them:
its own downloads start over after an interruption, and succeed without comparing checksums (its issue 3643).
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat import paths
from llamachat.errors import CatalogError, FormatError, reading
from llamachat.models.catalog import HubSource
from llamachat.models.fetch.verified import CHUNK, Progress, digest, is_intact, require_room, shared_lock
from llamachat.system.known import is_known, remember

if TYPE_CHECKING:
    from huggingface_hub.hf_api import BlobLfsInfo

# What a model in Hugging Face's or our own format needs; more copies of the weights (consolidated, onnx) are left out.
NEEDED = re.compile(
    r"((1_Pooling/)?config|generation_config|special_tokens_map|added_tokens|vocab|manifest|modules)\.json|merges\.txt"
    r"|tokenizer[\w.-]*|chat_template[\w.-]*|model[\w.-]*\.safetensors(\.index\.json)?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # names of blobs: git's sha1 of a small file, sha256 of a big one
ATTEMPTS, PAUSE = 5, 1.0  # downloads in a row that bring nothing, seconds between them
MAX_INDEX = 64 << 20


def folder(source: HubSource) -> Path:
    return paths.hub_cache_dir() / f"models--{source.hub.replace('/', '--')}"


def locate(source: HubSource) -> Path | None:
    """The snapshot (or the one file in it), if everything that its weights' index names is there."""
    snapshot = _snapshot(source)
    if snapshot is None:
        return None
    if source.file:
        return snapshot / source.file if (snapshot / source.file).is_file() else None
    return snapshot if _is_complete(snapshot) else None


def fetch(source: HubSource, progress: Progress, offline: bool) -> Path:
    """The verified model. Asks the hub only when something is missing or was never verified. Raises CatalogError."""
    found = locate(source)
    if found and all(is_known(file, name) for file, name in _blobs(found)):
        return found
    if not offline:
        with translated(source):
            download(source, progress)
        found = locate(source)
    if not found and offline:
        cause = f"{source.hub} is not on this machine"
        raise CatalogError(cause, "--offline forbids fetching it", "run once without --offline")
    if not found:
        cause = f"{source.hub} is incomplete: it lacks config.json, a tokenizer, or weights that its index names"
        raise CatalogError(cause, "it cannot be loaded", "choose another repository")
    for file, name in _blobs(found):
        if not is_intact(file, name, progress):
            (file.parent / file.readlink()).unlink()
            raise CatalogError(f"{file.name} of {source.hub} is damaged", "it was deleted", "fetch it again")
    return found


def _snapshot(source: HubSource) -> Path | None:
    commit = revision = source.revision or "main"
    if not COMMIT.fullmatch(revision):
        ref = folder(source) / "refs" / revision
        commit = ref.read_text(errors="replace").strip() if ref.is_file() else ""
    snapshot = folder(source) / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _is_complete(snapshot: Path) -> bool:
    index = snapshot / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        try:
            with reading(index), index.open("rb") as stream:
                weights = set(json.loads(stream.read(MAX_INDEX))["weight_map"].values())
        except FormatError:
            return False
    parts = {"config.json", *weights}
    return all(isinstance(p, str) and NEEDED.fullmatch(p) and (snapshot / p).is_file() for p in parts) and any(
        snapshot.glob("tokenizer*")
    )


def _blobs(place: Path) -> list[tuple[Path, str]]:
    """(file, digest) of each file that can be verified: the cache links a file to a blob named by its digest.

    Where links are not to be had (Windows), files are copies; then only what `download` verified is known.
    """
    inside = (file for file in place.rglob("*") if NEEDED.fullmatch(file.relative_to(place).as_posix()))
    files = sorted(inside) if place.is_dir() else [place]
    named = [(file, file.readlink().name) for file in files if file.is_symlink()]
    return [(file, name) for file, name in named if DIGEST.fullmatch(name)]


def download(source: HubSource, progress: Progress) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_url, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    progress(f"asking for {source.hub}", 0, None)
    info = HfApi().model_info(source.hub, revision=source.revision, files_metadata=True)
    files = [file for file in info.siblings or [] if _is_needed(file.rfilename, source)]
    if not any(file.rfilename.endswith((".safetensors", ".gguf")) for file in files):
        wanted = source.file or "model*.safetensors"
        raise CatalogError(f"{source.hub} has no {wanted}", "nothing was fetched", "name one in safetensors format")
    big = [(file.rfilename, _Blob.of(file.lfs, folder(source))) for file in files if file.lfs]
    total, done = sum(blob.size for _, blob in big), 0
    folder(source).mkdir(parents=True, exist_ok=True)
    require_room(folder(source), sum(blob.missing for _, blob in big), source.hub)
    for name, blob in big:
        url = hf_hub_url(source.hub, name, revision=info.sha)
        fetch_blob(url, blob, _Shifted(progress, f"fetching {source.hub}", done, total))
        done += blob.size
    names = [re.sub(r"([*?[])", r"[\1]", file.rfilename) for file in files]
    snapshot_download(source.hub, revision=source.revision, allow_patterns=names, cache_dir=paths.hub_cache_dir())
    progress(f"fetching {source.hub}", total, total)


def _is_needed(name: str, source: HubSource) -> bool:
    return name == source.file if source.file else NEEDED.fullmatch(name) is not None


@dataclass(frozen=True)
class _Shifted:
    """Progress of one file, told as progress of all: `before` bytes of other files are done already."""

    progress: Progress
    what: str
    before: int
    total: int

    def __call__(self, done: int) -> None:
        self.progress(self.what, self.before + done, self.total)


@dataclass(frozen=True)
class _Blob:
    """Where huggingface_hub expects a big file of this content, and where it grows and is locked meanwhile."""

    sha256: str
    size: int
    final: Path
    partial: Path
    lock: Path

    @classmethod
    def of(cls, file: "BlobLfsInfo", repo: Path) -> "_Blob":
        if not SHA256.fullmatch(file.sha256):
            raise CatalogError(f"the hub names {file.sha256!r} as a checksum", "nothing was fetched", "try again later")
        final = repo / "blobs" / file.sha256
        partial = final.with_name(f"{file.sha256}.incomplete")
        return cls(file.sha256, file.size, final, partial, repo.parent / ".locks" / repo.name / f"{file.sha256}.lock")

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        here = next((file.stat().st_size for file in (self.final, self.partial) if file.exists()), 0)
        return max(0, self.size - here)


def fetch_blob(url: str, blob: _Blob, report: _Shifted) -> None:
    """Download a big file, on from where an earlier attempt stopped; it gets its name only once verified."""
    blob.final.parent.mkdir(parents=True, exist_ok=True)
    with shared_lock(blob.lock):
        if blob.final.exists():
            return
        _stream(url, blob.partial, blob.size, report)
        if digest(blob.partial, report.progress) != blob.sha256:
            blob.partial.unlink()
            raise CatalogError(f"{url} came with a wrong checksum", "it was thrown away", "fetch it again")
        blob.partial.replace(blob.final)
        remember(blob.final, blob.sha256)


def _stream(url: str, partial: Path, size: int, report: _Shifted) -> None:
    """Append to `partial` until it has this size, on a new connection whenever one breaks. Raises httpx2.HTTPError."""
    import httpx2

    idle = 0
    partial.touch()
    while (done := partial.stat().st_size) < size:  # a longer one has a wrong checksum, and goes
        try:
            _append(url, partial, size, report)
        except httpx2.TransportError:
            if idle == ATTEMPTS:
                raise
            time.sleep(PAUSE)
        idle = idle + 1 if partial.stat().st_size == done else 0
        if idle > ATTEMPTS:
            raise httpx2.ReadError(f"the server sends no more than {done} of {size} bytes")


def _append(url: str, partial: Path, size: int, report: _Shifted) -> None:
    """One GET of what `partial` lacks; a server that ignores the range sends it all, and we start over."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    done = partial.stat().st_size
    headers = {**build_hf_headers(), "Range": f"bytes={done}-{size - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff("GET", url, headers=headers, follow_redirects=True, retry_on_exceptions=()) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
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


@contextmanager
def translated(source: HubSource) -> Iterator[None]:
    """Errors of the hub, the network and the disk as CatalogErrors."""
    import httpx2
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{source.hub}"
    nothing = "the model was not fetched"
    try:
        wrong = f"{constants.ENDPOINT} does not answer as a hub"  # its answers may be of any shape
        with reading(wrong, CatalogError, nothing, "check HF_ENDPOINT", passing=(OSError, httpx2.HTTPError)):
            yield
    except errors.GatedRepoError as error:
        remedy = f"accept its licence at {page}, and set HF_TOKEN to a token of yours (or run `hf auth login`)"
        raise CatalogError(f"{source.hub} is gated", nothing, remedy) from error
    except errors.RepositoryNotFoundError as error:
        remedy = f"see {page}, and set HF_TOKEN if the repository is private"
        raise CatalogError(f"the hub shows no repository {source.hub}", nothing, remedy) from error
    except errors.RevisionNotFoundError as error:
        remedy = f"see {page}/tree/main for its branches"
        raise CatalogError(f"{source.hub} has no revision {source.revision}", nothing, remedy) from error
    except errors.OfflineModeIsEnabled as error:
        raise CatalogError("HF_HUB_OFFLINE is set", nothing, "unset it to fetch a model") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check the token in HF_TOKEN" if status in (401, 403) else "try again later: what has come is kept"
        raise CatalogError(f"the hub answers {status} for {source.hub}", nothing, remedy) from error
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError) as error:
        cause = f"the hub cannot be reached ({type(error).__name__})"
        remedy = "check the network and run it again: what has come is kept; --offline uses what is here"
        raise CatalogError(cause, nothing, remedy) from error


def remove(source: HubSource) -> None:
    """Delete the repository's folder of the cache, all its revisions, as huggingface_hub would."""
    from huggingface_hub import scan_cache_dir

    info = scan_cache_dir(paths.hub_cache_dir())
    revisions = [r.commit_hash for repo in info.repos if repo.repo_path == folder(source) for r in repo.revisions]
    info.delete_revisions(*revisions).execute()  # also lets go of blobs shared with other repositories
    shutil.rmtree(folder(source), ignore_errors=not folder(source).exists())  # unfinished downloads
