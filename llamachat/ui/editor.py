"""The person's own editor, for a text that wants more room than the prompt has."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from llamachat.errors import UsageError
from llamachat.system import environment

_KNOWN = ("editor", "nano", "vi")


def edited(text: str) -> str:
    """The text as it is after $VISUAL, $EDITOR or one that is there; as it was where that ends with an error.

    Raises UsageError.
    """
    try:
        handle, name = tempfile.mkstemp(".md", "llamachat-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            ended_well = _run(name)
            return Path(name).read_text(encoding="utf-8", errors="replace").removesuffix("\n") if ended_well else text
        finally:
            Path(name).unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: $EDITOR with an open quote
        raise UsageError(
            f"the editor failed: {getattr(error, 'strerror', None) or error}", "your text is kept"
        ) from error


def _run(name: str) -> bool:
    for editor in (os.environ.get("VISUAL"), os.environ.get("EDITOR"), *_KNOWN):
        if command := shlex.split(editor or ""):
            try:
                return subprocess.call([*command, name], env=environment.of_editor()) == 0
            except (FileNotFoundError, PermissionError):
                continue
    raise UsageError("there is no editor", "your text is kept", "set EDITOR")
