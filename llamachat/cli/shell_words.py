"""What a shell offers for an argument when Tab is pressed: names, each with a word on it. It must be quick, and never fail.

Where nothing is offered, the shell offers files.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import typer

from llamachat.errors import LlamachatError
from llamachat.system.sanitise import sanitise_line

Word = tuple[str, str]
PATIENCE = 2.0  # seconds that a server may take
PARTED = "_LLAMACHAT_PARTED"  # in the environment: what bash has parted from the word to be completed


def join_at_colons(environ: MutableMapping[str, str]) -> None:
    """bash parts words at colons, and completes what is behind the last of them. Typer gets them whole, but of the one to be
    completed that end alone; what comes before it is left in the environment."""
    if environ.get("_LLAMACHAT_COMPLETE") != "complete_bash" or ":" not in environ.get("COMP_WORDS", ""):
        return
    try:
        words, at = shlex.split(environ["COMP_WORDS"]), int(environ["COMP_CWORD"])
    except ValueError:  # a quote that is still open
        return
    words += [""] * (at + 1 - len(words))
    whole = list[str]()
    for word, before in zip(words[: at + 1], ["", *words], strict=False):
        if whole and ":" in (word, before):
            whole[-1] += word
        else:
            whole.append(word)
    parted, colon, last = whole.pop().rpartition(":")
    environ.update(COMP_WORDS=shlex.join([*whole, last]), COMP_CWORD=str(len(whole)))
    environ[PARTED] = parted + colon


def _quiet(words: Callable[[], Iterable[Word]], incomplete: str) -> list[Word]:
    parted = os.environ.get(PARTED, "")
    try:
        return [
            (name[len(parted) :], sanitise_line(help))
            for name, help in words()
            if name.startswith(parted + incomplete) and name == sanitise_line(name)
        ]
    except (LlamachatError, OSError):  # told of when the name is used
        return []


def models(ctx: typer.Context, incomplete: str) -> list[Word]:
    """The catalog's; of a server that was given, those that it has."""
    from llamachat.chat.library import Library

    if ctx.params.get("server"):
        return _quiet(lambda: _served(ctx.params), incomplete)
    return _quiet(Library().models, incomplete)


def _served(given: Mapping[str, Any]) -> Iterator[Word]:
    from llamachat.remote.asking import Address
    from llamachat.remote.connection import Waits
    from llamachat.remote.server import Server

    address = Address(given["server"], None, given.get("key_env"), bool(given.get("insecure")))
    server = Server(address, offline=bool(given.get("offline")), waits=Waits(PATIENCE, PATIENCE, PATIENCE))
    for model in server.models():
        yield model.name, f"context {model.context}" if model.context else ""


def personas(incomplete: str) -> list[Word]:
    from llamachat.chat.library import Library

    return _quiet(Library().personas, incomplete)


def sessions(incomplete: str) -> list[Word]:
    """The saved dialogs' that need no quotes. They are not opened: there may be many."""
    from llamachat.chat.journal import SUFFIX
    from llamachat.chat.places import dialogs

    files = sorted(dialogs().glob("*" + SUFFIX))
    return _quiet(lambda: ((file.stem, "") for file in files if re.fullmatch(r"[\w.+-]+", file.stem)), incomplete)
