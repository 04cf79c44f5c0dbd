"""What is timed, and on what: the same token ids for every engine."""

import time
from dataclasses import dataclass
from typing import Protocol


class Runner(Protocol):
    """Something that runs token ids one after the other, and can go back to any earlier place."""

    vocabulary: int

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def feed(self, ids: list[int]) -> object:
        """Run these as one batch; logits of the last."""
        ...


@dataclass(frozen=True)
class Work:
    """A prefill of `prompt` tokens (0: none), then `decode` tokens one by one behind `depth` (0: behind the prompt)."""

    prompt: int = 0
    decode: int = 0
    depth: int = 0

    @property
    def start(self) -> int:
        """Tokens in the cache before decoding."""
        return self.depth or self.prompt or 1

    @property
    def context(self) -> int:
        """Tokens that must fit."""
        return max(self.prompt, self.start + self.decode)


class Course:
    """A runner and how much of the one endless text it holds: what a work needs before its start is not run again."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._held = runner, 0

    def prefill(self, count: int) -> float:
        """Seconds of a prompt of so many tokens."""
        self.reach(0)
        return self._feed(count)

    def decode(self, count: int) -> float:
        """Seconds of so many tokens, one by one, from where `reach` has left off."""
        return sum(self._feed(1) for _ in range(count))

    def reach(self, length: int) -> None:
        """Hold so many tokens."""
        if self._held > length:
            self._runner.rewind(length)
            self._held = length
        elif self._held < length:
            self._feed(length - self._held)

    def _feed(self, count: int) -> float:
        limit = self._runner.vocabulary - 20
        ids = [(7 * at + 11) % limit + 10 for at in range(self._held, self._held + count)]
        start = time.perf_counter()
        self._runner.feed(ids)
        self._held += count
        return time.perf_counter() - start
