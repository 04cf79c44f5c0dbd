"""What of a dialog the model sees: the pinned start, whole turns behind it, and the answer on its way.

The log of the cache is always a beginning of

    pinned | turn | turn | ... | question | header and text of the answer

and all of it but one token once an answer has begun. Pinned is the system prompt's turn, or where that is shorter than the
attention sinks (StreamingLLM, Xiao et al. 2023), so many tokens of the dialog's start. A turn's ids are made once, among the
turns that the model saw then, and stay what it saw. Keys and values are kept in one run of slots and not in pages: only one
branch is computed at a time, so what pages could share is the common beginning, and that is never computed again anyway.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llamachat.chat.asked import Asked
from llamachat.chat.settings import thinking
from llamachat.chat.tree import Node, Tree
from llamachat.core.cache import Cache
from llamachat.core.dialog import DialogFormat, Message
from llamachat.core.generate import Interrupted, never, prefill
from llamachat.errors import DoesNotFitError
from llamachat.events import Evicted
from llamachat.models.load import LoadedModel

Overflow = Literal["roll", "refill", "stop"]

SINKS = 4
SLACK = 8  # rolling frees this part of the window at once
REFILLED = 2  # and refilling, which costs a prefill of what stays, this part
CONTEXT = 4  # messages before a new one that it is encoded behind
PINNABLE = 4 / 5  # the system prompt may fill so much of the window


@dataclass
class Kept:
    """A question or answer that the model sees, and its tokens behind the pinned ones."""

    node: Node
    ids: list[int]
    gone: int = 0  # tokens of its start that had to go


@dataclass
class View:
    """What the model is to see before it answers."""

    system: str | None
    pinned: list[int]
    kept: list[Kept]  # question, answer, ..., question
    opened: list[int]  # the header of the answer
    gone: int = 0  # tokens of the header and the answer that had to go
    thinking: bool | None = None  # what the dialog is written for: see DialogFormat.having

    @property
    def length(self) -> int:
        """Tokens before the answer's own."""
        return len(self.pinned) + sum(len(each.ids) for each in self.kept) + len(self.opened) - self.gone

    def ids(self, answer: Sequence[int] = ()) -> list[int]:
        """All of it, with an answer so far."""
        turns = [token for each in self.kept for token in each.ids]
        return [*self.pinned, *turns, *[*self.opened, *answer][self.gone :]]


