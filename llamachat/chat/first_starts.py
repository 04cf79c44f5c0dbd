"""What is said at the first starts with the default model: that it is a small one, and how to get a better one.

It is said three times, and never again once another model was chosen; a file in the state folder counts.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat import paths
from llamachat.errors import LlamachatError
from llamachat.system import private, textfile

if TYPE_CHECKING:
    from llamachat.chat.library import Library
    from llamachat.models.catalog import ModelEntry

STARTS = 3
SMALL = "This is a small demonstration model"


def hint(entry: "ModelEntry", library: "Library", keeps: bool) -> str | None:
    """The line, where it is due. `keeps`: whether this start may be written down."""
    from llamachat.models.sources import WheelSource

    if not isinstance(entry.source, WheelSource):
        if keeps:
            settle()
        return None
    said = _said()
    if said >= STARTS:
        return None
    if keeps:
        _write(said + 1)
    other = None
    with suppress(LlamachatError, OSError):  # of which /model tells
        other = library.better()
    if other is None:
        return f"{SMALL}; /model lists others."
    return f"{SMALL}. Better, and {'here' if other.here else 'fits'}: /model {other.name} ({other.size})"


def settle() -> None:
    """A model was chosen: nothing more is said."""
    if _said() < STARTS:
        _write(STARTS)


def _file() -> Path:
    return paths.state_dir() / "first-starts"


def _said() -> int:
    """How often; what another has written there counts as nothing."""
    with suppress(OSError, ValueError):
        return max(0, int(textfile.read(_file(), 10).decode("ascii")))
    return 0


def _write(times: int) -> None:
    """Where that cannot be written down, it is said once more."""
    with suppress(OSError):
        private.folder(_file().parent)
        with private.writing(_file()) as file:
            file.write(str(times).encode())
