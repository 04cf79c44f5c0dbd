"""Commands that read and write: saved dialogs, exports, attachments, the clipboard."""

import time
from collections.abc import Iterator, Sequence

from llamachat.errors import UsageError
from llamachat.events import SavedDialog
from llamachat.ui import attach, clipboard
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import first_line, number
from llamachat.ui.commands.turns import question_words


def _save(context: Context, argument: str) -> None:
    _need(argument, "save", "NAME")
    context.session().save(argument)
    context.screen.note(f"saved as {argument}, and from now on after each answer")


def _load(context: Context, argument: str) -> None:
    _need(argument, "load", "NAME")
    session = context.session()
    session.load(argument)
    turns = session.turns()
    asked = [turn.text for turn in turns if turn.role == "user"]
    last = f"; last asked: {first_line(asked[-1])}" if asked else ""
    context.screen.note(f"{argument}: {count(len(asked), 'question')}{last}")


def _sessions(context: Context, argument: str) -> None:
    session = context.session()
    saved = session.saved()
    if saved:
        context.screen.dialogs(saved)
    this = f"this one is called {session.name}" if session.name else "this one is not saved; /save NAME does it"
    context.screen.note(this if saved else "no saved dialogs; " + this)


def saved_line(dialog: SavedDialog) -> str:
    """Like "2 hours ago · 5 questions · Smol-1B · How do I …"."""
    return " · ".join(
        [_ago(dialog.modified), count(dialog.turns, "question"), dialog.model, first_line(dialog.title, 40)]
    )


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{count(int(seconds // size), unit)} ago"
    return "just now"


def session_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if session and not before:
        yield from ((dialog.name, saved_line(dialog)) for dialog in session.saved())


def _export(context: Context, argument: str) -> None:
    path = attach.as_path(_need(argument, "export", "FILE"))
    context.session().export(path)
    context.screen.note(f"written to {path}")


def _read(context: Context, argument: str) -> None:
    attachment = attach.read(attach.as_path(_need(argument, "read", "FILE")))
    context.attached.append(attachment)
    context.screen.note(f"{attach.told(attachment)} to your next message")


def _copy(context: Context, argument: str) -> None:
    assert context.send is not None, "a private command"
    answers = {turn.number: turn.text for turn in context.session().turns() if turn.role == "assistant" and turn.text}
    if not answers:
        raise UsageError("there is no answer to copy yet")
    which = number(argument, "an answer", default=max(answers))
    if which not in answers:
        raise UsageError(f"there is no answer {which}", remedy=f"the last is {max(answers)}")
    context.screen.note(clipboard.copy(answers[which], context.send))


def _need(argument: str, command: str, what: str) -> str:
    if not argument:
        raise UsageError(f"/{command} needs a {what}", remedy=f"/help {command} says more")
    return argument


FILES = (
    Command(
        ("save",), "NAME", "save the dialog under a name", _save, "It is then saved after each answer.", private=True
    ),
    Command(("load",), "NAME", "leave this dialog and open a saved one", _load, words=session_words, private=True),
    Command(("sessions",), "", "list the saved dialogs", _sessions),
    Command(
        ("export",),
        "FILE",
        "write the dialog to a file",
        _export,
        "Markdown, or JSON where the name ends in .json. A file that exists is not overwritten.",
        path=True,
        private=True,
    ),
    Command(
        ("read",),
        "FILE",
        "attach a text file to the next message",
        _read,
        f'UTF-8, of at most {attach.LIMIT_TOLD}. In a message, @FILE or @"a name with spaces" does the same.',
        path=True,
        private=True,
    ),
    Command(
        ("copy",),
        "[N]",
        "copy the last answer, or the N-th, to the clipboard",
        _copy,
        "The terminal does it (OSC 52), also through ssh; some need it allowed in their settings.",
        question_words,
        private=True,
    ),
)
