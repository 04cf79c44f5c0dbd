"""Commands that carry text in and out of a dialog: attachments, the clipboard."""

from collections.abc import Iterator, Mapping, Sequence

from llamachat.errors import UsageError
from llamachat.ui import attach, clipboard
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import need, number
from llamachat.ui.commands.turns import question_words
from llamachat.ui.markdown.snippets import snippets

_CODE = "code"


def _read(context: Context, argument: str) -> None:
    found, session = attach.read_all(need(argument, "read", "FILE")), context.session()
    new = [attachment for each in found for attachment in each.files]
    attached = attach.joined(context.attached, new)
    what = f"{attach.some(new)}{' with what is attached already' * (len(attached) > len(new))}"
    together = attach.to_message("", attached)
    attach.require_room(what, together, session.weigh, session.context_size, "attached", "attach a part of it")
    context.attached[:] = attached
    for each in found:
        context.screen.note(f"{attach.told(each, session.weigh, session.context_size)}; it goes with your next message")


def _copy(context: Context, argument: str) -> None:
    assert context.send is not None, "a private command"
    answers = {turn.number: turn.text for turn in context.finished().turns() if turn.role == "assistant" and turn.text}
    if not answers:
        raise UsageError("there is no answer to copy yet")
    word, _, rest = argument.partition(" ")
    text = _code(answers[max(answers)], rest.strip()) if word == _CODE else _answer(answers, argument)
    context.screen.note(clipboard.copy(text, context.send))


def _answer(answers: Mapping[int, str], argument: str) -> str:
    which = number(argument, "an answer", default=max(answers))
    if which not in answers:
        raise UsageError(f"there is no answer {which}", remedy=f"the last is {max(answers)}")
    return answers[which]


def _code(answer: str, argument: str) -> str:
    """The N-th code block of an answer, or the last."""
    found = snippets(answer)
    if not found:
        raise UsageError("the last answer has no code block", "nothing was copied", "/copy takes all of it")
    which = number(argument, "a code block", default=len(found))
    if which > len(found):
        raise UsageError(
            f"the last answer has no code block {which}", remedy=f"it has {count(len(found), 'code block')}"
        )
    return found[which - 1]


def _copy_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    if not before:
        yield _CODE, "the last code block of the last answer"
    yield from question_words(context, before)


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
        "[N] | code [N]",
        "copy the last answer, or the N-th, or its code",
        _copy,
        "As the model wrote it; code N: the N-th code block of the last answer, else its last. The system's clipboard program "
        "does it, or the terminal (OSC 52), also through ssh; some terminals need that allowed in their settings.",
        _copy_words,
        private=True,
        at_once=True,
    ),
)
