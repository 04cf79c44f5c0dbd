"""How a model of a Hugging Face hub is written: hf:OWNER/REPO and its kin, and addresses of its pages.

Nothing is checked here: whoever takes a part refuses what cannot be a part of a path or an address (sources.RULES).
"""

import os
import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PREFIX = "hf:"
HOSTS = ("huggingface.co", "hf.co")
SYNTAX = "write hf:owner/repo, hf:owner/repo:QUANT or hf:owner/repo/file.gguf, each with @revision if need be"
NAMED = re.compile(r"(?P<repo>[^/@:]+/[^/@:]+)(?:(?P<mark>[:/])(?P<what>[^@:]+))?(?:@(?P<revision>.+))?")
OTHERS = (
    "datasets",
    "spaces",
    "collections",
    "papers",
    "docs",
    "blog",
    "api",
)  # of a hub's pages, that no owner is called
FILE_PAGES = ("blob", "resolve", "raw", "blame")


class Reference(NamedTuple):
    """What was written, each part as it stands there."""

    repo: str = ""  # owner/name; "" where the text names none
    revision: str | None = None
    file: str | None = None
    quant: str | None = None


def read(text: str) -> Reference | None:
    """The parts of a reference; None for a text that is none, Reference() for one that names no repository."""
    bare = text.removeprefix(PREFIX)
    behind = _behind_host(bare)
    if behind is not None:
        return _page(behind)
    return _named(bare) if bare != text else None


def is_address(text: str) -> bool:
    """Whether it is an address of the web."""
    return text[:8].lower().startswith(("http://", "https://"))


def written(reference: Reference) -> str:
    """The short way to write it, which `read` makes the same of."""
    what = f"/{reference.file}" if reference.file else f":{reference.quant}" if reference.quant else ""
    return f"{PREFIX}{reference.repo}{what}" + (f"@{reference.revision}" if reference.revision else "")


def _behind_host(text: str) -> str | None:
    """What follows the hub's name in an address, with or without its scheme; None where no hub of ours is named."""
    bare = text.partition("://")[2] if is_address(text) else text
    endpoint = os.environ.get("HF_ENDPOINT", "").partition("://")[2].rstrip("/")
    for host in (*HOSTS, *(f"www.{host}" for host in HOSTS), *filter(None, [endpoint])):
        if bare[: len(host) + 1].lower() == f"{host.lower()}/":
            return bare[len(host) + 1 :]
    return None


def _named(text: str) -> Reference:
    """OWNER/REPO, perhaps with a quant or a file, and a revision."""
    match = NAMED.fullmatch(text)
    if match is None:
        return Reference()
    repo, mark, what, revision = match["repo"], match["mark"], match["what"], match["revision"]
    is_file = what is not None and (mark == "/" or what.lower().endswith(".gguf"))
    return Reference(repo, revision, what if is_file else None, None if is_file else what)


def _page(rest: str) -> Reference:
    """A page of a repository: itself, a folder or a file of it. Anything else is Reference()."""
    try:
        parts = urlsplit(f"//hub/{rest}")
        shown = parse_qs(parts.query, max_num_fields=100).get("show_file_info", [""])[0]
    except ValueError:
        return Reference()
    segments = [unquote(part) for part in parts.path.strip("/").split("/")]
    revision = next((part for part in segments[3:4] if part != "main"), None)
    if segments[0] in OTHERS:
        return Reference()
    match segments:
        case [_, _] if shown:
            return Reference("/".join(segments), None, shown)
        case [owner, name, kind, _, *path] if kind in FILE_PAGES:
            return Reference(f"{owner}/{name}", revision, "/".join(path))
        case [owner, name, "tree", _]:
            return Reference(f"{owner}/{name}", revision)
        case [owner, name, "tree", _, *_, folder]:  # named after its quant, where there are many parts
            return Reference(f"{owner}/{name}", revision, None, folder)
    return _named("/".join(segments))
