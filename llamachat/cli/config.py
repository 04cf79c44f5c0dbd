"""`llamachat config`: the defaults of the flags, seen and changed."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from llamachat.cli import defaults, epilogs
from llamachat.errors import CatalogError, UsageError
from llamachat.system.sanitise import sanitise, sanitise_line


def _keys(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    known = defaults.keys_of(defaults.chat_context(ctx).command)
    yield from ((key, flag.help or "") for key, flag in known.items() if key.startswith(incomplete))


def _values(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """As for the flag itself."""
    chat = defaults.chat_context(ctx)
    flag = defaults.keys_of(chat.command).get(ctx.params.get("name") or "")
    found = [("true", ""), ("false", "")] if flag and flag.is_flag else []
    items = flag.shell_complete(chat, incomplete) if flag else []
    yield from [*found, *((item.value, item.help or "") for item in items)]


Key = Annotated[
    str, typer.Argument(metavar="NAME", help="A flag without its dashes, such as top-k.", autocompletion=_keys)
]
config_app = typer.Typer(
    help="Show and change the defaults of flags: of chat, complete, and what reads texts.\n\n"
    "A flag goes before its environment variable, that before the file, and the file before the model's own default.",
    epilog=epilogs.CONFIG,
    add_completion=False,
)


@config_app.callback(invoke_without_command=True)
def list_settings(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Every setting: its value, and where that comes from."""
    if ctx.invoked_subcommand:
        return
    chat = defaults.chat_context(ctx)
    rows = [(key, *effective(key, chat)) for key in defaults.keys_of(chat.command)]
    if as_json:
        typer.echo(json.dumps([{"name": key, "value": value, "from": source} for key, value, source in rows], indent=2))
        return
    shown = [(key, _told(value), source) for key, value, source in rows]
    if not sys.stdout.isatty():
        typer.echo("\n".join(map("\t".join, shown)))
        return
    for key, value, source in shown:
        typer.echo(f"{key:20}{value if len(value) <= 36 else value[:35] + '…':38}{source}")


@config_app.command("get")
def get_setting(ctx: typer.Context, name: Key) -> None:
    """Print the value that holds, or nothing where the model's own default does."""
    chat = defaults.chat_context(ctx)
    value, _ = effective(name, chat)
    if value is not None:
        values = value if isinstance(value, list) else [value]
        typer.echo("\n".join(sanitise(each) if isinstance(each, str) else _told(each) for each in values))


@config_app.command("set", context_settings={"ignore_unknown_options": True})  # -0.5 is a value
def set_setting(
    ctx: typer.Context,
    name: Key,
    values: Annotated[
        list[str], typer.Argument(metavar="VALUE...", help="As the flag takes it.", autocompletion=_values)
    ],
) -> None:
    """Set a default. It is checked as the flag is; comments in the file stay."""
    chat = defaults.chat_context(ctx)
    repeated = name in (known := defaults.keys_of(chat.command)) and known[name].multiple
    if len(values) > 1 and not repeated:
        raise UsageError(f"{name} takes one value, not {len(values)}", "nothing was set", "quote it")
    parsed = defaults.convert(name, values if repeated else values[0], chat)
    _find(name, parsed, chat)
    defaults.write(defaults.config_file(), name, defaults.plain(parsed))
    if name == "pack-cache":
        _cut(parsed)


@config_app.command("unset")
def unset_setting(ctx: typer.Context, name: Key) -> None:
    """Take a default out of the file."""
    defaults.write(defaults.config_file(), name, None)


@config_app.command("path")
def show_path() -> None:
    """Print where the file is, or would be."""
    typer.echo(str(defaults.config_file()))


def _find(name: str, value: Any, chat: Any) -> None:
    """Raises LlamachatError for the name of what is not there. What a configured server has is not asked."""
    from llamachat.chat import persona
    from llamachat.models import catalog

    if name == "model" and not effective("server", chat)[0]:
        try:
            catalog.resolve(value)
        except CatalogError as error:
            raise UsageError(str(error)) from error
    elif name == "persona":
        persona.load(value)


def _cut(asked: str) -> None:
    """Have the cache of packed weights within its new size at once."""
    from llamachat.models.disk_cache import deleting
    from llamachat.models.packed_weights import limit_of, store
    from llamachat.system.amounts import size

    with deleting("pack-cache is set, and more than that is kept"):
        freed = store(limit_of(asked)).cut()
    if freed:
        typer.echo(f"{size(freed)} of packed weights deleted; a start packs them anew", err=True)


def effective(key: str, chat: Any) -> tuple[Any, str]:
    """The value of a setting and where it comes from."""
    known = defaults.keys_of(chat.command)
    if key not in known:
        raise defaults.unknown(key, known)
    flag = known[key]
    if (value := flag.value_from_envvar(chat)) is not None:
        return value, str(flag.envvar)
    if key in (table := defaults.read(defaults.config_file(), chat)):
        return defaults.plain(table[key]), "config.toml"
    return defaults.plain(flag.default), "default"


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(repr, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else sanitise_line(str(value))
