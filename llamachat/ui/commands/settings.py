"""Commands that say how is answered: parameters, system prompt, model, persona."""

from collections.abc import Iterator, Sequence

from llamachat.errors import UsageError
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context, Persona, Word
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
    name, _, value = argument.partition(" ")
    name = name.replace("-", "_")  # as the flag is written
    if value and name == _STATS:
        context.screen.stats = _switched(name, value.strip().lower())
    elif value:
        context.session().set_parameter(name, value.strip())
    settings = {**_parameters(context), _STATS: _shown(context.screen.stats)}
    if name and name not in settings:
        raise UsageError(f"no parameter is called {name[:40]}", remedy="/set lists them")
    context.screen.table([(name, settings[name])] if name else settings.items())


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
    if argument and argument not in facts:
        raise UsageError(f"/show knows no {argument[:40]}", remedy=f"it knows {', '.join(facts)}")
    context.screen.table(row for name in ([argument] if argument else facts) for row in facts[name].items())


def _show_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    if not before:
        yield from ((name, "") for name in ("model", "system", "parameters"))


def _system(context: Context, argument: str) -> None:
    session = context.session()
    if not argument:
        context.screen.text(session.system or "no system prompt")
    elif argument == '""':
        session.set_system(None)
        context.screen.note("system prompt removed")
    else:
        session.set_system(unquoted(argument))
        context.screen.note("system prompt set")


def _model(context: Context, argument: str) -> None:
    if argument:
        _use_model(context, argument)
    else:
        session = context.session()
        for rows in (described(session).items(), session.others(), context.library.models()):
            context.screen.table(rows)


def _use_model(context: Context, name: str) -> None:
    session = context.session()
    with context.screen.waiting(f"loading {name} …"):
        session.use_model(name)
    context.screen.note(f"{described(session)['model']} goes on with the dialog")


def _model_words(context: Context, before: Sequence[str]) -> Iterator[Word]:
    session = context.ready()
    if not before:
        yield from session.others() if session else ()
        yield from context.library.models()


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
    if persona.model:
        _use_model(context, persona.model)
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


SETTINGS = (
    Command(
        ("set",),
        "[NAME [VALUE]]",
        "show or change how answers are made and shown",
        _set,
        "\n".join(f"  {name:20}{meaning}" for name, meaning in _MEANINGS.items()),
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
    Command(("show",), "[NAME]", "show what is set: model, system, parameters", _show, words=_show_words),
    Command(
        ("system",),
        "[TEXT]",
        'show or set the system prompt; "" removes it',
        _system,
        'It holds from the next answer on. Several lines: put """ around them.',
    ),
    Command(
        ("model",),
        "[NAME]",
        "show the models, or go on with another",
        _model,
        "NAME is one that `llamachat models list` shows, hf:owner/repo, or a path; in a chat over a server also one of its\n"
        "models, which go first. The dialog stays.",
        _model_words,
        path=True,
        private=True,
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
