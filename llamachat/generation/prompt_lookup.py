"""Prompt lookup: guess the next tokens from an earlier place where the last few stood (Saxena 2023; Leviathan et al. 2023).

A guess is run in one step with the token before it, and what it gives is only kept where the sampler draws the same tokens,
so guessing changes the time, never the text. It pays where an answer repeats its prompt (edit this, quote that) and costs
elsewhere. So what guesses gained or lost is measured in plain steps and kept as a balance, and nothing is guessed whose
loss the balance could not bear: a long answer in which no guess is right takes about half a per cent longer.
"""

from collections.abc import Sequence

from llamachat.core.sampler import Constraint

LONGEST, SHORTEST = 6, 4  # so many tokens must have stood there before
FIRST, MOST = 4, 16  # tokens of a guess: at first, and after others were right to the end
ALLOWANCE = 1.75  # plain steps that may be lost in an answer
SHARE = 0.005  # of each plain step, that may be lost besides
MEMORY = 0.8  # weight of what was measured before against the latest step
EXTRA = 0.35  # of a plain step, that each guessed token costs, until that is known


class Drafter:
    """Guesses for one sequence. It must be told of every token of it, and how long every step took."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # a few tokens -> where the text went on behind them, lately
        self._plain_s = 0.0  # seconds of a step of one token; 0: not known yet
        self._extra, self._balance = EXTRA, ALLOWANCE  # in plain steps
        self._longest = FIRST
        self._guessed, self._seconds, self._length = 0, 0.0, 0  # the step under way; length of the text before it
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The sequence goes on with this token."""
        ids = self._ids
        for size in range(SHORTEST, min(LONGEST, len(ids)) + 1):
            self._next[tuple(ids[-size:])] = len(ids)
        ids.append(token)

    def guess(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none where there is nothing to go by, or guessing does not pay."""
        self._settle()
        self._length = len(self._ids)
        affordable = int(self._balance / self._extra) if self._plain_s else 0
        found = self._look_up(min(limit, self._longest, affordable))
        self._guessed = len(found)
        return found

    def stepped(self, seconds: float) -> None:
        """The step with the last guess took so long."""
        self._seconds = seconds

    def _look_up(self, limit: int) -> list[int]:
        for size in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            if (at := self._next.get(tuple(self._ids[-size:]))) is not None:
                found = self._ids[at : at + max(0, limit)]
                return [found[i % len(found)] for i in range(limit)]  # a text that repeats itself goes on doing so
        return []

    def _settle(self) -> None:
        """Learn from the step before, now that it is known how many tokens it gave."""
        gained = len(self._ids) - self._length
        if not self._seconds or not gained:
            return
        if not self._guessed:
            self._plain_s = _blend(self._plain_s, self._seconds)
            self._balance += SHARE
        elif self._plain_s:
            cost = self._seconds / self._plain_s
            self._extra = max(SHARE, _blend(self._extra, (cost - 1) / self._guessed))
            self._balance = min(self._balance + gained - cost, 2 * ALLOWANCE)
            right = gained == self._guessed + 1
            self._longest = min(2 * self._longest, MOST) if right else max(FIRST, min(self._longest, gained))


class ForcedDrafter(Drafter):
    """Guesses what a constraint leaves no choice about, such as the keys of an object; else as any."""

    def __init__(self, ids: Sequence[int], constraint: Constraint) -> None:
        super().__init__(ids)
        self._constraint = constraint

    def guess(self, limit: int) -> list[int]:
        guessed, forced = super().guess(limit), self._constraint.forced()[: max(0, limit)]
        self._guessed = len(forced or guessed)
        return forced or guessed


def _blend(old: float, new: float) -> float:
    return MEMORY * old + (1 - MEMORY) * new if old else new
