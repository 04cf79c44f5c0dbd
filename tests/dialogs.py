"""Random dialogs with a model that costs nothing, and what must hold of the cache after each of their steps."""

import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from hash_engine import HashEngine, hash_model
from numpy.typing import NDArray

from llamachat.chat.local import LocalBackend
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.chat.tree import path
from llamachat.chat.window import Overflow
from llamachat.core.cache import CacheStep
from llamachat.core.sampling import SamplingParams
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import Evicted, TurnDone
from llamachat.models.load import LoadedModel

START, END = 256, 257
SETTINGS = Settings(SamplingParams(temperature=0), max_tokens=12)


def local_session(
    model: LoadedModel,
    settings: Settings,
    system: str | None = None,
    overflow: Overflow = "roll",
    *,
    snapshots: bool = False,
    **options: Any,
) -> Session:
    """A session that this very model answers."""
    return Session(LocalBackend(model, overflow, snapshots=snapshots), settings, system, **options)


def local(chat: Session) -> LocalBackend:
    assert isinstance(chat.backend, LocalBackend)
    return chat.backend


class QuickEngine(HashEngine):
    """Draws from a table; keeps what lies in each slot, so that it can be compared with the cache's log."""

    TABLE = np.random.default_rng(0).standard_normal((61, 259)).astype(np.float32)
    TABLE[:, [START, 258]] = -9
    TABLE[::7, END] = 9

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        self.forwarded.append(len(ids))
        if step.pinned is not None:
            block, start = step.pinned
            for i, slot in enumerate(block):
                self.held[slot] = start + i, self.held[slot][1]
        for token, slot, position in zip(ids, step.slots.tolist(), step.positions.tolist(), strict=True):
            self.held[slot] = position, token
        rows = (np.asarray(ids) * 31 + step.positions) % len(self.TABLE)
        return self.TABLE[rows[-1]] if logits == "last" else self.TABLE[rows]


def quick_session(slots: int, system: str | None, overflow: Overflow, archive: Archive | None = None) -> Session:
    model = hash_model(slots)
    model.engine = QuickEngine(slots, 259)
    return local_session(model, SETTINGS, system, overflow, archive=archive)


def play(random: random.Random, steps: int) -> int:
    """A random dialog, looked at after every step; returns how many evictions there were."""
    overflow = random.choice(["roll", "roll", "refill", "stop"])
    chat = quick_session(random.randint(40, 220), random.choice([None, "", "s", "Be brief."]), overflow)
    return sum(_step(chat, random) for _ in range(steps))


def _step(chat: Session, random: random.Random) -> int:
    before = [(node.id, node.text) for node in path(chat.history.tree.active)]
    evicted = 0
    try:
        evicted = _act(chat, random, random.randrange(16))
    except (UsageError, DoesNotFitError):
        assert [(node.id, node.text) for node in path(chat.history.tree.active)] == before, "a refusal changes nothing"
    check(chat)
    return evicted


def _act(chat: Session, random: random.Random, act: int) -> int:
    branches = [branch.id for branch in chat.branches()]
    text = random.choice(["", "a", "some words", "x" * random.randint(1, 60), "y" * random.randint(40, 500)])
    if act == 0:
        chat.undo(random.randint(1, 3))
    elif act == 1:
        chat.set_system(random.choice([None, "s", "Another system prompt."]))
    elif act == 2 and branches:
        chat.switch(random.choice(branches))
    elif act == 3:
        chat.fork()
    elif act == 4 and random.random() < 0.3:
        chat.clear()
    elif act == 5:
        list(chat.why())
        held = list(local(chat).cache.log)
        chat.tokens(2)
        assert local(chat).cache.log == held
    elif act == 6:
        chat.set_parameter("max_tokens", str(random.randint(1, 90)))
    else:
        return _answer(chat, random, act, text)
    return 0


def _answer(chat: Session, random: random.Random, act: int, text: str) -> int:
    asked = len(path(chat.history.tree.active)) // 2
    events = {
        7: chat.regenerate,
        8: chat.resume,
        9: lambda: chat.edit(random.randint(1, asked + 1), text),
        10: lambda: chat.take_alternative(random.randint(1, 4), random.randint(1, 3)),
    }.get(act, lambda: chat.ask(text))()
    stop, leave = random.randint(0, 30), random.randint(0, 60)
    evicted = 0
    for number, event in enumerate(events):
        evicted += isinstance(event, Evicted)
        if number == stop:
            chat.interrupt()
        if number == leave:
            break
        if isinstance(event, TurnDone):
            assert event.stats.context_used == len(local(chat).cache) <= chat.context_size
    events.close()  # type: ignore[attr-defined]
    answer = chat.history.tree.active
    assert answer is local(chat).window.answering
    missing = len(local(chat).window.view.ids(answer.ids or ())) - len(local(chat).cache)  # type: ignore[union-attr]
    cut_short = answer.reason == "interrupt" and (stop <= number or isinstance(event, Evicted))
    assert 0 <= missing <= 1 or cut_short, "one token at most is pending"
    return evicted


def check(chat: Session) -> None:
    """The log is what the engine holds, and is the pinned start and whole turns; or the end of one turn that is too long."""
    backend = local(chat)
    cache, view, engine = backend.cache, backend.window.view, backend.model.engine
    assert isinstance(engine, QuickEngine)
    slots = cache.slots(np.arange(len(cache))).tolist()
    assert [engine.held[slot][1] for slot in slots] == cache.log
    turned = cache.pinned if len(cache) and cache.plan(0).pinned else 0  # pinned tokens that the next step will turn
    places = [engine.held[slot][0] for slot in slots]
    assert places[turned:] == list(range(turned + cache.evicted, len(cache) + cache.evicted))
    if view is None:
        return
    answer = local(chat).window.answering
    assert answer is not None
    expected = view.ids(answer.ids or ())
    common = min(len(expected), len(cache))
    assert cache.log[:common] == expected[:common]
    assert cache.pinned == len(view.pinned)
    nodes = [each.node for each in view.kept]
    line = path(nodes[-1])
    assert nodes == line[len(line) - len(nodes) :] and len(nodes) % 2 == 1 and answer.parent is nodes[-1]
    turns = [encoded(node.role, node.text.encode() if node.role == "user" else bytes_of(node)) for node in nodes]
    whole = [token for turn in turns for token in turn] + [START, *b"assistant\n", *(answer.ids or ())]
    if view.system:
        assert view.pinned == encoded("system", view.system.encode())
    else:
        assert len(view.pinned) == 4 and view.pinned[0] == START
    if not view.system and expected == whole:
        return  # nothing has gone: the sinks are the beginning of the first question
    behind = expected[len(view.pinned) :]
    if behind not in (whole, whole[len(view.pinned) :]):
        assert len(view.kept[0].ids) < nodes[0].tokens, "whole turns, but for one that was too long"
        assert behind == whole[len(whole) - len(behind) :], "the end of a turn"
        assert len(nodes) == 1 or len(whole) - len(behind) <= len(turns[0]) + len(turns[1]), "and only of the oldest"


def bytes_of(node: object) -> Sequence[int]:
    ids: Sequence[int] | None = getattr(node, "ids", None)
    return ids or ()


def encoded(role: str, content: Sequence[int]) -> list[int]:
    return [START, *role.encode(), *b"\n", *content, END, *b"\n"]


def play_many(count: int, seed: int, steps: int = 12) -> int:
    return sum(play(random.Random(f"{seed} {number}"), steps) for number in range(count))
