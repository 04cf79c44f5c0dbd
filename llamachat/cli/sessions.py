"""`llamachat sessions list|show|search|rename|export|rm`: saved dialogs, outside a chat."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli import epilogs
from llamachat.cli.loading import note
from llamachat.cli.shell_words import sessions
from llamachat.errors import UsageError
from llamachat.system.sanitise import sanitise_line

if TYPE_CHECKING:
    from llamachat.chat.history import History
    from llamachat.chat.store import Archive
    from llamachat.events import SavedDialog
    from llamachat.ui.render import Screen

sessions_app = typer.Typer(
    help="List, show, search, rename, export and delete saved dialogs.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, typer.Argument(help="A dialog's name.", autocompletion=sessions)]


@sessions_app.command("list", epilog=epilogs.SESSIONS)
def list_sessions(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """All saved dialogs, the latest first: name, last use, questions, model, first question."""
    saved = archive().saved()
    if as_json:
        typer.echo(json.dumps([_facts(each) for each in saved], indent=2))
    elif not sys.stdout.isatty():
        for each in saved:
            _tell(each.name, _day(each.modified), str(each.turns), each.model, each.title)
    elif saved:
        _screen().dialogs(saved)
    else:
        note("no saved dialogs")


@sessions_app.command("show", epilog=epilogs.SESSIONS)
def show_session(
    name: Name, last: Annotated[int | None, typer.Option("-n", min=1, help="Its last N questions alone.")] = None
) -> None:
    """What was said in a dialog: Markdown on a terminal, else plain."""
    from llamachat.chat.tree import exchanges

    about, history = _look(name)
    screen = _screen()
    if sys.stdout.isatty():
        screen.heading(about)
    screen.exchanges(exchanges(history.tree.active)[-last if last else 0 :])


@sessions_app.command("search", epilog=epilogs.SESSIONS)
def search_sessions(text: Annotated[list[str], typer.Argument(help="What was said, in whatever case.")]) -> None:
    """Lines of questions and answers that have a text in them, with the dialog's name; the latest dialog first."""
    wanted, screen, name, folder = " ".join(text), _screen() if sys.stdout.isatty() else None, None, archive()
    if not wanted.strip():
        raise UsageError("there is nothing to search for", remedy="give a word or more")
    for found in folder.search(wanted):
        if screen is None:
            _tell(found.name, "question" if found.role == "user" else "answer", found.line)
        else:
            screen.found(found, wanted, fresh=found.name != name)
        name = found.name
    if name is None:
        note(f"nobody said {sanitise_line(wanted)!r} in a saved dialog")


@sessions_app.command("rename", epilog=epilogs.SESSIONS)
def rename_session(name: Name, to: Annotated[str, typer.Argument(help="Its new name.", metavar="NEW")]) -> None:
    """Give a dialog another name."""
    with _disk(name, "it keeps its name"):
        archive().move(name, to)
    note(f"{name} is now called {to}")


@sessions_app.command("export", epilog=epilogs.SESSIONS)
def export_session(
    name: Name, file: Annotated[Path, typer.Argument(help="A new file: JSON where it ends in .json, else Markdown.")]
) -> None:
    """Write a dialog to a file."""
    from llamachat.chat.export import export
    from llamachat.chat.tree import path

    _, history = _look(name)
    about = {"name": name, "model": history.model, "parameters": history.parameters, "system": history.system}
    export(file, path(history.tree.active), about)
    note(f"written to {file}")


@sessions_app.command("rm", epilog=epilogs.SESSIONS)
def remove_sessions(
    names: Annotated[list[str], typer.Argument(help="Dialogs' names.", metavar="NAME...", autocompletion=sessions)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """Delete dialogs, with their keys and values and their questions in the input history."""
    folder, names = archive(), list(dict.fromkeys(names))
    for name in names:
        with _disk(name, "nothing was deleted"):
            folder.require_free(name)
    if not (yes or _agreed(folder, names)):
        note("nothing was deleted")
        return
    from llamachat.chat.store import not_all_deleted
    from llamachat.ui.saved_list import deleted_line

    for name in names:
        try:
            note(deleted_line(folder.remove(name)))
        except OSError as error:
            raise not_all_deleted(name, error) from error


def archive() -> "Archive":
    """All saved dialogs, and what is deleted with one."""
    from llamachat.chat.places import dialogs, input_history
    from llamachat.chat.store import Archive

    return Archive(dialogs(), input_history())


def _agreed(folder: "Archive", names: Sequence[str]) -> bool:
    """Whether a person says so. Raises UsageError where none can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("deleting asks first, and there is no terminal", "nothing was deleted", "say --yes")
    asked = sum(folder.about(name).turns for name in names)
    what = sanitise_line(names[0]) if len(names) == 1 else f"{len(names)} dialogs"
    sys.stderr.write(f"delete {what} ({asked} question{'s' * (asked != 1)}) for good? (y/n) ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _look(name: str) -> "tuple[SavedDialog, History]":
    with _disk(name, "it cannot be read"):
        return archive().look(name)


@contextmanager
def _disk(name: str, consequence: str) -> Iterator[None]:
    """Raises UsageError for what the disk does not let us do with a dialog."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}", consequence) from error


def _screen() -> "Screen":
    from llamachat.ui.exchange import sign
    from llamachat.ui.render import Screen

    terminal = sys.stdout.isatty()
    return Screen(sys.stdout, sys.stdout, kind="markdown" if terminal else "plain", sign=sign() if terminal else "> ")


def _tell(*cells: str) -> None:
    typer.echo("\t".join(map(sanitise_line, cells)))


def _facts(dialog: "SavedDialog") -> dict[str, object]:
    return {
        "name": dialog.name,
        "modified": _day(dialog.modified),
        "questions": dialog.turns,
        "model": dialog.model,
        "title": dialog.title,
    }


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment))
