"""The terminal's clipboard, by OSC 52: the one control sequence that carries a model's text, and only when asked for."""

import base64
import os
from collections.abc import Callable

from llamachat.errors import UsageError
from llamachat.system.sanitise import sanitise
from llamachat.ui.cells import count

LIMIT = 74_994  # bytes: what terminals take, 100,000 characters with the sequence around them


def copy(text: str, send: Callable[[str], None]) -> str:
    """Ask the terminal to take a text, sanitised as on the screen since it may be pasted anywhere; returns what to tell.

    There is no answer, so nobody knows whether the terminal did. Raises UsageError for too much, and where the terminal would
    show the sequence instead.
    """
    if os.environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError("this terminal has no clipboard", "nothing was copied", "/export writes a file")
    content = sanitise(text).encode()
    if len(content) > LIMIT:
        raise UsageError(
            f"{len(content):,} bytes are more than a terminal's clipboard takes", "nothing was copied", "/export"
        )
    sequence = f"\x1b]52;c;{base64.b64encode(content).decode()}\x07"
    told = f"{count(len(content.decode()), 'character')} sent to the terminal's clipboard"
    if "TMUX" in os.environ:  # it takes the first with set-clipboard on, hands on the second with allow-passthrough on
        sequence += "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
        told += "; tmux must be allowed to (set-clipboard on, or allow-passthrough on)"
    send(sequence)
    return told
