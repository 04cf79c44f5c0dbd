"""What is timed, and on what: the same token ids for every engine."""

import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

RUN = 256  # tokens that are run where the others are skipped


class Runner(Protocol):
    """Something that runs token ids one after the other, and can go back to any earlier place."""

    vocabulary: int

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def feed(self, ids: list[int], each: bool = False) -> object:
        """Run these as one batch; logits of the last, or (our own engine) of each."""
        ...


@runtime_checkable
class Skipping(Protocol):
    """A runner that can hold tokens without running them."""

    def skip(self, ids: list[int]) -> None:
        """Hold these too, with the keys and values of the tokens that are held, again and again, in the place of their own."""
        ...


@dataclass(frozen=True)
class Work:
    """A prefill of `prompt` tokens (0: none), then `decode` steps of `each` tokens behind `depth` (0: behind the prompt).

    `skip`: what lies before is not all run, where a runner can do without: for speed alone.
    """

    prompt: int = 0
    decode: int = 0
    depth: int = 0
    each: int = 1
    skip: bool = False

    @property
    def start(self) -> int:
        """Tokens in the cache before decoding."""
        return self.depth or self.prompt or 1

    @property
    def context(self) -> int:
        """Tokens that must fit."""
        return max(self.prompt, self.start + self.decode * self.each)


class Course:
    """A runner and how much of the one endless text it holds: what a work needs before its start is not run again."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._held = runner, 0

    def prefill(self, count: int) -> float:
        """Seconds of a prompt of so many tokens."""
        self.reach(0)
        return self._feed(count)

    def decode(self, steps: int, each: int = 1) -> float:
        """Seconds of so many steps of `each` tokens, from where `reach` has left off."""
        return sum(self._feed(each, every=True) for _ in range(steps))

    def reach(self, length: int, skip: bool = False) -> None:
        """Hold so many tokens. `skip`: run a few of them only, where the runner can do so."""
        if self._held > length:
            self._runner.rewind(length)
            self._held = length
        if skip and isinstance(self._runner, Skipping) and self._held < length:
            self.reach(min(length, RUN))
            self._runner.skip(self._next(length - self._held))
            self._held = length
        elif self._held < length:
            self._feed(length - self._held)

    def _next(self, count: int) -> list[int]:
        limit = self._runner.vocabulary - 20
        return [(7 * at + 11) % limit + 10 for at in range(self._held, self._held + count)]

    def _feed(self, count: int, every: bool = False) -> float:
        ids = self._next(count)
        start = time.perf_counter()
        self._runner.feed(ids, every)
        self._held += count
        return time.perf_counter() - start
