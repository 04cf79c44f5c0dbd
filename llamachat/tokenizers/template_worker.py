"""Renders a model's chat template in a limited process, so that no template can cost the chat more than a bounded wait.

A template is a program from a file. jinja2's sandbox keeps it from reaching anything; the process's limits (limited.py)
keep it from taking the machine's memory or time. {"source": ...} comes first, then {"variables": {"messages", "names",
"opened", "switches"}} for each rendering, answered by {"spans": [[text, origin], ...]} or {"error": ...}; {"reads": [name, ...]}
asks which of these variables the template looks at, answered by {"found": [name, ...]}.

The template is given the real messages, so that what it does to a text is done. Every character remembers meanwhile
where it came from (Text), so that no message's text can pass for what the template wrote.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, NoReturn, SupportsIndex

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import do_join
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_eval_context

MAX_OUTPUT = 1 << 20  # characters besides twice those of the messages
TEMPLATE, UNKNOWN = -1, -2  # origins of characters; others are the messages' numbers
_SHIFT = 2  # an origin is noted as a character, the lowest as the first


class Text(str):
    """A string that knows where its characters came from: `_origins` has one character for each.

    What is not followed here gives a plain str, as str's own methods do, and a plain str is of unknown origin. So an
    operation that was forgotten may make the template's text unknown, but never a message's text the template's.
    """

    __slots__ = ("_origins",)
    _origins: str

    def __new__(cls, text: object = "", origins: str | None = None) -> "Text":
        self = super().__new__(cls, text)
        if origins is None:
            origins = text._origins if isinstance(text, Text) else chr(UNKNOWN + _SHIFT) * len(self)
        self._origins = origins
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> "Text":
        return Text(str.__getitem__(self, key), self._origins[key])

    def __iter__(self) -> "Iterator[Any]":
        return map(Text, str.__iter__(self), self._origins)

    def __add__(self, other: str) -> "Text":
        return Text(str.__add__(self, other), self._origins + _origins(other))

    def __radd__(self, other: str) -> "Text":
        return Text(str.__add__(other, self), _origins(other) + self._origins)

    def __mul__(self, count: SupportsIndex) -> "Text":
        return Text(str.__mul__(self, count), self._origins * count)

    __rmul__ = __mul__

    def join(self, parts: Iterable[str], /) -> "Text":
        parts = list(parts)
        return Text(str.join(self, parts), self._origins.join(map(_origins, parts)))

    def lstrip(self, chars: str | None = None, /) -> "Text":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Text":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> "Text":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> "Text":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> "Text":
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> "list[Any]":
        parts = str.split(self, sep, maxsplit)
        return self._found(parts) if sep is None else self._parts(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> "list[Any]":
        parts = str.rsplit(self, sep, maxsplit)
        return self._found(parts) if sep is None else self._parts(parts, len(sep))

    def splitlines(self, keepends: bool = False) -> "list[Any]":
        whole = self._parts(str.splitlines(self, True))
        bare = str.splitlines(self)
        return [line if keepends else line[: len(text)] for line, text in zip(whole, bare, strict=True)]

    def partition(self, sep: str, /) -> "tuple[Any, Any, Any]":
        before, found, after = self._parts(str.partition(self, sep))
        return before, found, after

    def rpartition(self, sep: str, /) -> "tuple[Any, Any, Any]":
        before, found, after = self._parts(str.rpartition(self, sep))
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return Text(new).join(self.split(old, count)) if old else str.replace(self, old, new, count)

    def upper(self) -> str:
        return self._changed(str.upper(self), str.upper)

    def lower(self) -> str:
        return self._changed(str.lower(self), str.lower)

    def swapcase(self) -> str:
        return self._changed(str.swapcase(self), str.swapcase)

    def title(self) -> str:
        return self._changed(str.title(self))

    def capitalize(self) -> str:
        return self._changed(str.capitalize(self))

    def _parts(self, parts: Iterable[str], gap: int = 0) -> "list[Text]":
        """Its parts, so many characters apart, as they are in it."""
        texts, at = list[Text](), 0
        for part in parts:
            texts.append(self[at : at + len(part)])
            at += len(part) + gap
        return texts

    def _found(self, words: Iterable[str]) -> "list[Text]":
        """Words that only white space is between, as they are in it."""
        texts, at = list[Text](), 0
        for word in words:
            start = str.find(self, word, at)
            at = start + len(word)
            texts.append(self[start:at])
        return texts

    def _changed(self, text: str, each: Callable[[str], str] | None = None) -> str:
        """What it became, with one character for each, or (`each`) what one character becomes."""
        if len(text) == len(self):
            return Text(text, self._origins)
        if len(set(self._origins)) == 1:
            return Text(text, self._origins[0] * len(text))
        if each is None:
            return text
        widths = (len(each(character)) for character in str.__iter__(self))
        return Text(text, "".join(origin * width for origin, width in zip(self._origins, widths, strict=True)))


def _origins(text: str) -> str:
    return Text(text)._origins


def coming_from(text: str, origin: int) -> Text:
    """All of it from one place."""
    return Text(text, chr(origin + _SHIFT) * len(text))


def spans(text: str) -> list[tuple[str, int]]:
    """A text in pieces of one origin each."""
    found, at = list[tuple[str, int]](), 0
    plain = str.__getitem__
    for origin, run in groupby(_origins(text)):
        end = at + sum(1 for _ in run)
        found.append((plain(text, slice(at, end)), ord(origin) - _SHIFT))
        at = end
    return found


@lru_cache(1 << 12)
def _own(text: str) -> Text:
    return coming_from(text, TEMPLATE)


def _concat(parts: Iterable[str]) -> str:
    return _own("").join(parts)


class _Following(CodeGenerator):
    """Compiles a template such that its own text says so, and that joining keeps all origins."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({''.join(map(str, group))!r})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - jinja2's name, as the next
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({str.__str__(value)!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Following
    concat = staticmethod(_concat)
    own = staticmethod(_own)


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


@pass_eval_context
def _join(context: EvalContext, value: Any, d: str = "", attribute: Any = None) -> str:
    return str(do_join(context, value, d or _own(""), attribute))


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """json.dumps, as transformers has it, of which every text keeps its origins."""
    item, key = separators or (_own(", " if indent is None else ","), _own(": "))
    step = " " * indent if isinstance(indent, int) else indent

    def grouped(marks: str, parts: list[str], depth: int) -> str:
        if not parts:
            return _own(marks)
        line = _own("" if step is None else "\n" + step * depth)
        last = _own("" if step is None else "\n" + step * (depth - 1))
        return _concat([_own(marks[0]), line, (Text(item) + line).join(parts), last, _own(marks[1])])

    def dumped(value: Any, depth: int) -> str:
        if isinstance(value, str):
            return _quoted(value, ensure_ascii)
        if isinstance(value, (list, tuple)):
            return grouped("[]", [dumped(each, depth + 1) for each in value], depth + 1)
        if not isinstance(value, dict):
            return json.dumps(value)
        pairs = sorted(value.items()) if sort_keys else value.items()
        named = [(name if isinstance(name, str) else _own(json.dumps({name: 0})[2:-5]), each) for name, each in pairs]
        return grouped(
            "{}", [_concat([_quoted(n, ensure_ascii), key, dumped(each, depth + 1)]) for n, each in named], depth + 1
        )

    return dumped(value, 0)


def _quoted(text: str, ensure_ascii: bool) -> str:
    written = {c: json.dumps(c, ensure_ascii=ensure_ascii)[1:-1] for c in set(str.__iter__(text))}
    pairs = zip(str.__iter__(text), _origins(text), strict=True)
    inner = Text("".join(map(written.__getitem__, str.__iter__(text))), "".join(o * len(written[c]) for c, o in pairs))
    return _concat([_own('"'), inner, _own('"')])


def environment() -> _Environment:
    """As transformers compiles chat templates: same extensions, filters and functions."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = tojson
    made.filters["join"] = _join
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return made


def read_by(source: str, names: list[str]) -> list[str]:
    """Which of these variables it looks at, if only where another branch has set them."""
    found = {node.name for node in environment().parse(source).find_all(nodes.Name) if node.ctx == "load"}
    return [name for name in names if name in found]


def render(
    template: Template, messages: list[dict[str, str]], names: dict[str, str], opened: bool, switches: dict[str, Any]
) -> str:
    """What it writes of messages; `names` are those of tokens, such as "bos_token"; `switches` further variables."""
    most = MAX_OUTPUT + 2 * sum(len(message["content"]) for message in messages)
    variables = {
        "messages": [
            {"role": _own(message["role"]), "content": coming_from(message["content"], number)}
            for number, message in enumerate(messages)
        ],
        "add_generation_prompt": opened,
        "tools": None,
        "documents": None,
        **{name: _own(value) if isinstance(value, str) else value for name, value in {**switches, **names}.items()},
    }
    pieces, size = list[str](), 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise TemplateError(f"it writes more than {most} characters")
    return _concat(pieces)


class Handler:
    """See limited_worker.py."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._source = ""
        self._template: Template | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """The source is compiled with the first rendering, whose error it is if it is none."""
        if "source" in request:
            self._source = request["source"]
            return {}
        if "reads" in request:
            return {"found": read_by(self._source, request["reads"])}
        self._template = self._template or environment().from_string(self._source)
        return {"spans": spans(render(self._template, **request["variables"]))}
