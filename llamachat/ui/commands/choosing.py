"""/model: which models there are, and going on with another; one that is not here is fetched, if the person wants that."""

from collections.abc import Callable, Iterator, Sequence

from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import ModelView, Progress
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import described
from llamachat.ui.progress_line import ProgressLine, late
from llamachat.ui.saved_list import short_name

HINT = "/model NAME goes on with one; what is not here is fetched only if you say so"


def _model(context: Context, argument: str) -> None:
    if argument:
        use_model(context, argument)
        return
    session, screen = context.session(), context.screen
    screen.table(described(session).items())
    screen.table(session.others())
    with screen.waiting("looking for models …"):
        views = list(context.library.views())
    screen.models(views, session.describe()["model"])
    screen.note(HINT)


def use_model(context: Context, name: str) -> bool:
    """Go on with another model; False where the person would not have it fetched. Raises LlamachatError."""
    session = context.session()
    served = any(name == known for known, _ in session.others())
    if not (served or _is_had(context, name)):
        context.screen.note(f"not fetched; {described(session)['model']} stays")
        return False
    with context.screen.waiting(f"loading {short_name(name)} …") as change:
        session.use_model(name, late(_shown(change)))
    context.screen.note(f"{described(session)['model']} goes on with the dialog")
    return True


def _is_had(context: Context, name: str) -> bool:
    """Whether it is here, or now is; who loads it says what is wrong with a name. Raises LlamachatError before any download."""
    with context.screen.waiting(f"looking for {short_name(name)} …"):
        view = context.library.view(name)
    if view is None or view.here:
        return True
    if view.fits is False:
        other = context.library.better()
        remedy = f"/model {other.name} would fit" if other else "close other programs"
        raise DoesNotFitError(f"{view.name} {_need(view)}", "nothing was fetched", remedy)
    what = ", ".join(filter(None, (view.file, view.size))) or "it, whatever its size is"
    if not context.confirm(f"{view.name} is not here: fetch {what}?"):
        return False
    _fetch(context, name)
    return True


def _need(view: ModelView) -> str:
    return f"needs {view.needs}" if view.needs else f"is too large for the memory that is free ({view.size})"


def _fetch(context: Context, name: str) -> None:
    with context.screen.waiting(f"fetching {short_name(name)} …") as change:
        shown = _shown(change)

        def progress(what: str, done: int, total: int | None) -> None:
            if context.stopped():
                raise UsageError("stopped", f"{described(context.session())['model']} stays", "what has come is kept")
            shown(what, done, total)

        context.library.fetch(name, progress)


def _shown(change: Callable[[str], None]) -> Progress:
    """How far something is, in the line of what is waited for."""
    line = ProgressLine()

    def progress(what: str, done: int, total: int | None) -> None:
        line.tell(what, done, total)
        change(line.line)

    return progress


def _words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if not before:
        yield from session.others() if session else ()
        yield from context.library.models()


CHOOSING = (
    Command(
        ("model",),
        "[NAME]",
        "show the models, or go on with another",
        _model,
        "NAME is one that /model or `llamachat models list` shows, hf:owner/repo, or a path; in a chat over a server also one\n"
        "of its models, which go first. What is not here is asked for before it is fetched. The dialog stays.",
        _words,
        path=True,
        private=True,
    ),
)
