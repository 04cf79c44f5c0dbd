"""A look into saved dialogs without making them: what a list tells of each, and where a text was said."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

from llamachat.chat.journal import SUFFIX, lines_of
from llamachat.chat.titles import title
from llamachat.checks import is_whole
from llamachat.core.thoughts import TAGGED
from llamachat.errors import FormatError, reading
from llamachat.events import Found, SavedDialog

HELD = 64 << 20  # characters of a dialog that a search holds at once
_SHAPE = tuple(f'{{"type": "{kind}"'.encode() for kind in ("message", "model", "active", "drop"))
_SAID = tuple(f'{{"type": "{kind}"'.encode() for kind in ("message", "piece", "end", "drop"))


def glance(path: Path) -> SavedDialog:
    """What a list shows of a dialog; damaged lines are for whoever opens it. Raises OSError."""
    modified, outline = path.stat().st_mtime, _Outline()
    for record in _records(path, _SHAPE):
        with suppress(FormatError), reading(path):
            outline.add(record)
    return SavedDialog(path.name.removesuffix(SUFFIX), modified, outline.questions, outline.title, outline.model)


class _Outline:
    """The branch that a dialog goes on with, its questions and what the first of them was."""

    def __init__(self) -> None:
        self.model = ""
        self._parents: dict[int, int] = {}
        self._asked: set[int] = set()
        self._titles: dict[int, str] = {}  # of first questions
        self._active = 0

    def add(self, record: dict[str, Any]) -> None:
        match record["type"]:
            case "model":
                self.model = str(record["name"])
            case "active" if is_whole(record["id"]):
                self._active = record["id"]
            case "drop":  # of a question that was just asked, with its answer
                if record["id"] in (self._active, self._parents.get(self._active)):
                    self._active = self._parents[record["id"]]
            case "message":
                self._message(record["id"], record["parent"], record)

    def _message(self, id: int, parent: int, record: dict[str, Any]) -> None:
        if not (is_whole(id) and is_whole(parent) and 0 <= parent < id):  # so that every line has an end
            return
        if record["role"] == "user":
            if not parent or not self._titles:
                self._titles[id] = title(record["text"])
            self._asked.add(id)
        self._parents[id], self._active = parent, id

    def _line(self) -> list[int]:
        """The messages from the last of the branch to the first."""
        found, at = list[int](), self._active
        while at in self._parents:
            found.append(at)
            at = self._parents[at]
        return found

    @property
    def questions(self) -> int:
        return len(self._asked.intersection(self._line()))

    @property
    def title(self) -> str:
        """The branch's; where nothing was asked in it, the dialog's."""
        first = self._line()[-1:]
        return next((self._titles[id] for id in (*first, *self._titles) if id in self._titles), "")


def search(path: Path, text: str) -> Iterator[Found]:
    """The lines of questions and answers, in any branch, that have this text in them, in whatever case. Raises OSError."""
    wanted, name = text.casefold(), path.name.removesuffix(SUFFIX)
    for role, said in _said(path):
        if wanted in said.casefold():
            yield from (Found(name, role, line) for line in said.splitlines() if wanted in line.casefold())


def identity(path: Path) -> str:
    """What tells the dialog apart from all others; empty where its first record does not say. Raises OSError."""
    first = next(_records(path, (b'{"type": "session"',)), {})
    return str(first.get("uid", ""))


def questions(path: Path) -> Iterator[str]:
    """All that was asked, in any branch. Raises OSError."""
    return (said for role, said in _said(path) if role == "user")


def _said(path: Path) -> Iterator[tuple[Literal["user", "assistant"], str]]:
    """Every message, without what was thought."""
    held, size = dict[int, tuple[Literal["user", "assistant"], list[str]]](), 0
    for record in _records(path, _SAID):
        with suppress(FormatError), reading(path):
            size += _hear(held, record)
        if size > HELD:
            yield from _told(held)
            held, size = {}, 0
    yield from _told(held)


def _hear(held: dict[int, tuple[Literal["user", "assistant"], list[str]]], record: dict[str, Any]) -> int:
    """Put what a record says to the messages; returns its length."""
    id, text = record["id"], record.get("text") or ""
    if not isinstance(text, str):
        raise TypeError
    match record["type"]:
        case "message":
            held[id] = ("user" if record["role"] == "user" else "assistant"), [text]
        case "piece":
            held.setdefault(id, ("assistant", []))[1].append(text)
        case "end" if record["text"] is not None:
            held[id] = "assistant", [text]
        case "drop":
            held.pop(id, None)
    return len(text)


def _told(
    held: dict[int, tuple[Literal["user", "assistant"], list[str]]],
) -> Iterator[tuple[Literal["user", "assistant"], str]]:
    for role, parts in held.values():
        text = "".join(parts)
        yield role, TAGGED.parted(text)[1] if role == "assistant" else text


def _records(path: Path, kinds: tuple[bytes, ...]) -> Iterator[dict[str, Any]]:
    """Those that begin so, as whatever they are."""
    with suppress(FormatError):  # a line without an end
        for _, line in lines_of(path):
            if line.startswith(kinds):
                with suppress(FormatError), reading(path):
                    yield cast(dict[str, Any], json.loads(line))
