"""Ids + engine + cache + sampler -> tokens, one at a time. Knows no text."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.sampler import Sampler, TokenLogprobs, token_logprobs

PREFILL_CHUNK = 512  # tokens a forward: bounds the attention workspace and the wait for an interrupt
ROLLING = 4  # a text that does not fit comes in chunks of this part of what is not pinned

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Token:
    """A generated token; `logprobs` when asked for."""

    id: int
    logprobs: TokenLogprobs | None = None


class Drafter(Protocol):
    """Drafts how one sequence goes on (speculative decoding). It is told of every token of it, and how long every step took."""

    def add(self, token: int) -> None:
        """The sequence goes on with this token."""
        ...

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where drafting does not pay."""
        ...

    def stepped(self, seconds: float) -> None:
        """The step that ran the last token and the draft behind it took so long."""
        ...


class Interrupted(Exception):  # noqa: N818 - not an error
    """The caller asked to stop between two forwards; the cache holds what was computed."""


# Asked when so many tokens more do not fit in the cache: may they come? If they still do not fit then, they come in
# chunks, for each of which it is asked again.
Room = Callable[[int], bool]


def never() -> bool:
    """The default for `interrupted`."""
    return False


def no_room(count: int) -> bool:
    """The default for `room`."""
    return False


def advance(engine: Engine, cache: Cache, ids: list[int], logits: Literal["last", "all"] = "last") -> Logits:
    """Run ids behind what the cache holds; logits as from Engine.forward. The cache changes only if the engine succeeds."""
    result = engine.forward(ids, cache.plan(len(ids)), logits)
    cache.commit(ids)
    return result


def prefill(
    engine: Engine, cache: Cache, ids: Sequence[int], interrupted: Callable[[], bool] = never, room: Room = no_room
) -> Logits:
    """Append ids (at least one) to the cache, in chunks; logits [vocab_size] after the last.

    Raises Interrupted, and DoesNotFitError where `room` makes none, as a rule before anything is computed.
    """
    for _, logits in _chunks(engine, cache, ids, interrupted, "last", room):
        last = logits
    return last


def score(
    engine: Engine, cache: Cache, ids: Sequence[int], top: int, interrupted: Callable[[], bool] = never
) -> tuple[list[TokenLogprobs], Logits]:
    """A prefill that also gives the logprobs of ids[1:], each given all before it (`top` alternatives)."""
    scored: list[TokenLogprobs] = []
    for following, logits in _chunks(engine, cache, ids, interrupted, "all"):
        scored += [token_logprobs(row, token, top) for row, token in zip(logits, following, strict=False)]
        last = logits[-1]
    return scored, last


def _chunks(
    engine: Engine,
    cache: Cache,
    ids: Sequence[int],
    interrupted: Callable[[], bool],
    logits: Literal["last", "all"],
    room: Room = no_room,
) -> Iterator[tuple[Sequence[int], Logits]]:
    """Run ids chunk by chunk: what follows each token of a chunk (nothing, the last), and the chunk's logits."""
    assert ids, "a prefill needs at least one token"
    if len(ids) > cache.free and not room(len(ids)):
        cache.require(len(ids))
    chunk = PREFILL_CHUNK
    if len(ids) > cache.free:  # it rolls as it goes: what a chunk needs goes before it is run, and most is to be seen
        chunk = min(chunk, max(1, (cache.size - cache.pinned) // ROLLING))
    for start in range(0, len(ids), chunk):
        if interrupted():
            raise Interrupted
        end = min(start + chunk, len(ids))
        if end - start > cache.free and not room(end - start):
            cache.require(end - start)
        yield ids[start + 1 : end + 1], advance(engine, cache, list(ids[start:end]), logits)


def generate(
    engine: Engine,
    cache: Cache,
    logits: Logits,
    sampler: Sampler,
    *,
    stop_ids: Collection[int],
    max_tokens: int | None = None,
    top: int | None = None,
    interrupted: Callable[[], bool] = never,
    drafter: Drafter | None = None,
    room: Room = no_room,
) -> Iterator[Token]:
    """Draw tokens after a prefill that gave `logits`, each fed back into the cache before the next is drawn.

    Ends after a stop id (which is yielded), after max_tokens, when the cache is full and `room` makes none, or on
    interruption. The token yielded last may be missing in the cache: it is the one pending token. `top`: logprobs with so
    many alternatives. A `drafter` makes it faster where the sampler draws its tokens too; others leave the cache again.
    """
    # rows: logits after the last drawn token and after each of the draft
    produced, rows, draft = 0, [logits], list[int]()
    try:
        while max_tokens is None or produced < max_tokens:
            token = sampler.sample(rows[0])
            produced += 1
            yield Token(token, None if top is None else token_logprobs(rows[0], token, top))
            if token in stop_ids or produced == max_tokens or interrupted():
                return
            if drafter:
                drafter.add(token)
            if draft and draft[0] == token:  # accepted
                del draft[0], rows[0]
                continue
            cache.truncate(len(cache) - len(draft))
            draft = []
            if not cache.free and not room(1):
                return
            most = cache.free - 1 if max_tokens is None else min(cache.free, max_tokens - produced) - 1
            proposed = drafter.draft(most) if drafter else []
            rows, draft = _step(engine, cache, token, proposed, drafter), proposed
    finally:
        cache.truncate(len(cache) - len(draft))


def _step(engine: Engine, cache: Cache, token: int, draft: list[int], drafter: Drafter | None) -> list[Logits]:
    """Run the drawn token and the draft; the logits after each of them."""
    start = time.perf_counter()
    logits = advance(engine, cache, [token, *draft], "all" if draft else "last")
    if drafter:
        drafter.stepped(time.perf_counter() - start)
    return list(logits) if draft else [logits]
