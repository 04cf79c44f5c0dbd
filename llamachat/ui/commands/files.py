"""Commands that read and write dialogs: saved ones, exports."""

import time
from collections.abc import Iterator, Sequence

from llamachat.events import SavedDialog
from llamachat.ui import attach
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import first_line, required


def _save(context: Context, argument: str) -> None:
    required(argument, "save", "NAME")
    context.session().save(argument)
    context.screen.note(f"saved as {argument}, and from now on after each answer")


def _load(context: Context, argument: str) -> None:
    required(argument, "load", "NAME")
    session = context.session()
    session.load(argument)
    turns = session.turns()
    asked = [turn.text for turn in turns if turn.role == "user"]
    last = f"; last asked: {first_line(asked[-1])}" if asked else ""
    context.screen.note(f"{argument}: {count(len(asked), 'question')}{last}")


def _sessions(context: Context, argument: str) -> None:
    session = context.finished()
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
    path = attach.as_path(required(argument, "export", "FILE"))
    context.session().export(path)
    context.screen.note(f"written to {path}")


FILES = (
    Command(
        ("save",), "NAME", "save the dialog under a name", _save, "It is then saved after each answer.", private=True
    ),
    Command(("load",), "NAME", "leave this dialog and open a saved one", _load, words=session_words, private=True),
    Command(("sessions",), "", "list the saved dialogs", _sessions, at_once=True),
    Command(
        ("export",),
        "FILE",
        "write the dialog to a file",
        _export,
        "Markdown, or JSON where the name ends in .json. A file that exists is not overwritten.",
        path=True,
        private=True,
    ),
)
