"""cache.py against a naive account of what is kept where, and against engines that know only slots and positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.core.cache import Cache, CacheStep
from llamachat.errors import DoesNotFitError


class Slots:
    """What an engine holds: a token and a position in each slot."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, int]] = {}  # slot -> position, token

    def run(self, ids: list[int], step: CacheStep) -> list[tuple[int, int]]:
        """Everything the step's last token sees, in the order of positions."""
        if step.pinned:
            block, start = step.pinned
            for position, slot in enumerate(block, start):
                self.held[slot] = position, self.held[slot][1]
        for slot, position, token in zip(step.slots.tolist(), step.positions.tolist(), ids, strict=True):
            self.held[slot] = position, token
        return sorted(self.held[slot] for run in step.visible for slot in run)


class Naive:
    """The tokens behind the pinned ones keep the position they came with, the pinned ones lie right before them."""

    def __init__(self) -> None:
        self.pinned: list[int] = []
        self.tail: list[tuple[int, int]] = []
        self.next = 0

    def everything(self) -> list[tuple[int, int]]:
        oldest = self.tail[0][0] if self.tail else self.next
        return [*enumerate(self.pinned, oldest - len(self.pinned)), *self.tail]

    def add(self, ids: list[int], pin: int) -> None:
        """Up to `pin` tokens are pinned."""
        for token in ids:
            if len(self.pinned) < pin:
                self.pinned.append(token)
            else:
                self.tail.append((self.next, token))
            self.next += 1

    def truncate(self, length: int) -> None:
        del self.tail[max(0, length - len(self.pinned)) :]
        del self.pinned[length:]
        self.next = self.tail[-1][0] + 1 if self.tail else len(self.pinned)


class Both:
    """A cache and the naive account through the same operations."""

    def __init__(self, size: int, first: int) -> None:
        self.cache, self.engine, self.naive = Cache(size, first), Slots(), Naive()
        self.tokens = iter(range(10**6))

    def step(self, count: int) -> None:
        ids = [next(self.tokens) for _ in range(min(count, self.cache.free))]
        if not ids:
            return
        plan = self.cache.plan(len(ids))
        self.cache.commit(ids)
        self.naive.add(ids, self.cache.pinned)
        assert self.engine.run(ids, plan) == self.naive.everything()
        self.check(plan)
        assert self.cache.rotation is None

    def check(self, plan: CacheStep) -> None:
        cache = self.cache
        assert cache.log == [token for _, token in self.naive.everything()]
        slots = [slot for run in plan.visible for slot in run]
        assert len(slots) == len(set(slots)) == len(cache.log) <= cache.size
        assert all(cache.first <= slot < cache.first + cache.size for slot in slots)
        assert all(a.stop < b.start for a, b in zip(plan.visible, plan.visible[1:], strict=False))

    def evict(self, count: int) -> None:
        count = min(count, len(self.naive.tail))
        if count:
            self.cache.evict(count)
            del self.naive.tail[:count]

    def truncate(self, length: int) -> None:
        self.cache.truncate(length)
        self.naive.truncate(length)

    def repin(self, count: int) -> None:
        """Another system prompt that begins like the one before."""
        kept = min(count, self.cache.pinned)
        self.truncate(kept)
        self.cache.pin(max(count, kept))

    def keep(self, common: int) -> None:
        """A text that has so many tokens of the log, then others."""
        common = min(common, len(self.cache))
        kept = self.cache.keep_common_prefix([*self.cache.log[:common], -1])
        assert kept == common
        self.naive.truncate(common)


OPERATIONS = ("step", "step", "step", "evict", "evict", "truncate", "keep", "repin")
operations = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 12)), max_size=60)


@given(size=st.integers(5, 24), pinned=st.integers(0, 4), first=st.sampled_from([0, 7]), todo=operations)
def test_it_holds_and_shows_what_a_naive_account_says(
    size: int, pinned: int, first: int, todo: list[tuple[str, int]]
) -> None:
    both = Both(size, first)
    both.cache.pin(pinned)
    for name, amount in todo:
        getattr(both, name)(min(amount, 4) if name == "repin" else amount)
        assert len(both.cache.log) + both.cache.free == size
    both.step(1)


@given(size=st.integers(8, 40), pinned=st.integers(0, 5), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=200))
def test_thousands_of_tokens_roll_through(size: int, pinned: int, cuts: list[int]) -> None:
    both = Both(size, 0)
    both.cache.pin(pinned)
    for count in cuts * 3:
        if count > both.cache.free:
            both.evict(max(count, size // 4))
        both.step(count)
    assert both.cache.evicted + len(both.cache) == both.naive.next


def test_pinned_tokens_are_rotated_at_the_step_after_an_eviction_and_only_there() -> None:
    cache = Cache(8)
    cache.pin(2)
    cache.commit([1, 2, 3, 4, 5, 6, 7, 8])
    cache.evict(0)
    assert cache.plan(0).pinned is None
    cache.evict(1)
    cache.evict(2)
    assert cache.plan(3).pinned == (range(2), 3)
    assert cache.plan(3).pinned == (range(2), 3), "a step that failed is run again as it was"
    cache.commit([9, 10, 11])
    assert not cache.free
    cache.evict(1)
    cache.commit([12])
    assert cache.plan(0).pinned is None
    cache.truncate(2)
    assert cache.plan(1).pinned == (range(2), 0)
    cache.truncate(0)
    assert cache.plan(1).pinned is None


def test_without_pinned_tokens_nothing_is_ever_rotated() -> None:
    cache = Cache(4)
    cache.commit([1, 2, 3, 4])
    cache.evict(4)
    assert cache.plan(3).pinned is None
    assert cache.plan(3).positions.tolist() == [4, 5, 6]


def test_the_example_in_the_modules_docstring() -> None:
    cache = Cache(8)
    cache.pin(2)
    cache.commit(list(b"abcdefgh"))
    cache.evict(3)
    step = cache.plan(3)
    assert (step.slots.tolist(), step.positions.tolist()) == ([2, 3, 4], [8, 9, 10])
    assert step.visible == (range(8),)
    assert cache.plan(1).visible == (range(3), range(5, 8))
    assert step.pinned == (range(2), 3)
    assert bytes(cache.log) == b"abfgh"


def test_another_pin_while_something_is_evicted_is_refused() -> None:
    cache = Cache(8)
    cache.pin(2)
    cache.commit([1, 2, 3, 4])
    cache.evict(1)
    with pytest.raises(AssertionError):
        cache.pin(1)
    cache.commit([5])
    cache.truncate(2)
    with pytest.raises(AssertionError):
        cache.pin(1)  # one more is left, and must be rotated back with the first
    cache.pin(3)


@given(log=st.lists(st.integers(0, 2), max_size=12), ids=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_the_common_prefix_is_kept_but_never_all_of_a_text(log: list[int], ids: list[int]) -> None:
    cache = Cache(16)
    cache.commit(list(log))
    kept = cache.keep_common_prefix(ids)
    longest = max(n for n in range(len(ids)) if log[:n] == ids[:n])
    assert kept == longest
    assert cache.log == ids[:kept]


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    cache = Cache(8)
    cache.commit([1, 2, 3])
    cache.require(5)
    with pytest.raises(DoesNotFitError, match="makes 9 tokens, the context holds 8"):
        cache.require(6)
