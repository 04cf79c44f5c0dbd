"""What a Hugging Face hub says: its answers, bounded and checked, and its errors in our words. Nothing of them is trusted."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamachat.checks import is_whole, shown
from llamachat.errors import CatalogError, reading
from llamachat.models.sources import RULES, HubSource

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER = 8 << 20  # bytes of JSON; a repository of a thousand files has less than one of these MB
MAX_BYTES = 1 << 50  # of a file
PATIENCE = 20.0  # seconds without a byte
DEADLINE = 60.0  # seconds for an answer in all
AGAIN = "check the network and run it again: what has come is kept; --offline uses what is here"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE = RULES["member"]  # others become no part of a path


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository. `digest`: sha256 of a big one, git's sha1 of a small one."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: Mapping[str, RepoFile]
    gated: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> bytes."""
        return {name: file.size for name, file in self.files.items()}


def listing(source: HubSource) -> Listing:
    """What a hub's repository holds. Call within `translated`. Raises ValueError for an answer of another shape."""
    at = f"/revision/{_quoted(source.revision)}" if source.revision else ""
    told = get_json(f"/api/models/{source.hub}{at}", {"blobs": "true"})
    if not isinstance(told, dict) or not isinstance(told.get("siblings"), list):
        raise ValueError("it lists no files")
    commit = told.get("sha")
    if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
        raise ValueError("it names no commit")
    files = [_file(each) for each in told["siblings"] if FILE.fullmatch(_named(each))]
    return Listing(commit, {file.name: file for file in files}, bool(told.get("gated")))


def _quoted(revision: str) -> str:
    from urllib.parse import quote

    return quote(revision, safe="")


def _named(sibling: Any) -> str:
    name = sibling.get("rfilename") if isinstance(sibling, dict) else None
    if not isinstance(name, str):
        raise ValueError("it names a file that has no name")
    return name if len(name) <= 500 else ""


def _file(sibling: Mapping[str, Any]) -> RepoFile:
    big = sibling.get("lfs")
    if big is not None and not isinstance(big, dict):
        raise ValueError("it tells no checksum of a file")
    size = big.get("size") if big else sibling.get("size")
    digest, rule = (big.get("sha256"), SHA256) if big else (sibling.get("blobId"), COMMIT)
    if not (is_whole(size) and 0 <= size <= MAX_BYTES and isinstance(digest, str) and rule.fullmatch(digest)):
        raise ValueError("it tells no size or checksum of a file")
    return RepoFile(sibling["rfilename"], size, digest)


def get_json(path: str, asked: Mapping[str, Any]) -> Any:
    """The JSON of one GET, of at most MAX_ANSWER bytes. Call within `translated`. Raises ValueError for what is none."""
    return json.loads(_answer(path, asked))


def _answer(path: str, asked: Mapping[str, Any]) -> bytes:
    from huggingface_hub import constants

    whole, begin = bytearray(), time.monotonic()
    with streaming(constants.ENDPOINT + path, params=asked) as response:
        for chunk in response.iter_bytes():
            whole += chunk
            if len(whole) > MAX_ANSWER or time.monotonic() - begin > DEADLINE:
                raise ValueError(f"its answer is longer than {MAX_ANSWER >> 20} MB, or does not end")
    return bytes(whole)


@contextmanager
def streaming(url: str, headers: Mapping[str, str] | None = None, **options: Any) -> Iterator["httpx2.Response"]:
    """The answer to a GET whose body is still to come, with the user's token. Raises HfHubHTTPError, httpx2.HTTPError."""
    import httpx2
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    sent = {**build_hf_headers(), **(headers or {})}
    with get_session().stream("GET", url, headers=sent, timeout=httpx2.Timeout(PATIENCE), **options) as response:
        if response.is_error:  # without its body, which may be of any length
            told = {key: value for key, value in response.headers.items() if key.startswith("x-")}
            hf_raise_for_status(httpx2.Response(response.status_code, headers=told, request=response.request))
        yield response


@contextmanager
def translated(what: str, nothing: str, revision: str | None = None, again: str = AGAIN) -> Iterator[None]:
    """Errors of the hub, the network and the disk as CatalogErrors. what: the repository; nothing: what did not happen; again:
    what to do where the network is at fault."""
    import httpx2
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{what}"
    try:
        wrong = f"{constants.ENDPOINT} does not answer as a hub"  # its answers may be of any shape
        with reading(wrong, CatalogError, nothing, "check HF_ENDPOINT", passing=(OSError, httpx2.HTTPError)):
            yield
    except errors.GatedRepoError as error:
        remedy = f"accept its licence at {page}, and set HF_TOKEN to a token of yours (or run `hf auth login`)"
        raise CatalogError(f"{what} is gated", nothing, remedy) from error
    except errors.RepositoryNotFoundError as error:
        remedy = f"see {page}, and set HF_TOKEN if the repository is private"
        raise CatalogError(f"the hub shows no repository {what}", nothing, remedy) from error
    except errors.RevisionNotFoundError as error:
        remedy = f"see {page}/tree/main for its branches"
        raise CatalogError(f"{what} has no revision {revision}", nothing, remedy) from error
    except errors.OfflineModeIsEnabled as error:
        raise CatalogError("HF_HUB_OFFLINE is set", nothing, "unset it to ask the hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check the token in HF_TOKEN" if status in (401, 403) else "try again later: what has come is kept"
        raise CatalogError(f"the hub answers {status} for {what}", nothing, remedy) from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        cause = f"HF_ENDPOINT = {shown(constants.ENDPOINT)} is no address of a hub"
        raise CatalogError(cause, nothing, "correct it, or unset it") from error
    except httpx2.HTTPError as error:
        raise CatalogError(f"the hub cannot be reached ({type(error).__name__})", nothing, again) from error
