"""Typer's complaints about a command line in this program's words: what is wrong, that nothing was done, what would be right."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from typer.exceptions import TyperException

from llamachat.checks import shown
from llamachat.errors import UsageError

NOTHING = "nothing was done"
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)\Z", re.DOTALL)
_UNKNOWN = re.compile(r"No such command '(.*?)'\.", re.DOTALL)
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def worded(error: TyperException, consequence: str = NOTHING) -> UsageError:
    """The same complaint: cause, consequence and remedy."""
    kind, ctx = type(error).__name__, getattr(error, "ctx", None)
    said = error.format_message()
    if kind == "NoSuchOption":
        return _no_option(error, consequence)
    if kind == "BadOptionUsage":
        return _no_value(error, consequence)
    if kind == "MissingParameter":
        return UsageError(f"{_name(error)} is missing", consequence, f"{_help(ctx)} shows what it is")
    if kind == "BadParameter":
        return _bad_value(error, consequence)
    if found := _EXTRA.match(said):
        return _too_many(found[1], ctx, consequence)
    if found := _UNKNOWN.match(said):
        return unknown_command(found[1], getattr(ctx, "command", None), _help(ctx), consequence)
    return UsageError(said.removesuffix("."), consequence)


def shows_help(error: TyperException) -> bool:
    """Whether it is no complaint: a group of commands was named and no command, so its help has been shown."""
    return type(error).__name__ == "NoArgsIsHelpError"


def unknown_command(name: str, group: Any, help: str, consequence: str = NOTHING) -> UsageError:
    near = difflib.get_close_matches(name[:40], getattr(group, "commands", {}), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"{help} lists the commands"
    return UsageError(f"there is no command {shown(name)}", consequence, remedy)


def _no_option(error: Any, consequence: str) -> UsageError:
    near: Iterable[str] = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1)
    remedy = next((f"did you mean {name}?" for name in near), f"{_help(error.ctx)} lists the options")
    return UsageError(f"there is no option {error.option_name}", consequence, remedy)


def _no_value(error: Any, consequence: str) -> UsageError:
    """An option without the value that it wants, or with one that it does not take."""
    name = error.option_name
    if "not take" in error.message:
        return UsageError(f"{name} takes no value", consequence, f"write {name} alone")
    return UsageError(f"{name} is without its value", consequence, "give one after it")


def _bad_value(error: Any, consequence: str) -> UsageError:
    given, param = _given(error), error.param
    cause = f"{_name(error)} cannot be {shown(given)}" if given is not None else f"{_name(error)} is wrong"
    return UsageError(cause, consequence, f"give {allowed(param)}" if param else error.message)


def _given(error: Any) -> Any:
    """The value that was refused, where the validator says which; None elsewhere."""
    details = getattr(error.__cause__, "errors", None)
    return details()[0].get("input") if details else None


def _name(error: Any) -> str:
    """Of a parameter, as it was given: an option, an argument, or the environment variable that set it."""
    param, ctx = error.param, error.ctx
    if param is None:
        return "an argument"
    if ctx and str(ctx.get_parameter_source(param.name)).endswith("ENVIRONMENT"):
        return str(param.envvar)
    flags = [str(name) for name in param.opts if name.startswith("-")]
    return max(flags, key=len) if flags else str(param.metavar or param.name).strip("[]").removesuffix("...").upper()


def allowed(param: Any) -> str:
    """What a parameter takes, in words."""
    kind = param.type_descriptor
    if kind.choices:
        return "one of " + ", ".join(str(getattr(each, "value", each)) for each in kind.choices)
    if kind.is_list:
        return "a list of texts"
    if kind.annotation not in _KINDS:
        return "a path" if kind.is_path else str(param.metavar) if param.metavar else "a text"
    low, high = kind.parameter_info.min, kind.parameter_info.max
    between = f" from {low} to {high}" if high is not None else f" from {low} on" if low is not None else ""
    return _KINDS[kind.annotation] + between


def _too_many(extra: str, ctx: Any, consequence: str) -> UsageError:
    takes = [param for param in ctx.command.params if not param.opts[0].startswith("-")] if ctx else []
    if any(param.name in ("prompt", "text", "question") for param in takes):
        return UsageError(
            f"{shown(extra)} is one argument too many", consequence, "put a text of several words in quotes"
        )
    return UsageError(f"{shown(extra)} is one argument too many", consequence, f"{_help(ctx)} shows what it takes")


def _help(ctx: Any) -> str:
    return f"`{ctx.command_path} --help`" if ctx else "`llamachat --help`"
