"""Renders a model's chat template in a limited process, so that no template can cost the chat more than a bounded wait.

A template is a program from a file. jinja2's sandbox keeps it from reaching anything; the process's limits (limited.py)
keep it from taking the machine's memory or time. {"source": ...} comes first, then {"variables": ...} for each
rendering, answered by {"text": ...} or {"error": ...}.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 1 << 20  # characters


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def compile_template(source: str) -> Template:
    """As transformers compiles chat templates: same extensions, filters and functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)


def _render(template: Template, variables: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT:
            raise TemplateError(f"it writes more than {MAX_OUTPUT} characters")
    return "".join(pieces)


class Handler:
    """See limited_worker.py."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._source = ""
        self._template: Template | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, str]:
        """The source is compiled with the first rendering, whose error it is if it is none."""
        if "source" in request:
            self._source = request["source"]
            return {}
        self._template = self._template or compile_template(self._source)
        return {"text": _render(self._template, request["variables"])}
