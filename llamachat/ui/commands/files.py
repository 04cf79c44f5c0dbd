"""/export: a dialog as a file."""

from llamachat.ui import attach
from llamachat.ui.commands.command import Command, Context
from llamachat.ui.commands.text import need


def _export(context: Context, argument: str) -> None:
    path = attach.as_path(need(argument, "export", "FILE"))
    context.session().export(path)
    context.screen.note(f"written to {path}")


FILES = (
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
