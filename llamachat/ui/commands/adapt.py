"""/lora: adapters beside the model's weights."""

from collections.abc import Iterator, Sequence

from llamachat.errors import UsageError
from llamachat.events import AdapterView
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Word
from llamachat.ui.commands.text import require_terminal

ADD = "add"
_SCALES = {"on": "with its last scale", "off": "the model as if it were not there", "0.5": "", "1.0": ""}


def _lora(context: Context, argument: str) -> None:
    name, _, rest = argument.partition(" ")
    if name == ADD:
        _add(context, rest.strip())
    elif argument:
        _scale(context, argument)
    else:
        _list(context)


def _list(context: Context) -> None:
    held = context.session().adapters()
    context.screen.table((each.name, _told(each)) for each in held)
    if not held:
        context.screen.note("no adapters; /lora add PATH takes one from a PEFT folder")


def _told(adapter: AdapterView) -> str:
    parts = [f"rank {adapter.rank}, {count(adapter.matrices, 'module')}"] if adapter.matrices else []
    parts += [f"{count(adapter.replaced, 'whole tensor')}: stays on"] if adapter.replaced else []
    return " · ".join([f"× {adapter.scale:g}" if adapter.scale else "off", *parts, adapter.size])


def _add(context: Context, path: str) -> None:
    require_terminal(context, f"lora {ADD}")
    if not path:
        raise UsageError(f"/lora {ADD} wants a folder", remedy=f"/lora {ADD} PATH, or PATH:SCALE")
    with context.screen.waiting(f"reading {path} …"):
        added = context.session().add_adapter(path)
    _changed(context, f"{added.name}: {_told(added)}")


def _scale(context: Context, argument: str) -> None:
    """A name alone shows that adapter."""
    session = context.session()
    name, _, word = argument.rpartition(" ")
    if not name:
        found = [each for each in session.adapters() if each.name == argument]
        if not found:
            raise UsageError(f"no adapter is called {argument[:60]}", remedy="/lora lists them")
        context.screen.table((each.name, _told(each)) for each in found)
        return
    scaled = session.scale_adapter(name.strip(), _number(word))
    _changed(context, f"{scaled.name} is {f'at × {scaled.scale:g}' if scaled.scale else 'off'}")


def _number(word: str) -> float | None:
    """The scale that a word stands for; None: the last one."""
    if word.lower() in ("on", "off"):
        return None if word.lower() == "on" else 0.0
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"{word[:40]!r} is no scale", remedy="give a number, on or off") from None


def _changed(context: Context, line: str) -> None:
    said = any(turn.role != "system" for turn in context.session().turns())
    context.screen.note(line + ("; the dialog is read anew with the next question" if said else ""))


def _words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if not before:
        yield from ((each.name, _told(each)) for each in (session.adapters() if session else ()))
        yield ADD, "a PEFT folder"
    elif len(before) == 1 and before[0] != ADD:
        yield from _SCALES.items()


ADAPTERS = (
    Command(
        ("lora",),
        "[NAME [SCALE]]",
        "show adapters, scale or switch one, or add one",
        _lora,
        "SCALE is a number, on or off (as 0 is). `/lora add PATH[:SCALE]` takes another, from a folder that PEFT has written.\n"
        "Several add up. The model stays loaded; what it had read of the dialog is of before, so that is read anew.",
        _words,
        path=True,
    ),
)
