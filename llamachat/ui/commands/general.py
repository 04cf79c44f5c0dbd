"""/help and /exit."""

from collections.abc import Callable, Iterator, Sequence

from llamachat.errors import UsageError
from llamachat.ui.commands.command import Command, Context, LeaveError, Word
from llamachat.ui.commands.text import QUOTES

_KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line"),
    (QUOTES, "begins and ends a block of lines"),
    ("Tab, Up, Ctrl-R", "complete, look back, search back"),
    ("Ctrl-G", "write in your editor"),
    ("Ctrl-C", "stop, and take back what waits; else clear the input"),
    ("Up", "take back the last that waits, in an empty input"),
    ("Ctrl-D", "leave, on an empty line"),
    ("@FILE", "in a message: attach a text file"),
    ("//", "at the start: a literal /"),
)


def general(commands: Callable[[], Sequence[Command]]) -> tuple[Command, ...]:
    """`commands` gives them all, for /help to tell of."""

    def show(context: Context, argument: str) -> None:
        if argument:
            _one(context, argument.removeprefix("/"), commands())
        else:
            _all(context, commands())

    def names(context: Context, before: Sequence[str]) -> Iterator[Word]:
        if not before:
            yield from ((command.names[0], command.help) for command in commands())

    return (
        Command(("help",), "[COMMAND]", "show this, or more of one command", show, words=names, at_once=True),
        Command(("exit", "bye", "quit"), "", "leave", _exit, at_once=True),
    )


def _all(context: Context, commands: Sequence[Command]) -> None:
    context.screen.table((command.usage, command.help) for command in commands)
    context.screen.space()
    context.screen.table(_KEYS)


def _one(context: Context, name: str, commands: Sequence[Command]) -> None:
    command = next((command for command in commands if name in command.names), None)
    if command is None:
        raise UsageError(f"there is no command /{name[:40]}", remedy="/help lists them")
    context.screen.table([(command.usage, command.help)])
    if command.detail:
        context.screen.text(command.detail)


def _exit(context: Context, argument: str) -> None:
    raise LeaveError
