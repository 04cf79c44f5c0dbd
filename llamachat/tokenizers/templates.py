"""A model's own Jinja chat template, rendered in a process of its own (template_worker.py)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llamachat.errors import ConfigError, reading
from llamachat.system.limited import EndedError, Limited

MAX_SOURCE = 1 << 18  # characters
MAX_MEMORY = 1 << 29  # bytes
TIMEOUT = 10.0  # seconds a rendering
_WORKER = Path(__file__).with_name("template_worker.py")
_CONSEQUENCE = "the dialog cannot be written"
_REMEDY = "set `dialog` for this model in models.toml, or use complete --raw"


class Span(NamedTuple):
    """Text from one place: the number of the message, or a negative number."""

    text: str
    origin: int

    @property
    def own(self) -> bool:
        """The template itself wrote it."""
        return self.origin == -1

    @property
    def unknown(self) -> bool:
        """It may be made of what the template wrote, of the messages, or of neither."""
        return self.origin == -2


class ChatTemplate:
    """Starts its process when made: that imports jinja2 while the model is still loading."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise template_error(f"has more than {MAX_SOURCE} characters")
        self._source = source
        self._start()

    def render(
        self,
        messages: Sequence[tuple[str, str]],
        names: Mapping[str, str],
        opened: bool,
        switches: Mapping[str, object] | None = None,
    ) -> list[Span]:
        """What it writes of (role, content) pairs, with the header of an answer to come if `opened`.

        `switches`: variables of its own. Raises ConfigError when the template fails, refuses the dialog, or needs too much
        time or memory.
        """
        given = [{"role": role, "content": content} for role, content in messages]
        variables = {"messages": given, "names": dict(names), "opened": opened, "switches": dict(switches or {})}
        with reading("the model's chat template", ConfigError, _CONSEQUENCE, _REMEDY):
            return [Span(text, origin) for text, origin in self._answer({"variables": variables})["spans"]]

    def reads(self, names: Sequence[str]) -> frozenset[str]:
        """Which of these variables it looks at. Raises ConfigError."""
        with reading("the model's chat template", ConfigError, _CONSEQUENCE, _REMEDY):
            return frozenset(self._answer({"reads": list(names)})["found"])

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self.process.alive:
            self._start()
        try:
            answer: dict[str, Any] = self.process.ask(request)
        except EndedError as error:
            raise template_error(f"needs more than {TIMEOUT:g} s or too much memory") from error
        if "error" in answer:
            raise template_error(f"fails: {answer['error']!r}")
        return answer

    def _start(self) -> None:
        self.process = Limited(_WORKER, MAX_MEMORY, TIMEOUT)
        with suppress(EndedError):  # which the first rendering says
            self.process.post({"source": self._source})


def template_error(what: str) -> ConfigError:
    """The error for a chat template that cannot be used."""
    return ConfigError(f"the model's chat template {what}", _CONSEQUENCE, _REMEDY)
