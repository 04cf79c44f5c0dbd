"""The user's defaults for flags: config.toml in the config folder. Its keys are the long names of `llamachat chat`'s flags.

A flag goes before its environment variable, that before this file, and this file before the model's own default.
"""

import difflib
import os
import shlex
import tomllib
from collections import UserDict
from collections.abc import Mapping
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from llamachat import paths
from llamachat.cli.plain_values import spare
from llamachat.cli.wording import allowed
from llamachat.errors import ConfigError, LlamachatError, UsageError, reading
from llamachat.system import private
from llamachat.system.textfile import read_settings

SECRET = ("server", "key-env")  # what is wrong there may be a key, which is not shown
RIVALS = (("system", "system_file"), ("continued", "session", "no_history"))  # of each only one counts
OF_THE_SERVER = (
    "model",
    "insecure",
)  # what a weaker source says of these is not about this server; of a key, what any other
STRENGTH = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")  # of the sources of a value


def config_file() -> Path:
    return paths.config_dir() / "config.toml"


def keys_of(command: Any) -> dict[str, Any]:
    """Key -> parameter of a command."""
    options = [each for each in command.params if isinstance(each, typer.core.TyperOption) and not each.is_eager]
    return {_long(option): option for option in options}


def _long(option: Any) -> str:
    return next(str(name) for name in option.opts if name.startswith("--"))[2:]


def chat_context(ctx: Any) -> Any:
    """Of a context, that of `chat` with nothing given: whose flags the file is about."""
    root = ctx.find_root()
    return root.command.get_command(root, "chat").make_context("chat", [], parent=root, resilient_parsing=True)


def read(file: Path, ctx: Any) -> dict[str, Any]:
    """What the file sets, key -> the flag's value; a path is relative to the file. `ctx`: any of ours. Raises ConfigError that
    names file, key and value."""
    with reading(f"{file} cannot be read", ConfigError, "nothing was started", "correct it"):
        try:
            table = tomllib.loads(read_settings(file))
        except (FileNotFoundError, NotADirectoryError):  # HOME may be /dev/null
            return {}
    chat = chat_context(ctx) if table else None
    return {key: _anchored(key, check(key, value, chat, f"in {file}"), file) for key, value in table.items()}


def _anchored(key: str, value: Any, file: Path) -> Any:
    if key == "lora":
        return [str(file.parent / os.path.expanduser(text)) for text in value]  # noqa: PTH111 (never raises)
    return file.parent / os.path.expanduser(value) if isinstance(value, Path) else value  # noqa: PTH111 (never raises)


def check(key: str, value: Any, chat: Any, where: str) -> Any:
    """The flag's value for one from TOML. Raises ConfigError for an unknown key or what the flag would not take."""
    parsed = convert(key, _typed(value), chat, where)
    if not _same_kind(value, parsed):
        cause = f"{key} = {_shown(value)} {where} is not {_kind(parsed)}"
        raise ConfigError(cause, _consequence(where), _remedy(key, where))
    return parsed


def convert(key: str, typed: Any, chat: Any, where: str = "") -> Any:
    """The flag's value for what could be typed after it (a list of that where it may be repeated).

    Raises ConfigError for a file's (`where`), else UsageError.
    """
    known = keys_of(chat.command)
    if key not in known:
        raise unknown(key, known, where)
    try:
        parsed = known[key].process_value(chat, typed)
        check_meaning(known[key].name, parsed)
    except (TyperException, LlamachatError) as error:
        raise _wrong(key, typed, known[key], error, where) from error
    return parsed


def _wrong(key: str, typed: Any, flag: Any, error: Exception, where: str) -> LlamachatError:
    """The error for a value that a flag does not take: a file's fault, or where no file is named the command line's."""
    if isinstance(error, TyperException):
        given = (key if key in SECRET else f"{key} = {_shown(typed)}") + f" {where}" * bool(where)
        return _kind_of_error(where)(f"{given} is not {allowed(flag)}", _consequence(where), _remedy(key, where))
    said = str(error)  # which names what has which value, mostly in the key's own words
    place = where if said.replace("_", "-").startswith(key) else f"{key} {where}"
    return _kind_of_error(where)(f"{place}: {said}" if where else said, _consequence(where), _remedy(key, where))


def _kind_of_error(where: str) -> type[LlamachatError]:
    return ConfigError if where else UsageError


def unknown(key: str, known: Mapping[str, Any], where: str = "") -> LlamachatError:
    near = difflib.get_close_matches(key[:100].replace("_", "-"), known, n=1)
    hint = f"did you mean {near[0]}?" if near else _remedy(key, where) or "`llamachat config` lists the keys"
    return _kind_of_error(where)(f"unknown key {_shown(key)} {where}".rstrip(), _consequence(where), hint)


def _remedy(key: str, where: str) -> str:
    """What to do about a key of a file, which `llamachat config` alone cannot show as long as something in it is wrong."""
    unset = f", or take it out with `llamachat config unset {shlex.quote(key)}`" if len(key) <= 40 else ""
    return f"correct it{unset}" if where else ""


