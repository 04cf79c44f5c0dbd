"""The tree of a dialog: every question, every answer to it, and which line of them is the active one. Pure data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamachat.chat.titles import first_line, title
from llamachat.core.dialog import Message
from llamachat.core.thoughts import TAGGED
from llamachat.errors import UsageError
from llamachat.events import Branch, Exchange, FinishReason
from llamachat.system.enclosed import parted

Speaker = Literal["user", "assistant"]


@dataclass(eq=False)
class Node:
    """A message. The root, which has no parent, stands before the first question."""

    id: int
    parent: "Node | None"
    role: Speaker
    text: str = ""  # of an answer: with what was thought, as the model wrote it
    ids: tuple[int, ...] | None = None  # those the model generated, as long as they stand for the text
    reason: FinishReason = "interrupt"  # how the answer ended so far
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)  # that were in force when it began
    tokens: int = 0  # of the whole turn as last encoded; 0: not yet
    children: "list[Node]" = field(default_factory=list, repr=False)

    @property
    def message(self) -> Message:
        """For the dialog format; an answer without its ids goes without its thoughts, as chat templates have it."""
        return Message(self.role, self.text if self.ids else self.said, self.ids or None)

    @property
    def said(self) -> str:
        """Without what was thought."""
        return TAGGED.parted(self.text)[1] if self.role == "assistant" else self.text

    @property
    def thought(self) -> str:
        return TAGGED.parted(self.text)[0] if self.role == "assistant" else ""

    @property
    def is_root(self) -> bool:
        return self.parent is None


class Tree:
    """Questions are children of answers (the first ones of the root) and answers of questions; the active node is never a
    question, except while its answer is on its way."""

    def __init__(self) -> None:
        self.root = self.active = Node(0, None, "assistant")
        self.forks: set[int] = set()  # nodes that are the end of a branch though the dialog went on behind them
        self._nodes = {0: self.root}
        self.next_id = 1

    def __iter__(self) -> Iterator[Node]:
        """All messages in the order they came."""
        return (node for node in self._nodes.values() if not node.is_root)

    def add(self, parent: Node, role: Speaker, text: str = "", id: int | None = None) -> Node:
        """A new message, which becomes the active one."""
        assert parent.role != role
        node = Node(self.next_id if id is None else id, parent, role, text)
        assert node.id >= self.next_id
        self.next_id = node.id + 1
        self._nodes[node.id] = node
        parent.children.append(node)
        self.active = node
        return node

    def drop(self, node: Node) -> None:
        """Take out a message and all behind it."""
        assert node.parent is not None
        if node in path(self.active):
            self.active = node.parent
        node.parent.children.remove(node)
        gone = [node]
        for each in gone:
            gone += each.children
            del self._nodes[each.id]
            self.forks.discard(each.id)

    def find(self, id: int) -> Node:
        """The answer (or root) that a branch is named by. Raises UsageError where there is none."""
        node = self._nodes.get(id)
        if node is None or node.role != "assistant":
            raise UsageError(f"there is no branch {id}", remedy="/branches lists them")
        return node

    def node(self, id: int) -> Node | None:
        return self._nodes.get(id)

    def before_question(self, number: int) -> Node:
        """The answer (or root) that question `number` of the active branch is behind. Raises UsageError where there is none."""
        asked = [self.root, *path(self.active)][:-1:2]
        if not 1 <= number <= len(asked):
            raise UsageError(f"there is no question {number}", remedy=f"there are {len(asked)} so far")
        return asked[number - 1]

    def branches(self) -> list[Branch]:
        """Ends of lines: messages that nothing follows, forks, and the active one."""
        active = path(self.active)
        ends = [node for node in self._nodes.values() if self._is_end(node)]
        return [self._branch(node, active) for node in sorted(ends, key=lambda node: node.id)]

    def _is_end(self, node: Node) -> bool:
        return node is self.active or node.id in self.forks or not (node.children or node.is_root)

    def _branch(self, end: Node, active: list[Node]) -> Branch:
        line = path(end)
        shared = next((i for i, (a, b) in enumerate(zip(line, active, strict=False)) if a is not b), None)
        shared = min(len(line), len(active)) if shared is None else shared
        asked, answered = (title(line[-2].text), first_line(line[-1].said)) if line else ("", "")
        return Branch(end.id, end is self.active, len(line) // 2, asked, shared // 2, answered)


def path(node: Node) -> list[Node]:
    """The messages from the first question to this one."""
    found = []
    while node.parent is not None:
        found.append(node)
        node = node.parent
    return found[::-1]


def exchanges(node: Node) -> list[Exchange]:
    """Questions and answers of the line that ends here."""
    line = path(node)
    return [_exchange(number, *pair) for number, pair in enumerate(zip(line[::2], line[1::2], strict=False), 1)]


def _exchange(number: int, asked: Node, answer: Node) -> Exchange:
    words, attached = parted(asked.text)
    return Exchange(number, words, attached, answer.thought.strip(), answer.said, answer.reason)
