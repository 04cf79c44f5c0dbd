"""`llamachat run`, which fingers know from ollama; its other names are rows of commands.py."""

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from llamachat.cli.chat import chat
from llamachat.cli.shell_words import models

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name from `llamachat models list`, or a path.", autocompletion=models)
]
Words = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Ask this at once; or what is on stdin.")]


def like_chat(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all that chat takes, but with the model and the question as arguments of its own."""
    own = {"model": Model, "question": Words}
    taken = inspect.signature(chat).parameters.values()
    parameters = [each.replace(annotation=own.get(each.name, each.annotation)) for each in taken]
    by_place = sorted(parameters, key=lambda each: [*own, each.name].index(each.name))
    first = by_place[0].replace(default=inspect.Parameter.empty)
    command.__signature__ = inspect.Signature([first, *by_place[1:]])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in by_place}
    return command


@like_chat
def run(question: list[str] | None, **given: Any) -> None:
    """Chat with MODEL, or ask it PROMPT (as `llamachat chat -m MODEL`)."""
    from llamachat.generation.prompts import read_prompt

    words = " ".join(question or ())
    if not words and not sys.stdin.isatty():
        words = read_prompt(None, None)
    chat(question=[words] if words else None, **given)
