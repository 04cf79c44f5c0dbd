"""Commands that read and write: exports, attachments, the clipboard."""

from llamachat.errors import UsageError
from llamachat.ui import attach, clipboard
from llamachat.ui.commands.command import Command, Context
from llamachat.ui.commands.text import need, number
from llamachat.ui.commands.turns import question_words


def _export(context: Context, argument: str) -> None:
    path = attach.as_path(need(argument, "export", "FILE"))
    context.session().export(path)
    context.screen.note(f"written to {path}")


def _read(context: Context, argument: str) -> None:
    attachment = attach.read(attach.as_path(need(argument, "read", "FILE")))
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
