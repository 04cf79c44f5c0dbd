"""What most flags hold needs no judging: typer judges each flag of a command, given or not, with pydantic, whose import alone
takes as long as a model's."""

import re
from enum import Enum
from functools import partial
from typing import Any

WHOLE, NUMBER = r"[0-9]{1,15}", r"-?[0-9]{1,15}(\.[0-9]{1,15})?"
UNSURE = object()


def spare(parameters: list[Any]) -> list[Any]:
    """These parameters, of which typer is to judge only the values that are not plainly good."""
    for each in parameters:
        full = getattr(each, "get_runtime_param", None)
        if full is not None and not isinstance(full, partial):
            each.get_runtime_param = partial(_Judge, full)
    return parameters


class _Judge:
    """Stands for typer's own, which `full` gives."""

    def __init__(self, full: Any) -> None:
        self._full = full

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        meant = plainly(value, param)
        return self._full().coerce(value, param=param, ctx=ctx) if meant is UNSURE else meant


def plainly(value: Any, parameter: Any) -> Any:
    """What the parameter makes of a value (a text of the command line, or its default); UNSURE where that takes a judge."""
    kind, limits, several = (
        parameter.type_descriptor.annotation,
        parameter.type_descriptor.parameter_info,
        parameter.multiple or parameter.nargs == -1,
    )
    if limits.parser is not None or limits.clamp:
        return UNSURE
    if value is None:
        return () if several else None
    if several:
        texts = kind == list[str] and isinstance(value, (list, tuple)) and all(type(each) is str for each in value)
        return list(value) if texts else UNSURE
    if kind in (int, float) and type(value) is str and re.fullmatch(WHOLE if kind is int else NUMBER, value):
        value = kind(value)
    if kind in (int, float) and type(value) is kind:
        return value if _within(value, limits.min, limits.max) else UNSURE
    plain = (kind is str and type(value) is str) or (
        isinstance(kind, type) and issubclass(kind, Enum) and type(value) is kind
    )
    return value if plain else UNSURE


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)
