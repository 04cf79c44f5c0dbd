"""Commands that say how is answered: parameters, system prompt, persona."""

import re
from collections.abc import Iterator, Sequence
from functools import partial

from llamachat.errors import UsageError
from llamachat.ui.cells import count
from llamachat.ui.commands.choosing import use_model
from llamachat.ui.commands.command import Command, Context, Persona, Word
from llamachat.ui.commands.known import (
    INSTEAD_OF_SET,
    INSTEAD_OF_SHOW,
    MEANT_BY_SET,
    MEANT_BY_SHOW,
    SHORT,
    hint,
    parameter,
)
from llamachat.ui.commands.text import described, unquoted

_VALUES = {  # to choose from; others may be typed
    "temperature": ("0", "0.2", "0.6", "0.8", "1.0"),
    "top_k": ("0", "1", "20", "40", "100"),
    "top_p": ("0.8", "0.9", "0.95", "1.0"),
    "min_p": ("0", "0.05", "0.1"),
    "repetition_penalty": ("1.0", "1.1", "1.3"),
    "presence_penalty": ("0", "0.5", "1.5"),
    "frequency_penalty": ("0", "0.5"),
    "seed": ("none", "0"),
    "max_tokens": ("none", "256", "1024"),
    "think": ("auto", "on", "off"),
    "think_budget": ("none", "0", "512", "2048"),
    "allow_loops": ("off", "on"),
    "stats": ("off", "on"),
}
_STATS = "stats"  # how answers are shown, which no dialog remembers
_MEANINGS = {
    "temperature": "0 takes the likeliest token, after penalties",
    "top_k": "keep the K likeliest tokens; 0: all",
    "top_p": "keep the likeliest tokens that make up P of the mass",
    "min_p": "keep tokens at least P times as likely as the likeliest",
    "repetition_penalty": "above 1 makes seen tokens rarer",
    "presence_penalty": "subtracted once from each generated token",
    "frequency_penalty": "subtracted for each time it was generated",
    "seed": "same seed, same text; none: different each time",
    "max_tokens": "of an answer; none: to its end",
    "think": "on or off: whether the model thinks first; auto: as its template has it",
    "think_budget": "tokens at which a thought is ended; none: no limit",
    "allow_loops": "on: an answer that says the same over and over is not ended",
    "stats": "on: a line of figures after each answer; /stats shows them at any time",
}
_FORGETTING = (
    "/delete NAME deletes a dialog with its keys and values, `llamachat models cache --clear` all keys, values and packed "
    "weights, `llamachat models rm` a model; the input history is a text file. A chat that is started with --no-history "
    "writes none of the first three."
)


def _shown(value: object) -> str:
    return "none" if value is None else ("off", "on")[value] if isinstance(value, bool) else str(value)


def _parameters(context: Context) -> dict[str, str]:
    return {name: _shown(value) for name, value in context.session().parameters().items()}


def _set_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    settings = {**session.parameters(), _STATS: context.screen.stats} if session else {}
    match before:
        case []:
            yield from ((name, f"{_shown(value)} · {_MEANINGS.get(name, '')}") for name, value in settings.items())
        case [name]:
            now = _shown(settings.get(name))
            yield from (
                (value, "now" if value == now else "") for value in dict.fromkeys((now, *_VALUES.get(name, ())))
            )


def _set(context: Context, argument: str) -> None:
    asked = MEANT_BY_SET.get(argument.lower(), argument)
    word, value = re.fullmatch(r"(?:parameter(?:\s+|\Z))?([^\s=]*)\s*=?\s*(.*)", asked, re.DOTALL).groups()  # type: ignore[union-attr]
    if word == "system":
        _system(context, value)
        return
    name, settings = parameter(word), _settings(context)
    if name and name not in settings:
        remedy = hint(name, settings, INSTEAD_OF_SET) or "/set lists them"
        raise UsageError(f"no parameter is called {word[:40]}", "nothing was set", remedy)
    if value and name == _STATS:
        context.screen.stats = _switched(name, value.lower())
    elif value:
        context.session().set_parameter(name, value)
    settings = _settings(context)
    context.screen.table([(name, settings[name])] if name else settings.items())


def _settings(context: Context) -> dict[str, str]:
    """What /set shows and changes: the session's parameters, and what is of the screen alone."""
    return {**_parameters(context), _STATS: _shown(context.screen.stats)}


def _switched(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"{name} cannot be {text[:40]!r}", remedy="give on or off")
    return text == "on"


def _think(context: Context, argument: str) -> None:
    if argument:
        context.session().set_parameter("think", argument)
    settings = _parameters(context)
    context.screen.table((name, settings[name]) for name in ("think", "think_budget"))


