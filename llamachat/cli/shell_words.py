"""What a shell offers for an argument when Tab is pressed: names, each with a word on it. It must be quick, and never fail.

Where nothing is offered, the shell offers files.
"""

import re
from collections.abc import Callable, Iterable
from threading import Timer

import typer

from llamachat.cli.defaults import source_of
from llamachat.errors import LlamachatError
from llamachat.system.sanitise import sanitise_line

Word = tuple[str, str]
SOON = 2.0  # seconds that a server has to tell its models


def _quiet(words: Callable[[], Iterable[Word]], incomplete: str) -> list[Word]:
    try:
        return [
            (name, sanitise_line(help))
            for name, help in words()
            if name.startswith(incomplete) and name == sanitise_line(name)
        ]
    except (LlamachatError, OSError):  # told of when the name is used
        return []


def models(ctx: typer.Context, incomplete: str) -> list[Word]:
    """The catalog's; where a --server has been typed, its own, which is asked."""
    from llamachat.chat.persona import Library

    server, key_env = ctx.params.get("server"), ctx.params.get("key_env")
    if server and source_of(ctx, "server") == "COMMANDLINE":
        return _quiet(lambda: _served(server, key_env), incomplete)
    return _quiet(Library().models, incomplete)


def _served(server: str, key_env: str | None) -> Iterable[Word]:
    from llamachat.remote.asking import Address
    from llamachat.remote.server import Server

    asked = Server(Address(server, key_env=key_env))
    late = Timer(SOON, asked.close)
    late.start()
    try:
        return [(each.name, f"{each.context} tokens" if each.context else "") for each in asked.models()]
    finally:
        late.cancel()


def personas(incomplete: str) -> list[Word]:
    from llamachat.chat.persona import Library

    return _quiet(Library().personas, incomplete)


def sessions(incomplete: str) -> list[Word]:
    """The saved dialogs' that need no quotes. They are not opened: there may be many."""
    from llamachat import paths

    files = sorted((paths.data_dir() / "sessions").glob("*.jsonl"))
    return _quiet(lambda: ((file.stem, "") for file in files if re.fullmatch(r"[\w.+-]+", file.stem)), incomplete)