class Window:
    """Keeps a cache in step with a dialog. `events` are evictions that nobody has been told of."""

    def __init__(self, model: LoadedModel, cache: Cache, overflow: Overflow) -> None:
        self.model, self.cache, self.overflow = model, cache, overflow
        self.events: list[Evicted] = []
        self.view: View | None = None
        self.answering: Node | None = None  # what `view.opened` opens
        self._interrupted: Callable[[], bool] = never
        self._preambles: dict[bool | None, list[int]] = {}

    def prompt(self, asked: Asked) -> list[int]:
        """The ids that the answer goes on from, with what it has already; old turns make room for them.

        Raises DoesNotFitError, and what the dialog format raises; nothing has changed then.
        """
        path, answer, self._interrupted = asked.path, asked.answer, asked.interrupted
        wanted = thinking(answer.parameters)
        view = self._continued(path, answer, asked.system, wanted) or self._anew(path, asked.system, wanted)
        begun = answer.ids or ()
        dropped, fitting = self._fit(view, len(begun))
        self._commit(view if dropped else fitting, begun)
        for each in dropped:
            self._evict(len(each.ids))
        first = path.index(fitting.kept[0].node) // 2
        turns = first - self.first(path)
        self.view, self.answering = fitting, answer
        if turns > 0:
            tokens = view.length - fitting.length
            self._tell(Evicted(turns, tokens or sum(n.tokens for n in path[: 2 * first]), self.overflow == "refill"))
        return fitting.ids(begun)

    def first(self, path: Sequence[Node]) -> int:
        """How many questions of this path the model does not see; 0 for one that it was not shown yet."""
        nodes = [each.node for each in self.view.kept[:1]] if self.view else []
        return path.index(nodes[0]) // 2 if nodes and nodes[0] in path else 0

    def lost(self, line: Sequence[Node]) -> dict[int, int]:
        """Tokens that have gone from the start of this line's messages, by their place in it."""
        view = self.view
        nodes = [(each.node, each.gone) for each in view.kept] if view else []
        nodes += [(self.answering, view.gone)] if view and self.answering else []
        return {line.index(node): gone for node, gone in nodes if gone and node in line}

    def room(self, count: int) -> bool:
        """For `generate`: make room for so many tokens more; False where there is none."""
        if self.overflow == "roll":
            return self._roll(count)
        return self.overflow == "refill" and self._refill()

    def forget(self) -> None:
        """Begin anew, with the system prompt at most."""
        self.cache.truncate(self.cache.pinned if self.view and self.view.system else 0)
        self.view = self.answering = None

    def in_step(self, asked: Asked) -> list[int]:
        """The ids up to the end of an answer, all but the last of which are in the cache or fit into it."""
        view, answer, ids = self.view, asked.answer, asked.answer.ids or ()
        if view and self.answering is answer and view.system == asked.system and view.kept[-1].node is asked.path[-1]:
            whole = view.ids(ids)
            if len(whole) - 1 <= len(self.cache) and whole[: len(self.cache)] == self.cache.log:
                return whole
        return self.prompt(asked)

    def take_events(self) -> list[Evicted]:
        """What nobody has been told of yet."""
        events, self.events = self.events, []
        return events

    # ---- on disk ----

    def state(self) -> dict[str, Any] | None:
        """What `take_up` needs to know besides the cache; None where that has not all of the prompt."""
        view = self.view
        if view is None or self.answering is None or len(self.cache) < view.length:
            return None
        kept = [[each.node.id, len(each.ids)] for each in view.kept]
        return {
            "system": view.system,
            "pinned": len(view.pinned),
            "kept": kept,
            "opened": view.opened,
            "gone": view.gone,
            "begun": [each.gone for each in view.kept],
            "thinking": view.thinking,
            "answer": self.answering.id,
            "said": _digest([*(each.node for each in view.kept), self.answering]),
        }

    def take_up(self, state: dict[str, Any], tree: Tree) -> None:
        """Go on with a cache that was restored. Raises ValueError and its like where it is of another dialog."""
        nodes = [tree.node(id) for id, _ in state["kept"]]
        answer, log = tree.node(state["answer"]), self.cache.log
        if answer is None or not nodes or any(node is None for node in nodes) or state["pinned"] != self.cache.pinned:
            raise ValueError
        found = [node for node in nodes if node is not None]
        if state["said"] != _digest([*found, answer]):
            raise ValueError
        kept, at = list[Kept](), self.cache.pinned
        begun = state.get("begun") or [0] * len(found)
        for node, (_, count), gone in zip(found, state["kept"], begun, strict=True):
            kept.append(Kept(node, log[at : at + count], int(gone)))
            at += count
        _count(kept)
        pinned = log[: self.cache.pinned]
        self.view = View(state["system"], pinned, kept, state["opened"], state["gone"], state.get("thinking"))
        self.answering = answer

    # ---- which turns ----

    def _format(self, thinking: bool | None) -> DialogFormat:
        return self.model.dialog.having(thinking)

    def _continued(self, path: Sequence[Node], answer: Node, system: str | None, wanted: bool | None) -> View | None:
        """The view as it is and what is new behind it; None where the path left it."""
        old = self.view
        if old is None or old.system != system or old.kept[0].node not in path:
            return None
        if old.thinking != wanted and not self._alike(system, old.thinking, wanted):
            return None
        behind = path[path.index(old.kept[0].node) :]
        same = next((i for i, (k, n) in enumerate(zip(old.kept, behind, strict=False)) if k.node is not n), None)
        same = min(len(old.kept), len(behind)) if same is None else same
        follows = [*behind, answer][same : same + 1] == [self.answering]
        if old.gone and not follows:
            return None
        kept, new = old.kept[:same], behind[same:]
        start = max(
            0, same - CONTEXT + same % 2
        )  # the new ones among the last turns: all kept ones would take their time
        turns = self._format(wanted).turns(_messages(system, behind[start:]))[-len(new) - 1 :]
        closed = self._as_seen(new[0], turns[0]) if new else None
        if closed:
            turns[0] = closed
        kept = kept + [Kept(node, ids) for node, ids in zip(new, turns, strict=False)]
        _count(kept[same:])
        if old.gone and closed:  # without its beginning
            kept[same].ids, kept[same].gone = kept[same].ids[old.gone :], old.gone
        return View(system, old.pinned, kept, turns[-1], 0 if new else old.gone, wanted)

    def _alike(self, system: str | None, *thinking: bool | None) -> bool:
        """Whether a dialog is written alike for these, but for the header of the answer to come."""
        ask, say = Message("user", "a"), Message("assistant", "a")
        one, other = (self._format(each).turns([*_messages(system, []), ask, say, ask])[:-1] for each in thinking)
        return one == other

    def _as_seen(self, node: Node, ids: list[int]) -> list[int] | None:
        """The last answer's turn behind the very header that it was given behind, which may have begun a thought; None where
        the format writes another: without what was thought, or without the thought that the header had been through with."""
        said, view = list(node.ids or ()), self.view
        if node is not self.answering or view is None or not said:
            return None
        if self.model.dialog.thoughts.silenced_by("".join(map(self.model.token_text, view.opened))):
            return None
        ends = (at + len(said) for at in range(len(ids) - len(said), -1, -1) if ids[at : at + len(said)] == said)
        end = next(ends, None)
        return None if end is None else [*view.opened, *said, *ids[end:]]

    def _anew(self, path: Sequence[Node], system: str | None, wanted: bool | None) -> View:
        """As many of the latest turns as fit, encoded without the others."""
        count = 17  # messages; more and more of them, so that a long history costs what a short one does
        while True:
            view = self._encoded(path[-count:], system, wanted)
            if count >= len(path) or view.length >= self.cache.size:
                break
            count = 2 * count - 1
        return view

    def _encoded(self, nodes: Sequence[Node], system: str | None, wanted: bool | None) -> View:
        turns = self._format(wanted).turns(_messages(system, nodes))
        head = turns.pop(0) if system else self._head(wanted)
        if not system and turns[0][: len(head)] == head:
            turns[0] = turns[0][len(head) :]
        kept = [Kept(node, ids) for node, ids in zip(nodes, turns, strict=False)]
        _count(kept)
        sinks = max(0, SINKS - len(head))
        pinned, kept[0].ids = head + kept[0].ids[:sinks], kept[0].ids[sinks:]
        return View(system, pinned, kept, turns[-1], thinking=wanted)

    def _head(self, wanted: bool | None) -> list[int]:
        """What the format writes before the first question only: BOS, a system prompt of the template's own."""
        if wanted not in self._preambles:
            ask, say, dialog = Message("user", "a"), Message("assistant", "a"), self._format(wanted)
            first, later = dialog.turns([ask])[0], dialog.turns([ask, say, ask])[2]
            begins = len(first) - len(later)
            self._preambles[wanted] = first[:begins] if begins > 0 and first[begins:] == later else []
        return self._preambles[wanted]

    def _fit(self, view: View, begun: int) -> tuple[list[Kept], View]:
        """What must go for this to fit with one token more, and the rest."""
        size = self.cache.size
        if len(view.pinned) > PINNABLE * size:
            raise _does_not_fit("the system prompt makes", len(view.pinned), size)
        if view.length + begun < size:
            return [], view
        if self.overflow == "stop":
            raise _does_not_fit("the dialog makes", view.length + begun, size)
        if self.overflow == "refill":
            return [], self._refilled(view, begun)
        kept, free = list(view.kept), size - view.length - begun
        while len(kept) > 1 and free < max(1, size // SLACK):
            free += sum(len(each.ids) for each in kept[:2])
            del kept[:2]
        gone = view.kept[: len(view.kept) - len(kept)]
        return gone, replace(view, kept=kept)

    def _refilled(self, view: View, begun: int) -> View:
        """The dialog as if it had begun later: few enough turns for half of the window, if need be one."""
        nodes, length = [each.node for each in view.kept], view.length + begun
        first = 0
        while first + 2 < len(nodes) and length > self.cache.size // REFILLED:
            length -= sum(len(each.ids) for each in view.kept[first : first + 2])
            first += 2
        fitting = self._encoded(nodes[first:], view.system, view.thinking)
        if fitting.length + begun >= self.cache.size:
            raise _does_not_fit("this turn alone makes", fitting.length + begun, self.cache.size)
        return fitting

    # ---- the cache ----

    def _commit(self, view: View, begun: Sequence[int]) -> None:
        """Keep of the cache what this view begins with."""
        cache, ids, pinned, count = self.cache, view.ids(begun), view.pinned, len(view.pinned)
        if cache.log[: cache.pinned] != pinned or (self.view and self.view.pinned is not pinned and cache.evicted):
            common = next((i for i, (a, b) in enumerate(zip(cache.log, ids, strict=False)) if a != b), len(ids))
            cache.truncate(min(common, count, len(cache.log), *([cache.pinned] if cache.evicted else [])))
        cache.pin(count)
        cache.keep_common_prefix(ids)

    def _evict(self, count: int) -> None:
        """Let so many of the oldest tokens go, as far as they are there."""
        if count < self.cache.evictable:
            self.cache.evict(count)
        else:  # nothing stays behind the pinned ones, which may so return to the start
            self.cache.truncate(min(self.cache.pinned, len(self.cache)))

    def _roll(self, count: int) -> bool:
        view, cache = self.view, self.cache
        assert view is not None
        if count > cache.size - cache.pinned:  # more than can ever be seen: it comes in pieces, each asks again
            return True
        wanted, turns, tokens = max(count, cache.size // SLACK), 0, 0
        while cache.free < wanted and len(view.kept) > 1:
            gone = sum(len(each.ids) for each in view.kept[:2])
            cache.evict(gone)
            del view.kept[:2]
            turns, tokens = turns + 1, tokens + gone
        if turns:
            self._tell(Evicted(turns, tokens))
        if cache.free < count:
            gone = min(cache.evictable, max(wanted - cache.free, 1))
            cache.evict(gone)
            self._trim(view, gone)
        return cache.free >= count

    def _trim(self, view: View, count: int) -> None:
        """So many tokens of the one turn that is left, from its start, are gone."""
        question = view.kept[0]
        view.gone += max(0, count - len(question.ids))
        question.gone += min(count, len(question.ids))
        question.ids = question.ids[count:]
        self._tell(Evicted(0, count, self.overflow == "refill"))

    def _refill(self) -> bool:
        """Let half of the window go in the middle of an answer, and compute the rest as if the dialog had begun there."""
        view, cache = self.view, self.cache
        assert view is not None
        answer = cache.log[view.length :]
        if len(view.kept) > 1 and (fitting := self._shorter(view, len(answer))):
            log = fitting.ids() + answer
            self._tell(Evicted((len(view.kept) - len(fitting.kept)) // 2, len(cache) - len(log), True))
            self.view = fitting
            common = cache.keep_common_prefix(log)
        else:
            gone = max(1, cache.evictable // REFILLED)
            log = cache.log[: cache.pinned] + cache.log[cache.pinned + gone :]
            self._trim(view, gone)
            cache.truncate(common := cache.pinned)
        try:
            prefill(self.model.engine, cache, log[common:], self._interrupted)
        except Interrupted:
            return False
        return True

    def _shorter(self, view: View, answered: int) -> View | None:
        try:
            return self._refilled(view, answered)
        except DoesNotFitError:
            return None

    def _tell(self, event: Evicted) -> None:
        """Evictions of one kind that nobody heard of yet are one."""
        last = self.events[-1] if self.events else None
        if last and bool(last.turns) == bool(event.turns):
            event = Evicted(last.turns + event.turns, last.tokens + event.tokens, event.refilled)
            self.events.pop()
        self.events.append(event)


def _messages(system: str | None, nodes: Sequence[Node]) -> list[Message]:
    return ([Message("system", system)] if system else []) + [node.message for node in nodes]


def _digest(nodes: Sequence[Node]) -> str:
    said = [(node.id, node.role, node.text, node.ids) for node in nodes]
    return hashlib.sha256(repr(said).encode(errors="surrogatepass")).hexdigest()


def _count(kept: Sequence[Kept]) -> None:
    for each in kept:
        each.node.tokens = len(each.ids) + each.gone


def _does_not_fit(what: str, count: int, size: int) -> DoesNotFitError:
    return DoesNotFitError(
        f"{what} {count} tokens, the context holds {size}",
        "the message was not sent",
        "shorten it, /clear the dialog, or start with a larger --ctx-size",
    )
