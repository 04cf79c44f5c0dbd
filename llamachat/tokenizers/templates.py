"""A model's own Jinja chat template, rendered in a process of its own (template_worker.py)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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

    def render(self, messages: Sequence[tuple[str, str]], names: Mapping[str, str], opened: bool) -> list[Span]:
        """What it writes of (role, content) pairs, with the header of an answer to come if `opened`.

        Raises ConfigError when the template fails, refuses the dialog, or needs too much time or memory.
        """
        with reading("the model's chat template", ConfigError, _CONSEQUENCE, _REMEDY):
            return self._rendered(messages, names, opened)

    def _rendered(self, messages: Sequence[tuple[str, str]], names: Mapping[str, str], opened: bool) -> list[Span]:
        if not self.process.alive:
            self._start()
        given = [{"role": role, "content": content} for role, content in messages]
        variables = {"messages": given, "names": dict(names), "opened": opened}
        try:
            answer = self.process.ask({"variables": variables})
        except EndedError as error:
            raise template_error(f"needs more than {TIMEOUT:g} s or too much memory") from error
        if "error" in answer:
            raise template_error(f"fails: {answer['error']!r}")
        return [Span(text, origin) for text, origin in answer["spans"]]

    def _start(self) -> None:
        self.process = Limited(_WORKER, MAX_MEMORY, TIMEOUT)
        with suppress(EndedError):  # which the first rendering says
            self.process.post({"source": self._source})


def template_error(what: str) -> ConfigError:
    """The error for a chat template that cannot be used."""
    return ConfigError(f"the model's chat template {what}", _CONSEQUENCE, _REMEDY)
