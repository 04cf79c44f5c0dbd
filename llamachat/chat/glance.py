"""A look into saved dialogs without making them: what a list tells of each, and where a text was said."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from llamachat.chat.journal import SUFFIX, lines_of
from llamachat.chat.titles import title
from llamachat.chat.tree import Speaker
from llamachat.checks import is_whole
from llamachat.core.thoughts import TAGGED
from llamachat.errors import FormatError
from llamachat.events import Found, SavedDialog

T = TypeVar("T")
LATEST = 2.5e11  # seconds; in the year 9892, up to which time is told
HELD = 64 << 20  # characters of a dialog that a search holds at once
_RECORD = 200  # characters' worth that a record takes, even an empty one
_PIECE, _IDS = b'{"type": "piece"', b', "ids": ['
_DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
)  # what a record raises that is none of ours
_SHAPE = tuple(f'{{"type": "{kind}"'.encode() for kind in ("message", "model", "active", "drop"))
_SAID = tuple(f'{{"type": "{kind}"'.encode() for kind in ("message", "piece", "end", "drop"))
_TOKENS = b'{"type": "model"', _PIECE
_Messages = dict[int, tuple[Speaker, list[str]]]  # by their ids, with the pieces of their texts


def glance(path: Path) -> SavedDialog:
    """What a list shows of a dialog; damaged lines are for whoever opens it. Raises OSError."""
    modified, outline = min(path.stat().st_mtime, LATEST), _Outline()
    for _ in _heard(path, _SHAPE, outline.add):
        pass
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
    return next(_heard(path, (b'{"type": "session"',), lambda record: str(record["uid"])), "")


def questions(path: Path) -> Iterator[str]:
    """All that was asked, in any branch. Raises OSError."""
    return (said for role, said in _said(path) if role == "user")


def answers(path: Path, tokenizer: str) -> list[list[int]]:
    """The tokens of every answer, in any branch, that was given with this tokenizer. Raises OSError."""
    spoken = _Spoken(tokenizer)
    for _ in _heard(path, _TOKENS, spoken.add, lambda line: line):
        pass
    return [*spoken.answers.values()]


class _Spoken:
    """Answers as their tokens."""

    def __init__(self, tokenizer: str) -> None:
        self._wanted, self._theirs = tokenizer, False
        self.answers: dict[int, list[int]] = {}

    def add(self, record: dict[str, Any]) -> None:
        if record["type"] == "model":
            self._theirs = record["tokenizer"] == self._wanted
        elif self._theirs and all(map(is_whole, ids := record["ids"])):
            self.answers.setdefault(record["id"], []).extend(ids)


def _said(path: Path) -> Iterator[tuple[Speaker, str]]:
    """Every message, without what was thought."""
    held, size = _Messages(), 0
    for more in _heard(path, _SAID, lambda record: _hear(held, record)):
        size += more
        if size > HELD:
            yield from _told(held)
            held.clear()
            size = 0
    yield from _told(held)


def _hear(held: _Messages, record: dict[str, Any]) -> int:
    """Put what a record says to the messages; returns what is held for it."""
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
    return len(text) + _RECORD


def _told(held: _Messages) -> Iterator[tuple[Speaker, str]]:
    for role, parts in held.values():
        text = "".join(parts)
        yield role, TAGGED.parted(text)[1] if role == "assistant" else text


def _without_ids(line: bytes) -> bytes:
    """A piece of an answer without its tokens, which are most of it."""
    ids = line.rfind(_IDS) if line.startswith(_PIECE) else -1
    return line if ids < 0 else line[:ids] + b"}"


def _heard(
    path: Path,
    kinds: tuple[bytes, ...],
    hear: Callable[[dict[str, Any]], T],
    part: Callable[[bytes], bytes] = _without_ids,
) -> Iterator[T]:
    """What there is to say to each record that begins so; damaged ones are passed over. Raises OSError."""
    with suppress(FormatError):  # a line without an end
        for _, line in lines_of(path):
            if line.startswith(kinds):
                with suppress(*_DAMAGED):
                    yield hear(json.loads(part(line)))
