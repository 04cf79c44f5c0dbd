"""Arguments of commands: texts and numbers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llamachat.chat.session import Session
from llamachat.errors import UsageError
from llamachat.events import Event, Finished
from llamachat.system.enclosed import own_words
from llamachat.ui import attach
from llamachat.ui.commands.command import Context
from llamachat.ui.commands.known import LEAVING
from llamachat.ui.saved_list import short_name

QUOTES = '"""'


def unquoted(text: str) -> str:
    '''A text without the """ around it, if they are.'''
    block = text.strip()
    if len(block) >= 6 and block.startswith(QUOTES) and block.endswith(QUOTES):
        return block[3:-3].strip("\n")
    return text


def as_typed(text: str) -> str:
    """What is typed to send a text that would mean something else."""
    if text.startswith("/"):
        return f"/{text}"
    return literal(text) if text.strip().lower() in LEAVING or unquoted(text) != text else text


def literal(text: str) -> str:
    """What means this text as a message when it is typed, whatever it begins with."""
    return f"{QUOTES}{text}{QUOTES}"


def with_files(context: Context, text: str) -> str:
    """A text as it is sent: with what /read attached, and at a terminal with the files that @path in it names. Raises
    DoesNotFitError where the context cannot hold it.

    Off a terminal @ is left alone: there a text is data, from who knows whom.
    """
    mentions = attach.Mentions(text) if context.send else None
    attached = attach.joined(context.attached, mentions.attachments if mentions else ())
    sent = attach.to_message(mentions.text if mentions else text, attached)
    _require_room(context, sent, attached)
    if mentions:
        session = context.session()
        told = (attach.told(each, session.weigh, session.context_size) for each in mentions.found)
        for note in (*told, *mentions.notes):
            context.screen.note(note)
    return sent


def _require_room(context: Context, sent: str, attached: Sequence[attach.Attachment]) -> None:
    """A short message is weighed by whoever answers it."""
    session = context.session()
    size = session.context_size
    if attached or len(sent.encode(errors="replace")) > size // 2:
        what = f"the message with {attach.some(attached)}" if attached else "the message"
        remedy = "attach a part of that" if attached else "send a part of it"
        attach.require_room(what, sent, session.weigh, size, "sent", remedy)


def first_then(events: Iterator[Event], action: Callable[[], None]) -> Iterator[Event]:
    """The events; `action` is done once the first is there, so not when the message was refused."""
    for number, event in enumerate(events):
        if number == 0:
            action()
        yield event


def require_terminal(context: Context, command: str) -> None:
    """Raises UsageError off one, where commands come from who knows whom."""
    if context.send is None:
        cause = f"/{command} works at a terminal only"
        raise UsageError(cause, "piped lines are data, which opens no files", "// sends it as text")


def need(argument: str, command: str, what: str) -> str:
    """The argument of a command that cannot do without. Raises UsageError."""
    if not argument:
        raise UsageError(f"/{command} needs a {what}", remedy=f"/help {command} says more")
    return argument


def is_reply(text: str) -> bool:
    """Whether a text answers a question of ours, by yes or no."""
    return text.strip().lower() in ("y", "yes", "n", "no")


def is_yes(text: str) -> bool:
    """Whether a reply says so."""
    return text.strip().lower() in ("y", "yes")


def number(text: str, what: str, default: int | None = None) -> int:
    """A whole number from 1 on; `default` for an empty text. Raises UsageError."""
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise UsageError(f"{text[:40]!r} is no number of {what}", remedy="give a whole number from 1 on")
    return int(text)


def described(session: Session | Finished) -> dict[str, str]:
    """What runs, as rows. A model named by its path is shown by the end of that: the path has a row of its own."""
    about = {key: fact for key, fact in session.describe().items() if fact}
    named_by_path = Path(about.get("file", "")) == Path(about["model"])
    return about | {"model": short_name(about["model"])} if named_by_path else about


def first_line(text: str, width: int = 60) -> str:
    """The start of a text, for a list; not what is attached to it."""
    line = next(iter(own_words(text).strip().splitlines()), "")
    return line if len(line) <= width else line[: width - 1] + "…"
