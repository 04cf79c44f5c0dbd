"""A frozen dataclass from an untyped table (TOML), strictly: every key known, every value of the annotated type."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llamachat.checks import is_number, shown
from llamachat.errors import ConfigError

T = TypeVar("T")
NAMES = {int: "a positive whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def build(cls: type[T], table: Any, where: str, **ready: Any) -> T:
    """An instance; `ready` fields come from the caller instead of the table.

    Raises ConfigError that names key, value and `where`, for the first thing that is unknown, missing or ill-typed.
    """
    if not isinstance(table, dict):
        raise refusal(f"{shown(table)} is not a table, in {where}", "write key = value pairs")
    hints = {key: hint for key, hint in get_type_hints(cls).items() if key not in ready}
    for key, value in table.items():
        if key not in hints:
            raise unknown_key(key, value, where, hints)
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name in hints and f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise refusal(f"{f.name} is missing in {where}", "add it")
    return cls(**ready, **{key: convert(hints[key], key, value, where) for key, value in table.items()})


def convert(hint: Any, key: str, value: Any, where: str) -> Any:
    """`value` as the annotation says, or ConfigError. Integers are positive, floats finite, lists become tuples."""
    if get_origin(hint) in (Union, UnionType):  # in these tables, always "something or None"
        (hint,) = (arm for arm in get_args(hint) if arm is not NoneType)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, f"{key} in {where}")
    if get_origin(hint) is Literal:
        valid = value in get_args(hint) and not isinstance(value, bool)
    elif get_origin(hint) is tuple:
        valid = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif hint is float:
        valid = is_number(value)
    elif hint is Path:
        valid = isinstance(value, str) and value != "" and "\0" not in value
    else:
        valid = type(value) is hint and (hint is not int or value > 0)
    if not valid:
        expected = NAMES.get(hint) or "one of " + ", ".join(map(str, get_args(hint)))
        raise refusal(f"{key} = {shown(value)} in {where} is not {expected}", "correct it")
    return tuple(value) if get_origin(hint) is tuple else Path(value) if hint is Path else value


def refusal(cause: str, remedy: str) -> ConfigError:
    return ConfigError(cause, "no model can be looked up", remedy)


def unknown_key(key: str, value: Any, where: str, known: Iterable[str] | Mapping[str, Any]) -> ConfigError:
    return refusal(f"unknown key {key} = {shown(value)} in {where}", f"known keys: {', '.join(known)}")
