"""The clipboard: the platform's own program where there is a display here, the terminal's (OSC 52) where there is none.

OSC 52 is the one control sequence that carries a model's text, and only when asked for. Nothing comes back, so nobody knows
whether the terminal took it: a program that says that it did goes first, but through ssh, where its clipboard may be another
machine's; there both are used.
"""

import base64
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llamachat.errors import UsageError
from llamachat.system import environment
from llamachat.system.sanitise import sanitise
from llamachat.ui.cells import count

LIMIT = 74_994  # bytes: what terminals take, 100,000 characters with the sequence around them
PATIENCE = 3.0  # seconds that a program may take
_SSH = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")


class Program(NamedTuple):
    """It puts its standard input on the clipboard."""

    place: str  # where there is one: an environment variable that is set there, or the platform
    name: str
    arguments: tuple[str, ...] = ()
    encoding: str = "utf-8"
    path: str = ""  # once it is found


PROGRAMS = (
    Program("darwin", "pbcopy"),
    Program("TERMUX_VERSION", "termux-clipboard-set"),
    Program("WSL_DISTRO_NAME", "clip.exe", encoding="utf-16"),
    Program("win32", "clip.exe", encoding="utf-16"),
    Program("WAYLAND_DISPLAY", "wl-copy"),
    Program("DISPLAY", "xclip", ("-selection", "clipboard")),
    Program("DISPLAY", "xsel", ("--clipboard", "--input")),
)


def copy(
    text: str,
    send: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    patience: float = PATIENCE,
) -> str:
    """Copy a text, sanitised as on the screen since it may be pasted anywhere; returns what to tell.

    Raises UsageError where there is no way, or too much for the only one there is.
    """
    content, said = sanitise(text), ""
    if program := _program(environ, platform):
        failed, name = _run(program, content, patience), program.name
        if not (failed or any(environ.get(each) for each in _SSH)):
            return f"{count(len(content), 'character')} copied by {name}"
        said = f"; {name} {failed}" if failed else f", and copied by {name} on this machine"
    return _by_terminal(content, send, environ) + said


def _program(environ: Mapping[str, str], platform: str) -> Program | None:
    """The first that fits this place and is installed. What lies in a relative folder of PATH is whoever's, and not run."""
    path = os.pathsep.join(filter(os.path.isabs, environ.get("PATH", "").split(os.pathsep)))
    for program in PROGRAMS:
        fits = bool(path) and (platform == program.place or environ.get(program.place))
        if fits and (found := shutil.which(program.name, path=path)):
            return program._replace(path=found)
    return None


def _run(program: Program, content: str, patience: float) -> str:
    """Have it take a text; returns what went wrong, in words, or nothing."""
    import subprocess  # not before something is copied

    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            [program.path, *program.arguments],
            input=content.encode(program.encoding),
            stdout=quiet,
            stderr=quiet,
            timeout=patience,
            check=False,
            env=environment.of_clipboard(),
            start_new_session=True,  # Ctrl-C is for the chat
        )
    except subprocess.TimeoutExpired:
        return "did not answer"
    except OSError as error:
        return f"failed ({error.strerror})"
    return f"failed (exit code {done.returncode})" if done.returncode else ""


def _by_terminal(content: str, send: Callable[[str], None], environ: Mapping[str, str]) -> str:
    """Ask the terminal. Raises UsageError for too much, and where it would show the sequence instead."""
    if environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError("this terminal has no clipboard", "nothing was copied", "/export writes a file")
    data = content.encode()
    if len(data) > LIMIT:
        cause = f"{len(data):,} bytes are more than a terminal's clipboard takes"
        raise UsageError(cause, "nothing was copied", "/export")
    sequence = f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"
    told = f"{count(len(content), 'character')} sent to the terminal's clipboard"
    if "TMUX" in environ:  # it takes the first with set-clipboard on, hands on the second with allow-passthrough on
        sequence += "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
        told += "; tmux must be allowed to (set-clipboard on, or allow-passthrough on)"
    send(sequence)
    return told
