"""What a typed text means: a slash command, from the table below, or a message."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from llamachat.errors import UsageError
from llamachat.ui.contract import ChatSession
from llamachat.ui.render import Screen, count, percent

GetSession = Callable[[], ChatSession]  # waits for loading, so it is called only by commands that need a session
_QUOTES = '"""'


class LeaveError(Exception):
    """The person has asked to leave."""


@dataclass(frozen=True)
class Command:
    """`run` gets the session's getter, the screen and the argument: what follows the name, whole."""

    names: tuple[str, ...]
    argument: str  # as /help shows it; empty: none is taken
    help: str
    run: Callable[[GetSession, Screen, str], None]


def find(text: str) -> tuple[Command, str] | None:
    """The command in a typed text, and its argument; None for a message. Raises UsageError for an unknown one."""
    typed = re.match(r"/(?!/)(\S*)\s*(.*)", text, re.DOTALL)
    if not typed:
        return None
    name, argument = typed[1], typed[2].strip()
    command = next((command for command in COMMANDS if name in command.names), None)
    if command is None:
        raise UsageError(f"unknown command /{name}", remedy=f"/help lists the commands, //{name} sends it as text")
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument")
    return command, argument


def message(text: str) -> str:
    '''A typed text that is no command, as it is sent: // is a literal /, and """ around a block are taken off.'''
    if text.startswith("//"):
        return text[1:]
    block = text.strip()
    if len(block) >= 6 and block.startswith(_QUOTES) and block.endswith(_QUOTES):
        return block[3:-3].strip("\n")
    return text


def block_open(text: str) -> bool:
    '''Whether the text began a """ block that it has not closed yet.'''
    return text.lstrip().startswith(_QUOTES) and text.count(_QUOTES) % 2 == 1


def messages(lines: Iterable[str]) -> Iterator[str]:
    '''Lines as typed texts: one each, but a """ block is one. Blank ones are left out. Raises UsageError.'''
    text = ""
    for line in lines:
        text += line
        if not block_open(text):
            if text.strip():
                yield text.removesuffix("\n")
            text = ""
    if text:
        raise UsageError(f"a {_QUOTES} block is not closed", "it was not sent", f"end it with {_QUOTES}")


def completions(text: str, parameters: Iterable[str]) -> list[tuple[str, str]]:
    """Words that may stand for the last one of a text, with a short help each."""
    if text.startswith("/set "):
        return [(name, "") for name in parameters if name.startswith(text.removeprefix("/set "))]
    names = [("/" + command.names[0], command.help) for command in COMMANDS]
    return [(name, help) for name, help in names if text.startswith("/") and name.startswith(text)]


def _help(session: GetSession, screen: Screen, argument: str) -> None:
    usages = [(" or ".join("/" + name for name in command.names) + " " + command.argument) for command in COMMANDS]
    screen.table(zip(usages, (command.help for command in COMMANDS), strict=True))
    screen.space()
    screen.table(_KEYS)


def _exit(session: GetSession, screen: Screen, argument: str) -> None:
    raise LeaveError


def _clear(session: GetSession, screen: Screen, argument: str) -> None:
    session().clear()
    screen.note("dialog cleared")


def _system(session: GetSession, screen: Screen, argument: str) -> None:
    if not argument:
        screen.text(session().system or "no system prompt")
    elif argument == '""':
        session().set_system(None)
        screen.note("system prompt removed")
    else:
        session().set_system(message(argument))
        screen.note("system prompt set")


def _set(session: GetSession, screen: Screen, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if value:
        session().set_parameter(name, value.strip())
    settings = {key: "none" if now is None else str(now) for key, now in session().parameters().items()}
    if name and name not in settings:
        raise UsageError(f"no parameter is called {name}", remedy="/set lists them")
    screen.table([(name, settings[name])] if name else settings.items())


def _stats(session: GetSession, screen: Screen, argument: str) -> None:
    chat, last = session(), session().last_stats
    used = f"{chat.context_used} of {count(chat.context_size, 'token')}"
    screen.table([*chat.describe().items(), ("used", f"{used} ({percent(chat.context_used, chat.context_size)})")])
    if last:
        prompt = f"{count(last.prompt_tokens, 'token')}, {last.reused_tokens} of them already in the cache"
        answer = count(last.completion_tokens, "token")
        screen.table(
            [
                ("prompt", f"{prompt}; {last.prefill_s:.2f} s, {last.prefill_tok_s:.1f} tok/s"),
                ("answer", f"{answer}; {last.decode_s:.2f} s, {last.decode_tok_s:.1f} tok/s"),
            ]
        )


COMMANDS = (
    Command(("help",), "", "show this", _help),
    Command(("exit", "bye", "quit"), "", "leave", _exit),
    Command(("clear",), "", "forget the dialog, keep the system prompt", _clear),
    Command(("system",), "[TEXT]", 'show or set the system prompt; "" removes it', _system),
    Command(("set",), "[NAME [VALUE]]", "show or change how answers are sampled", _set),
    Command(("stats",), "", "show what runs, how fast, how full the context is", _stats),
)
_KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line"),
    (_QUOTES, "begins and ends a block of lines"),
    ("Tab, Up, Ctrl-R", "complete a command, look back, search back"),
    ("Ctrl-C", "stop the answer, or clear the input"),
    ("Ctrl-D", "leave, on an empty line"),
    ("//", "at the start: a literal /"),
)
