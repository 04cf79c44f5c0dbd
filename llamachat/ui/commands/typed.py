"""What a typed text means: a slash command, or a message."""

import re
from collections.abc import Iterable, Iterator

from llamachat.errors import UsageError
from llamachat.events import Event
from llamachat.ui.attach import LIMIT
from llamachat.ui.commands.adapt import ADAPTERS
from llamachat.ui.commands.choosing import CHOOSING
from llamachat.ui.commands.command import Command, Context
from llamachat.ui.commands.files import FILES
from llamachat.ui.commands.general import general
from llamachat.ui.commands.inside import INSIDE
from llamachat.ui.commands.known import INSTEAD, LEAVING, hint
from llamachat.ui.commands.saved import SAVED
from llamachat.ui.commands.settings import PARAMETERS, SETTINGS
from llamachat.ui.commands.text import QUOTES, first_then, literal, require_terminal, unquoted, with_files
from llamachat.ui.commands.transfer import TRANSFER
from llamachat.ui.commands.turns import DIALOG

COMMANDS: tuple[Command, ...] = (
    *general(lambda: COMMANDS, lambda name: named(name)),
    *DIALOG,
    *SETTINGS,
    *CHOOSING,
    *ADAPTERS,
    *SAVED,
    *FILES,
    *TRANSFER,
    *INSIDE,
)


def respond(context: Context, text: str) -> Iterator[Event] | None:
    """Obey a command or send a message: events of an answer to show, or None. Raises LeaveError and LlamachatError."""
    found = find(text)
    if found and not text.startswith("/"):
        if context.send is None:  # piped lines are data
            found = None
        else:
            context.screen.note(f"{text.strip()} alone leaves; {literal(text.strip())} sends the word")
    if found:
        command, argument = found
        _check_private(context, command)
        return command.run(context, argument)
    return ask(context, message(text))


def ask(context: Context, text: str) -> Iterator[Event]:
    """Send a message with what is attached to it, by /read or, at a terminal, by @path in it."""
    session = context.session()
    return first_then(session.ask(with_files(context, text)), context.attached.clear)


def find(text: str) -> tuple[Command, str] | None:
    """The command in a typed text, and its argument; None for a message. Raises UsageError for an unknown one.

    A message of a LEAVING word alone is one, too.
    """
    if text.strip().lower() in LEAVING and (leaving := named(LEAVING[0])):
        return leaving, ""
    typed = re.match(r"/(?!/)(\S*)\s*(.*)", text, re.DOTALL)
    if not typed:
        return None
    name, argument = typed[1], typed[2].strip()
    command = named(name)
    if command is None:
        raise UsageError(f"unknown command /{name[:40]}", remedy=_meant(name, argument))
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument", remedy=f"write /{name} alone")
    return command, argument


def is_message(text: str) -> bool:
    """Whether it is one, or a command that sends one."""
    try:
        found = find(text)
    except UsageError:
        return False
    return found is None or (found[0].sends and bool(found[1]))


def at_once(text: str) -> bool:
    """Whether it is a command that may be obeyed while an answer streams."""
    try:
        found = find(text)
    except UsageError:
        return False
    return found is not None and found[0].at_once


def _check_private(context: Context, command: Command) -> None:
    if command.private:
        require_terminal(context, command.names[0])


def named(name: str) -> Command | None:
    """The command of this name, without its slash."""
    return next((command for command in (*COMMANDS, *PARAMETERS) if name in command.names), None)


def _meant(name: str, argument: str) -> str:
    """What to do about an unknown command."""
    names = [name for command in (*COMMANDS, *PARAMETERS) for name in command.names]
    found = hint(name, names, INSTEAD, "/", f" {argument}" if 0 < len(argument) <= 20 else "")
    return (
        f"{found} // sends it as text" if found.endswith("?") else f"{found or '/help lists them'}, // sends it as text"
    )


def message(text: str) -> str:
    '''A typed text that is no command, as it is sent: // is a literal /, and """ around a block are taken off.'''
    return text[1:] if text.startswith("//") else unquoted(text)


def block_open(text: str) -> bool:
    '''Whether the text began a """ block that it has not closed yet.'''
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def messages(lines: Iterable[str]) -> Iterator[str]:
    '''Lines as typed texts: one each, but a """ block is one. Blank ones are left out. Raises UsageError.'''
    parts, size, marks = list[str](), 0, 0
    for line in lines:
        parts.append(line)
        size, marks = size + len(line), marks + line.count(QUOTES)
        if size > LIMIT:
            raise UsageError(f"a message has more than {LIMIT:,} characters", "it was not sent", "send it in parts")
        if not (marks % 2 == 1 and parts[0].lstrip().startswith(QUOTES)):
            if (text := "".join(parts)).strip():
                yield text.removesuffix("\n")
            parts, size, marks = [], 0, 0
    if parts:
        raise UsageError(f"a {QUOTES} block is not closed", "it was not sent", f"end it with {QUOTES}")
