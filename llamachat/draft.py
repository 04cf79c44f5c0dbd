"""Prompt lookup: guess the next tokens from an earlier place where the last few stood (Saxena 2023; Leviathan et al. 2023).

A guess is run in one step with the token before it, and what it gives is only kept where the sampler draws the same tokens,
so guessing changes the time, never the text. It pays where an answer repeats its prompt (edit this, quote that) and costs
elsewhere, so what it gains is measured as it goes, and it pauses while it gains nothing.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # so many tokens must have stood there before
LENGTH = 8  # tokens of a guess
PAUSE = 64  # steps without guesses after guessing has not paid
MEMORY = 0.8  # weight of what was measured before against the latest step


class Drafter:
    """Guesses for one sequence. It must be told of every token of it, and how long every step took."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # a few tokens -> where the text went on behind them, lately
        self._plain_s = 0.0  # seconds of a step of one token; 0: not known yet
        self._guess_s = 0.0  # seconds a token of the steps that guessed
        self._paused = 0
        self._guessed, self._seconds, self._length = False, 0.0, 0  # the step under way; length of the text before it
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The sequence goes on with this token."""
        ids = self._ids
        for size in range(SHORTEST, min(LONGEST, len(ids)) + 1):
            self._next[tuple(ids[-size:])] = len(ids)
        ids.append(token)

    def guess(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none where there is nothing to go by, or while guessing does not pay."""
        self._settle()
        self._length = len(self._ids)
        found = self._look_up(min(limit, LENGTH)) if self._plain_s and not self._paused else []
        self._paused = max(0, self._paused - 1)
        self._guessed = bool(found)
        return found

    def stepped(self, seconds: float) -> None:
        """The step with the last guess took so long."""
        self._seconds = seconds

    def _look_up(self, limit: int) -> list[int]:
        for size in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            if (at := self._next.get(tuple(self._ids[-size:]))) is not None:
                return self._ids[at : at + max(0, limit)]
        return []

    def _settle(self) -> None:
        """Learn from the step before, now that it is known how many tokens it gave."""
        gained = len(self._ids) - self._length
        if not self._seconds or not gained:
            return
        if not self._guessed:
            self._plain_s = _blend(self._plain_s, self._seconds)
            return
        self._guess_s = _blend(self._guess_s, self._seconds / gained)
        if self._guess_s > self._plain_s:
            self._paused, self._guess_s = PAUSE, 0.0


def _blend(old: float, new: float) -> float:
    return MEMORY * old + (1 - MEMORY) * new if old else new
