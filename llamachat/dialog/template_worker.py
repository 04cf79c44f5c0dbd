"""The process that renders a model's chat template, so that no template can cost the chat more than a bounded wait.

A template is a program from a file. jinja2's sandbox keeps it from reaching anything; the limits set here keep it from
taking the machine's memory or time. Run as a script by templates.py: the source comes as the first line of JSON, then
one line of variables for each rendering, answered by {"text": ...} or {"error": ...}.
"""

import json
import signal
import sys
import time
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 1 << 20  # characters
MAX_MEMORY = 1 << 29  # bytes
MAX_CPU = 20  # seconds a rendering; who waits gives up earlier, but may be gone


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


def _limit_cpu() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + MAX_CPU, resource.RLIM_INFINITY))


def _limit_memory_and_files() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the chat
    _limit_memory_and_files()
    source, template = json.loads(sys.stdin.readline()), None
    for line in sys.stdin:
        _limit_cpu()
        try:
            template = template or compile_template(source)
            answer = {"text": _render(template, json.loads(line))}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the template's, and raised again by who asked
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