def _consequence(where: str) -> str:
    return "nothing was started" if where else "nothing was set"


def check_meaning(name: str, value: Any) -> None:
    """Raises UsageError for a value of the right type that no model takes."""
    from llamachat.core.detokenize import StopMatcher
    from llamachat.core.sampling import SamplingParams
    from llamachat.models.adapters import reference
    from llamachat.models.load import check_options
    from llamachat.models.packed_weights import limit_of
    from llamachat.system.web_address import check_key_name, server_url

    if name in SamplingParams.__dataclass_fields__:
        SamplingParams().replace(**{name: value})
    elif name in ("ctx_size", "kv_bits", "threads"):
        check_options(**{"ctx_size": None, "kv_bits": None, "dtype": None, "threads": None, name: value})
    elif name == "pack_cache":
        limit_of(value)
    elif name == "stop":
        StopMatcher(value)
    elif name == "lora":
        for text in value:
            reference(text)
    elif name == "server" and value:
        server_url(value)
    elif name == "key_env":
        check_key_name(value)


def _typed(value: Any) -> Any:
    """A TOML value as it would stand on a command line, for the flag to judge."""
    if isinstance(value, list):
        return [_typed(each) for each in value]
    return value if isinstance(value, bool) else str(value)


def _same_kind(value: Any, parsed: Any) -> bool:
    if isinstance(parsed, (list, tuple)):
        return isinstance(value, list) and all(map(_same_kind, value, parsed))
    if isinstance(parsed, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(parsed, bool)
    if isinstance(parsed, (int, float)):
        return isinstance(value, (int, float))
    return isinstance(value, str)


def _kind(parsed: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list of texts"}
    return kinds.get(type(parsed), "text in quotes")


def plain(value: Any) -> Any:
    """A flag's value as TOML can hold it."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.value if isinstance(value, Enum) else str(value.absolute()) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    from llamachat.checks import shown

    return shown(value)


def write(file: Path, key: str, value: Any | None) -> None:
    """Set a key, or take it out (None), and keep all the rest of the file to the letter. Raises LlamachatError.

    The new file takes the old one's place at once; a link stays one.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    target = Path(os.path.realpath(file))
    try:
        document = tomlkit.parse(read_settings(target) if target.exists() else "")
        if value is None:
            if key not in document:
                raise UsageError(f"{_shown(key)} is not set in {file}", "nothing was changed")
            document.remove(key)
        else:
            document[key] = value
        _replace(target, tomlkit.dumps(document))
    except (TOMLKitError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", "it was not changed", "correct it") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "it was not changed") from error


def _replace(target: Path, text: str) -> None:
    if not target.parent.exists():  # one that is there is as the person wants it, and so is a file's mode
        private.folder(target.parent)
    mode = target.stat().st_mode & 0o777 if target.exists() else private.FILE
    with private.writing(target, sync=True, mode=mode) as file:
        file.write(text.encode())


class _Defaults(UserDict[str, Any]):
    """The file's values by parameter name, read when first asked for: --help needs no good file."""

    def __init__(self, ctx: Any) -> None:  # not UserDict's, which would set data
        self._ctx = ctx

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        own = keys_of(self._ctx.command)
        found = read(config_file(), self._ctx)
        return {own[key].name: plain(value) for key, value in found.items() if key in own}


class Configured(TyperCommand):
    """A command whose flags have their defaults from the config file."""

    def get_params(self, ctx: Any) -> list[Any]:
        return spare(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """With our defaults: what the person's own file makes of them is `llamachat config`'s to say."""
        ctx.default_map = None
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            ctx.default_map = _Defaults(ctx)
        rest: list[str] = super().parse_args(ctx, args)
        for rivals in RIVALS:
            _settle(ctx, rivals)
        _settle_server(ctx)
        return rest


def source_of(ctx: Any, name: str) -> str:
    """Of STRENGTH: where a parameter's value comes from."""
    source = ctx.get_parameter_source(name)
    return str(source.name) if source else "DEFAULT"  # half a line, of which a shell asks how it may go on


def _settle_server(ctx: Any) -> None:
    """No key, and no model's name, goes to a server that they were not given for: those of a weaker source give way, and a key
    of any other."""
    if ctx.params.get("server") is None:
        return
    server = source_of(ctx, "server")
    gone = [name for name in OF_THE_SERVER if STRENGTH.index(source_of(ctx, name)) > STRENGTH.index(server)]
    gone += ["key_env"] * (source_of(ctx, "key_env") != server)
    ctx.params |= {name: False if name == "insecure" else None for name in gone}


def _settle(ctx: Any, rivals: tuple[str, ...]) -> None:
    """Of flags that exclude each other, those of a weaker source give way; equals stay, for the command to refuse."""
    given = {name: source_of(ctx, name) for name in rivals if ctx.params.get(name) not in (None, False)}
    if given:
        strongest = min(given.values(), key=STRENGTH.index)
        ctx.params |= {name: None for name, source in given.items() if source != strongest}
