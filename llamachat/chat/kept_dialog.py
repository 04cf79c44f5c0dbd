"""A dialog that can be rewound, branched and saved; it knows nobody who answers."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Literal

from llamachat.chat.asked import Seen
from llamachat.chat.history import History, Record, message
from llamachat.chat.journal import MAX_TEXT
from llamachat.chat.keeper import Keeper, Opened
from llamachat.chat.places import places
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive, not_all_deleted
from llamachat.chat.tree import Node, Tree, exchanges, path
from llamachat.errors import UsageError
from llamachat.events import Branch, Exchange, Forgotten, Place, SavedDialog, Turn


class Dialog:
    """Its tree and its file. All that is said goes through `_do`, which changes the dialog and writes down how."""

    def __init__(self, settings: Settings, archive: Archive | None = None) -> None:
        """`archive`: where the dialog is saved, if it is."""
        self.settings = settings
        self.history = History(uid=secrets.token_hex(8))
        self._notices: list[str] = []
        self._keeper = Keeper(archive, self._notices.append)

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.history.system

    @property
    def name(self) -> str | None:
        """Under which the dialog is saved, or will be; None where it is not, or not yet."""
        return self._keeper.name

    @property
    def kept(self) -> bool:
        """Whether it is saved from its first question on; else it leaves no trace."""
        return self._keeper.keeps

    @property
    def on_disk(self) -> bool:
        """Whether it is saved already."""
        return self._keeper.journal is not None

    def notices(self) -> Sequence[str]:
        """Lines that the person should see and has not yet: each is handed out once."""
        found = list(self._notices)
        self._notices.clear()
        return found

    def parameters(self) -> Mapping[str, object]:
        """The settings now in force, by name: what `set_parameter` can set."""
        return self.settings.parameters()

    def set_parameter(self, name: str, value: str) -> None:
        """Set a parameter from its text, "none" for no value. Raises UsageError on a bad name or value."""
        self.settings = self.settings.changed(name, value)
        self._record_parameters()

    def recorded(self) -> Mapping[str, object]:
        """What is written down of how answers are given."""
        return self.parameters()

    def _record_parameters(self) -> None:
        self._do({"type": "parameters", "values": dict(self.recorded())})

    # ---- its tree ----

    @property
    def _tree(self) -> Tree:
        return self.history.tree

    def _turns(self, seen: Seen) -> list[Turn]:
        """Of the active branch."""
        found = [Turn(0, "system", self.system, seen.system, "pinned")] if self.system else []
        for i, node in enumerate(path(self._tree.active)):
            tokens = node.tokens or len(node.ids or ())
            found.append(Turn(i // 2 + 1, node.role, node.said, tokens, _seen(i, tokens, seen)))
        return found

    def exchanges(self) -> Sequence[Exchange]:
        """Questions and answers of the active branch."""
        return exchanges(self._tree.active)

    def thought(self) -> str:
        """Before the last answer. Raises UsageError where there is none."""
        self._last_question()
        if not (thought := self._tree.active.thought.strip()):
            raise UsageError("the last answer came without a thought", remedy="/think says whether the model is to")
        return thought

    def clear(self) -> None:
        """Begin anew, as another branch: no turns, same system prompt. What was said stays saved with it."""
        self._do({"type": "active", "id": 0})

    def begin(self, messages: Sequence[tuple[Literal["user", "assistant"], str]]) -> None:
        """`clear`, then have these said, question and answer in turn (a persona's first messages)."""
        roles = [role for role, _ in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise UsageError("first messages are not question and answer in turn", remedy="begin with a question")
        for _, text in messages:
            require_short("message", text)
        self.clear()
        for role, text in messages:
            node = self._tree.add(self._tree.active, role, text)
            self._write([message(node)])
            if role == "assistant":
                node.text = ""
                self._do({"type": "piece", "id": node.id, "text": text, "ids": []})
                self._do({"type": "end", "id": node.id, "reason": "stop", "exact": False, "text": None})

    def set_system(self, text: str | None) -> None:
        """Another system prompt, or none, from the next answer on; the turns stay."""
        require_short("system prompt", text or "")
        self._do({"type": "system", "text": text or None})

    def undo(self, count: int = 1) -> int:
        """Go back before the last `count` questions; returns how many that were. They stay in the tree."""
        line = [self._tree.root, *path(self._tree.active)]
        if count < 1 or len(line) == 1:
            raise UsageError("there is nothing to undo")
        back = min(count, len(line) // 2)
        self._do({"type": "active", "id": line[-2 * back - 1].id})
        return back

    def fork(self) -> int:
        """Mark this point: what comes next is another branch; returns the id of the one left behind. Raises UsageError where
        nothing was said."""
        here = self._tree.active
        if here.parent is None:
            raise UsageError("nothing has been said yet", "there is nothing to branch off", "ask something")
        self._do({"type": "fork", "id": here.id})
        return here.id

    def branches(self) -> Sequence[Branch]:
        """All of them, in the order they began."""
        return self._tree.branches()

    def switch(self, branch: int) -> None:
        """Make another branch the active one."""
        self._do({"type": "active", "id": self._tree.find(branch).id})

    def _last_question(self) -> Node:
        question = self._tree.active.parent
        if question is None:
            raise UsageError("there is no answer yet", remedy="ask something")
        return question

    # ---- on disk ----

    def save(self, name: str) -> None:
        """Call the dialog this from now on. Raises UsageError for a bad or taken name."""
        self._keeper.rename(name)

    def saved(self) -> Sequence[SavedDialog]:
        """Every dialog on disk, the latest first."""
        return self._keeper.archive.saved()

    def about(self, name: str) -> SavedDialog:
        """What a list tells of a dialog on disk. Raises UsageError where there is none."""
        try:
            return self._keeper.archive.about(name)
        except OSError as error:
            raise UsageError(f"the dialog {name} cannot be read: {error.strerror}") from error

    def require_deletable(self, name: str) -> None:
        """Raises UsageError for a dialog that is not on disk, or that another chat has open."""
        if name != (self.name or ""):
            self._keeper.archive.require_free(name)
        elif not self.on_disk:
            raise UsageError("nothing of this dialog is saved", "nothing was deleted", "/sessions lists those that are")

    def delete(self, name: str) -> Forgotten:
        """Delete a dialog on disk. Raises UsageError where there is none, or another chat has it open."""
        self.require_deletable(name)
        try:
            return self._keeper.discard() if name == self.name else self._keeper.archive.remove(name)
        except OSError as error:
            raise not_all_deleted(name, error) from error

    def places(self) -> Sequence[Place]:
        """Where all that is kept lies."""
        return places()

    def _fetch(self, name: str) -> tuple[Opened, Settings]:
        """Another dialog, not yet gone on with, and how that is answered. Raises UsageError where that is impossible."""
        opened = self._keeper.fetch(name)
        try:
            return opened, self.settings.having(opened.history.parameters)
        except UsageError:
            if opened.journal:
                opened.journal.close()
            raise

    def close(self) -> None:
        """Leave the dialog, which stays as it was saved; harmless when repeated."""
        if self._keeper.unsaved:
            self._write([], sync=True)  # there may be room by now
        self._keeper.close()

    def _do(self, record: Record, sync: bool = False) -> None:
        """Change the dialog, and write down how."""
        self.history.apply(record)
        self._write([record], sync)

    def _write(self, records: Sequence[Record], sync: bool = False) -> None:
        self._keeper.write(self.history, records, sync)


def _seen(place: int, tokens: int, seen: Seen) -> Literal["kept", "partly", "dropped"]:
    """Whether the model sees a message of so many tokens."""
    lost = seen.lost.get(place, 0)
    if place < 2 * seen.dropped or (lost and lost >= tokens):
        return "dropped"
    return "partly" if lost else "kept"


def require_short(what: str, text: str) -> None:
    """Raises UsageError for what would make a line of the file that cannot be read again."""
    if len(text) > MAX_TEXT:
        raise UsageError(f"the {what} has {len(text)} characters", "it was not sent", f"at most {MAX_TEXT} will do")