def _think_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    return _set_words(context, ["think"]) if not before else iter(())


def _show(context: Context, argument: str) -> None:
    session = context.session()
    facts = {
        "model": described(session),
        "system": {"system": session.system or "none"},
        "parameters": _parameters(context),
    }
    argument = MEANT_BY_SHOW.get(argument, argument)
    if argument == "data":
        _show_data(context)
    elif argument and argument not in facts:
        remedy = hint(argument, facts, INSTEAD_OF_SHOW) or f"it knows {', '.join([*facts, 'data'])}"
        raise UsageError(f"/show knows no {argument[:40]}", remedy=remedy)
    else:
        context.screen.table(row for name in ([argument] if argument else facts) for row in facts[name].items())


def _show_data(context: Context) -> None:
    """Where all is kept, and how to have it forgotten."""
    session = context.session()
    places = [(place.what, ": ".join(filter(None, (place.size, place.path)))) for place in session.places()]
    context.screen.table(places)
    context.screen.note(_FORGETTING if session.kept else "This chat keeps nothing of what is said. " + _FORGETTING)


def _show_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    if not before:
        yield from ((name, "") for name in ("model", "system", "parameters", "data"))


def _system(context: Context, argument: str) -> None:
    session = context.session()
    if not argument:
        context.screen.text(session.system or "no system prompt")
    elif argument == '""':
        session.set_system(None)
        context.screen.note("system prompt removed")
    else:
        session.set_system(re.sub(r'\A"([^"]+)"\Z', r"\1", unquoted(argument)))  # as ollama has it
        context.screen.note("system prompt set")


def _persona(context: Context, argument: str) -> None:
    if argument:
        apply(context, context.library.persona(argument))
        return
    rows = list(context.library.personas())
    context.screen.table(rows)
    if not rows:
        context.screen.note("no personas yet; /help persona says how to make one")


def apply(context: Context, persona: Persona) -> None:
    """Begin a new dialog in a persona's manner. What comes first may fail, and then nothing else has changed."""
    if persona.model and not use_model(context, persona.model):
        return
    session = context.session()
    for name, value in {**persona.sampling, **({"think": persona.think} if persona.think else {})}.items():
        session.set_parameter(name, str(value))
    session.set_system(persona.system)
    session.begin(persona.said)
    begun = f", {count(len(persona.said), 'message')} already said" if persona.said else ""
    context.screen.note(f"a new dialog with {persona.name}{begun}")


def _persona_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    if not before:
        yield from context.library.personas()


def _set_one(context: Context, value: str, name: str) -> None:
    _set(context, f"{name} {value}")


def _words_of_one(context: Context, before: Sequence[str], name: str) -> Iterator[Word]:
    return _set_words(context, [name]) if not before else iter(())


def _of_parameter(name: str) -> Command:
    """/temperature 0.4 and /temp 0.4, which mean /set temperature 0.4."""
    own = [name, *(word for word, meant in SHORT.items() if meant == name)]
    names = dict.fromkeys([*(word.replace("_", "-") for word in own), *own])
    run, words = partial(_set_one, name=name), partial(_words_of_one, name=name)
    return Command((*names,), "[VALUE]", _MEANINGS.get(name, ""), run, words=words)


PARAMETERS = tuple(map(_of_parameter, _VALUES))  # beside the commands, of which /set stands for them

SETTINGS = (
    Command(
        ("set",),
        "[NAME [VALUE]]",
        "show or change how answers are made and shown",
        _set,
        "\n".join(f"  {name:20}{meaning}" for name, meaning in _MEANINGS.items())
        + "\nEach is a command, too, by its own name or its flag's: /temp 0.4, /top-p 0.9, /seed 3.",
        _set_words,
    ),
    Command(
        ("think",),
        "[on|off|auto]",
        "show or say whether the model thinks before it answers",
        _think,
        "auto: as the model's template has it. /set think_budget N ends a thought at N tokens; /thoughts shows the last one.",
        _think_words,
    ),
    Command(("show",), "[NAME]", "show what is set (model, system, parameters), or data", _show, words=_show_words),
    Command(
        ("system",),
        "[TEXT]",
        'show or set the system prompt; "" removes it',
        _system,
        'It holds from the next answer on. Several lines: put """ around them.',
    ),
    Command(
        ("persona",),
        "[NAME]",
        "show the personas, or begin anew with one",
        _persona,
        "A persona is a file personas/NAME.toml in the config folder, with any of these keys:\n"
        '  system = "You are …"\n'
        "  sampling = { temperature = 0.9 }\n"
        '  messages = [["first question", "first answer"]]\n'
        '  model = "name"\n'
        '  think = "off"',
        _persona_words,
    ),
)
