"""A saved dialog is the list of what was done to it; done again, in order, the records make the dialog again.

One JSON object a record, told by its "type". A running chat changes its dialog through the same function that opens a file
(`History.apply`), so that what is on disk and what is on the screen cannot differ.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, cast, get_args

from llamachat.chat.tree import Node, Speaker, Tree
from llamachat.checks import is_whole
from llamachat.errors import FormatError, reading
from llamachat.events import FinishReason
from llamachat.system.metadata import is_record

VERSION = 1
Record = Mapping[str, Any]


@dataclass
class History:
    """A dialog with all its branches, and how it was held."""

    uid: str = ""
    tree: Tree = field(default_factory=Tree)
    system: str | None = None
    model: str = ""
    tokenizer: str = ""  # fingerprint of the one that the answers' ids are of
    parameters: dict[str, Any] = field(default_factory=dict)
    _pieces: tuple[Node, list[str], list[int]] | None = None  # of this answer, to be joined to it

    def apply(self, record: Record, join: bool = True) -> None:
        """Raises ValueError for what no chat would have written; nothing has changed then.

        Without `join`, pieces are joined to their answer when a record of another kind comes, or `join` is called: one by
        one, they would take a time that grows with the square of the answer's length.
        """
        kind = record.get("type")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"its type is {kind!r:.40}")
        fields, act = _KINDS[kind]
        if not is_record(record, {"type": str, **fields}):
            raise ValueError(f"it is no {kind!r}")
        if kind != "piece":
            self.join()
        act(self, record)
        if join:
            self.join()

    def join(self) -> None:
        """Pieces that are not yet of their answer become so."""
        if self._pieces is None:
            return
        (node, texts, ids), self._pieces = self._pieces, None
        node.text += "".join(texts)
        node.ids = (*(node.ids or ()), *ids)
        node.reason = "interrupt"

    def _session(self, record: Record) -> None:
        if record["version"] != VERSION or self.uid:
            raise ValueError(f"it is of version {record['version']!r:.20}, this is {VERSION}")
        self.uid = record["uid"]

    def _model(self, record: Record) -> None:
        if record["tokenizer"] != self.tokenizer:
            for node in self.tree:
                node.ids, node.tokens = None, 0
        self.model, self.tokenizer = record["name"], record["tokenizer"]

    def _system(self, record: Record) -> None:
        self.system = record["text"] or None

    def _parameters(self, record: Record) -> None:
        self.parameters = dict(record["values"])

    def _message(self, record: Record) -> None:
        parent = self.tree.node(record["parent"])
        role = record["role"]
        if parent is None or role not in get_args(Speaker) or role == parent.role or record["id"] < self.tree.next_id:
            raise ValueError("it has no place in the dialog")
        self.tree.add(parent, cast(Speaker, role), record["text"], record["id"]).parameters = self.parameters

    def _piece(self, record: Record) -> None:
        node, ids = self._answer(record), record["ids"]
        if not all(is_whole(token) and 0 <= token < 2**31 for token in ids):
            raise ValueError("its tokens are none")
        if self._pieces is None or self._pieces[0] is not node:
            self.join()
            self._pieces = node, [], []
        self._pieces[1].append(record["text"])
        self._pieces[2].extend(ids)

    def _end(self, record: Record) -> None:
        node = self._answer(record)
        if record["reason"] not in get_args(FinishReason):
            raise ValueError(f"its reason is {record['reason']!r:.40}")
        node.reason = record["reason"]
        if record["text"] is not None:
            node.text = record["text"]
        if not record["exact"]:
            node.ids = None

    def _active(self, record: Record) -> None:
        self.tree.active = self._answer(record)

    def _fork(self, record: Record) -> None:
        self.tree.forks.add(self._answer(record).id)

    def _drop(self, record: Record) -> None:
        node = self.tree.node(record["id"])
        if node is None or node.is_root:
            raise ValueError("it is of no message")
        self.tree.drop(node)

    def _answer(self, record: Record) -> Node:
        node = self.tree.node(record["id"])
        if node is None or node.role != "assistant" or (node.is_root and record["type"] in ("piece", "end")):
            raise ValueError("it is of no answer")
        return node


_KINDS: dict[str, tuple[dict[str, type | UnionType], Callable[[History, Record], None]]] = {
    "session": ({"version": int, "uid": str}, History._session),
    "model": ({"name": str, "tokenizer": str}, History._model),
    "system": ({"text": str | None}, History._system),
    "parameters": ({"values": dict}, History._parameters),
    "message": ({"id": int, "parent": int, "role": str, "text": str}, History._message),
    "piece": ({"id": int, "text": str, "ids": list}, History._piece),  # of an answer, as it came
    "end": ({"id": int, "reason": str, "exact": bool, "text": str | None}, History._end),  # text: where it is another
    "active": ({"id": int}, History._active),
    "fork": ({"id": int}, History._fork),
    "drop": ({"id": int}, History._drop),
}


def replay(lines: Iterable[tuple[int, bytes]], where: str) -> History:
    """The dialog of numbered lines, without a `uid` where there are none. Raises FormatError naming the first bad one."""
    history = History()
    for number, line in lines:
        what = f"{where}, line {number}, is damaged or of another version"
        with reading(what, FormatError, "the dialog was not opened, and the file left as it is", "repair the line"):
            record = json.loads(line)
            if not isinstance(record, dict) or (number == 1) != (record.get("type") == "session"):
                raise ValueError("it is no record")
            history.apply(record, join=False)
    history.join()
    return history


def mend(history: History) -> list[Record]:
    """Make whole what a kill left by halves, and return the records of that: an unanswered question gets an empty answer,
    and the dialog goes on behind an answer."""
    tree, active = history.tree, history.tree.active
    unanswered = [node for node in tree if node.role == "user" and not node.children]
    records = [message(tree.add(node, "assistant")) for node in unanswered]
    tree.active = active if active.role == "assistant" else active.children[-1]
    return [*records, {"type": "active", "id": tree.active.id}] if records or tree.active is not active else []


def everything(history: History) -> list[Record]:
    """Records that make this dialog."""
    tree = history.tree
    records: list[Record] = [
        {"type": "session", "version": VERSION, "uid": history.uid},
        {"type": "model", "name": history.model, "tokenizer": history.tokenizer},
        {"type": "system", "text": history.system},
    ]
    held: Mapping[str, Any] = {}
    for node in tree:
        if node.parameters and node.parameters != held:
            held = node.parameters
            records.append({"type": "parameters", "values": held})
        records.append(message(node))
        if node.role == "assistant":
            records += answered(node)
    records.append({"type": "parameters", "values": history.parameters})
    records += [{"type": "fork", "id": id} for id in sorted(tree.forks)]
    return [*records, {"type": "active", "id": tree.active.id}] if tree.active.role == "assistant" else records


def message(node: Node) -> Record:
    assert node.parent is not None
    text = node.text if node.role == "user" else ""
    return {"type": "message", "id": node.id, "parent": node.parent.id, "role": node.role, "text": text}


def piece(node: Node) -> Record:
    """All that an answer says, at once."""
    return {"type": "piece", "id": node.id, "text": node.text, "ids": list(node.ids or ())}


def answered(node: Node) -> list[Record]:
    """What an answer has become."""
    end = {"type": "end", "id": node.id, "reason": node.reason, "exact": node.ids is not None, "text": None}
    return [piece(node), end]
