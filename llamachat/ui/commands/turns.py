"""Commands that walk the dialog's tree: answer again, go back, ask in other words, take another branch."""

import re
from collections.abc import Iterator, Sequence

from llamachat.chat.session import Session
from llamachat.errors import UsageError
from llamachat.events import Event
from llamachat.system.enclosed import own_words
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import as_typed, first_line, first_then, need, number, unquoted, with_files


def _questions(session: Session) -> dict[int, str]:
    """Those of the active branch, by number."""
    return {turn.number: turn.text for turn in session.turns() if turn.role == "user"}


def question_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if session and not before:
        yield from ((str(number), first_line(text)) for number, text in reversed(_questions(session).items()))


def _branch_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if session and not before:
        yield from ((str(branch.id), first_line(branch.last)) for branch in session.branches() if not branch.active)


def _clear(context: Context, argument: str) -> None:
    context.session().clear()
    context.attached.clear()
    context.screen.note("dialog cleared")


def _regenerate(context: Context, argument: str) -> Iterator[Event]:
    return context.session().regenerate()


def _continue(context: Context, argument: str) -> Iterator[Event]:
    return context.session().resume()


def _undo(context: Context, argument: str) -> None:
    """At a terminal the question that the dialog stands before now comes back to be changed."""
    session = context.session()
    asked = [*_questions(session).values()]
    undone = session.undo(number(argument, "questions", default=1))
    context.screen.note(f"went back {count(undone, 'question')}; /branches still has what was said")
    if context.send is not None:
        context.prefill = as_typed(_brought_back(context, asked[-undone]))


def _brought_back(context: Context, question: str) -> str:
    """A person's own words of a question."""
    words = own_words(question)
    if words != question:
        context.screen.note("its files are to be attached anew")
    return words


def _edit(context: Context, argument: str) -> Iterator[Event] | None:
    """A text given is asked with what it attaches; without one the old text comes back to be changed."""
    session = context.session()
    questions = _questions(session)
    if not questions:
        raise UsageError("nothing has been asked yet", remedy="ask something")
    first, *rest = argument.split(maxsplit=1) or [""]
    numbered = re.fullmatch(r"[+-]?\d+", first)
    which = number(first, "a question") if numbered else max(questions)
    if text := "".join(rest) if numbered else argument:
        return first_then(session.edit(which, with_files(context, unquoted(text))), context.attached.clear)
    if which not in questions:
        raise UsageError(f"there is no question {which}", remedy="/context numbers them")
    context.prefill = f"/edit {which} {_brought_back(context, questions[which])}"
    return None


def _fork(context: Context, argument: str) -> None:
    context.screen.note(f"a new branch from here; /switch {context.session().fork()} goes back to the other")


def _branches(context: Context, argument: str) -> None:
    context.screen.branches(context.session().branches())


def _switch(context: Context, argument: str) -> None:
    session = context.session()
    session.switch(number(need(argument, "switch", "branch"), "a branch"))
    active = next(branch for branch in session.branches() if branch.active)
    context.screen.note(f"branch {active.id}, {count(active.turns, 'question')}")
    context.screen.exchanges(session.exchanges()[-1:], whole=False)


DIALOG = (
    Command(
        ("clear",),
        "",
        "begin anew in this dialog, keep the system prompt",
        _clear,
        "What was said stays in it as a branch: see /branches. /new begins another dialog, with a file of its own.",
    ),
    Command(
        ("regen", "retry"), "", "answer the last question again", _regenerate, "The other answer stays: see /branches."
    ),
    Command(("continue",), "", "go on with a stopped answer", _continue, "It goes on from exactly where it stopped."),
    Command(
        ("undo",),
        "[N]",
        "go back before the last question, or the last N",
        _undo,
        "What was said stays in the tree: /branches lists it and /switch goes there. The question that the dialog stands before\n"
        "now comes into the input line, if that is empty.",
    ),
    Command(
        ("edit",),
        "[N] [TEXT]",
        "ask the last question, or the N-th, in other words",
        _edit,
        "Without TEXT the old words come into the input line. The old question and what followed stay: see /branches.",
        question_words,
        sends=True,
    ),
    Command(("fork",), "", "begin another branch here", _fork, "Both share all that was said so far."),
    Command(("branches",), "", "show the dialog's branches", _branches),
    Command(("switch",), "N", "go to branch N", _switch, words=_branch_words),
)
