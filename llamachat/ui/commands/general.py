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
    ("@FILE", "in a message: attach a file; @src/*.py, @docs/: several"),
    ("//", "at the start: a literal /"),
    ("/temp 0.4", "as /set temperature 0.4; so all of /set"),
)


def general(commands: Callable[[], Sequence[Command]], named: Callable[[str], Command | None]) -> tuple[Command, ...]:
    """`commands` gives all that /help tells of, `named` the one of a name."""

    def show(context: Context, argument: str) -> None:
        if argument:
            _one(context, argument.removeprefix("/"), named)
        else:
            _all(context, commands())

    def names(context: Context, before: Sequence[str]) -> Iterator[Word]:
        if not before:
            yield from ((command.names[0], command.help) for command in commands())

    return (
        Command(("help", "?"), "[COMMAND]", "show this, or more of one command", show, words=names, at_once=True),
        Command(("exit", "bye", "q", "quit"), "", "leave (the word alone, too)", _exit, at_once=True),
    )


def _all(context: Context, commands: Sequence[Command]) -> None:
    context.screen.table((command.usage, command.help) for command in commands)
    context.screen.space()
    context.screen.table(_KEYS)
    context.screen.note("where your dialogs lie, and how to have them forgotten: /show data")


def _one(context: Context, name: str, named: Callable[[str], Command | None]) -> None:
    if (command := named(name)) is None:
        raise UsageError(f"there is no command /{name[:40]}", remedy="/help lists them")
    context.screen.table([(command.usage, command.help)])
    if command.detail:
        context.screen.text(command.detail)


def _exit(context: Context, argument: str) -> None:
    raise LeaveError
