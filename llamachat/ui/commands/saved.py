"""Commands for the dialogs on disk: leave one, come back to one, look back, delete."""

from collections.abc import Iterator, Sequence

from llamachat.errors import UsageError
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import need, number
from llamachat.ui.saved_list import deleted_line, saved_line

LOOKED_BACK = 20  # exchanges that /history shows unless it is told how many


def _new(context: Context, argument: str) -> None:
    session = context.session()
    stays = f"; {session.name} stays saved, /load brings it back" if session.on_disk else ""
    session.new()
    context.attached.clear()
    context.screen.note(f"a new dialog{stays}")


def _save(context: Context, argument: str) -> None:
    need(argument, "save", "NAME")
    context.session().save(argument)
    context.screen.note(f"saved as {argument}, and from now on after each answer")


def _load(context: Context, argument: str) -> None:
    need(argument, "load", "NAME")
    session = context.session()
    about = session.about(argument)
    session.load(argument)
    context.screen.returned(about, session.exchanges())


def _sessions(context: Context, argument: str) -> None:
    session = context.finished()
    saved = session.saved()
    if saved:
        context.screen.dialogs(saved, session.name)
    else:
        context.screen.note("no saved dialogs")
    if not session.on_disk:
        context.screen.note(
            f"this dialog is saved{f' as {session.name}' if session.name else ''} with its next question"
        )


def _history(context: Context, argument: str) -> None:
    exchanges = context.session().exchanges()
    if not exchanges:
        raise UsageError("nothing has been said in this dialog", remedy="ask something")
    shown = exchanges[-number(argument, "questions", default=LOOKED_BACK) :]
    if len(shown) < len(exchanges) and not argument:
        earlier = count(len(exchanges) - len(shown), "earlier question")
        context.screen.note(f"… {earlier}; /history {len(exchanges)} shows all")
    context.screen.exchanges(shown)


def _delete(context: Context, argument: str) -> None:
    session = context.session()
    name = argument or session.name or ""
    this = name == (session.name or "")
    session.require_deletable(name)
    about = session.about(name)
    size = f" ({count(about.turns, 'question')})" if about.turns else ""
    if not context.confirm(f"delete {name}{size} for good?"):
        context.screen.note("nothing was deleted")
        return
    context.screen.note(deleted_line(session.delete(name)) + ("; a new dialog begins" if this else ""))


def session_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if session and not before:
        yield from ((dialog.name, saved_line(dialog)) for dialog in session.saved())


SAVED = (
    Command(
        ("new",),
        "",
        "begin another dialog; this one stays saved",
        _new,
        "It has a file of its own, and the system prompt and settings of this one. /clear begins anew in this dialog's file,\n"
        "where /branches has what was said.",
    ),
    Command(
        ("history",),
        "[N]",
        "show what was said, or the last N of it",
        _history,
        f"Without N the last {LOOKED_BACK} questions and their answers.",
    ),
    Command(
        ("save",),
        "NAME",
        "give the dialog a name",
        _save,
        "A dialog is saved after each answer in any case, under a name made of its first question.",
        private=True,
    ),
    Command(
        ("load",),
        "NAME",
        "leave this dialog and open a saved one",
        _load,
        "Where another chat has that open, what you ask here is saved in a copy of it.",
        session_words,
        private=True,
    ),
    Command(
        ("sessions",),
        "",
        "list the saved dialogs",
        _sessions,
        "Outside a chat `llamachat sessions` lists, shows, searches, renames and deletes them.",
        at_once=True,
    ),
    Command(
        ("delete",),
        "[NAME]",
        "delete this dialog, or another saved one",
        _delete,
        "With it go its keys and values, and its questions in the input history, though this chat's Up key still has them.\n"
        "What else was typed stays, and what /export has written. /show data says where all is kept.",
        session_words,
        private=True,
    ),
)
