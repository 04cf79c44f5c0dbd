"""Commands that carry text in and out of a dialog: attachments, the clipboard."""

from llamachat.errors import UsageError
from llamachat.ui import attach, clipboard
from llamachat.ui.commands.command import Command, Context
from llamachat.ui.commands.text import number, required
from llamachat.ui.commands.turns import question_words


def _read(context: Context, argument: str) -> None:
    found, session = attach.read_all(required(argument, "read", "FILE")), context.session()
    attached = context.attached + [attachment for each in found for attachment in each.files]
    together = attach.to_message("", attached)
    attach.require_room(together, session.weigh, session.context_size, "it was not attached")
    context.attached[:] = attached
    for each in found:
        context.screen.note(f"{attach.told(each, session.weigh, session.context_size)}; it goes with your next message")


def _copy(context: Context, argument: str) -> None:
    assert context.send is not None, "a private command"
    answers = {turn.number: turn.text for turn in context.session().turns() if turn.role == "assistant" and turn.text}
    if not answers:
        raise UsageError("there is no answer to copy yet")
    which = number(argument, "an answer", default=max(answers))
    if which not in answers:
        raise UsageError(f"there is no answer {which}", remedy=f"the last is {max(answers)}")
    context.screen.note(clipboard.copy(answers[which], context.send))


TRANSFER = (
    Command(
        ("read",),
        "FILE …",
        "attach text files to the next message",
        _read,
        f"UTF-8, of at most {attach.LIMIT_TOLD} together; patterns (src/*.py) and folders (docs/) stand for several, names with "
        'spaces go in quotes. In a message, @FILE, @src/*.py, @docs/ or @"a name with spaces" do the same.',
        path=True,
        several=True,
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
