"""Prompt lookup decoding: draft the next tokens from an earlier place where the last few stood (Saxena 2023).

A draft is verified in one step with the token before it, and its tokens are accepted only where the sampler draws the same
ones (Leviathan et al. 2023), so drafting changes the time, never the text. It pays where an answer repeats its prompt (edit
this, quote that) and costs elsewhere. So what drafts gained or lost is measured in plain steps and kept as a balance, and
nothing is drafted whose loss the balance could not bear: a long answer of which no draft is accepted takes about half a per
cent longer.
"""

from collections.abc import Sequence

from llamachat.core.sampler import Constraint

NGRAM_MAX, NGRAM_MIN = 6, 4  # so many tokens must have stood there before
DRAFT_FIRST, DRAFT_MAX = 4, 16  # tokens of a draft: at first, and after others were accepted to the end
ALLOWANCE = 1.75  # plain steps that may be lost in an answer
SHARE = 0.005  # of each plain step, that may be lost besides
MEMORY = 0.8  # weight of what was measured before against the latest step
EXTRA = 0.35  # of a plain step, that each draft token costs, until that is known


class PromptLookup:
    """The drafter of one sequence. It must be told of every token of it, and how long every step took."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> where the text went on behind it, lately
        self._plain_s = 0.0  # seconds of a step of one token; 0: not known yet
        self._extra, self._balance = EXTRA, ALLOWANCE  # in plain steps
        self._longest = DRAFT_FIRST
        self._drafted, self._seconds, self._length = 0, 0.0, 0  # the step under way; length of the text before it
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The sequence goes on with this token."""
        ids = self._ids
        for size in range(NGRAM_MIN, min(NGRAM_MAX, len(ids)) + 1):
            self._next[tuple(ids[-size:])] = len(ids)
        ids.append(token)

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none where there is nothing to go by, or drafting does not pay."""
        self._settle()
        self._length = len(self._ids)
        affordable = int(self._balance / self._extra) if self._plain_s else 0
        found = self._look_up(min(limit, self._longest, affordable))
        self._drafted = len(found)
        return found

    def stepped(self, seconds: float) -> None:
        """The step with the last draft took so long."""
        self._seconds = seconds

    def _look_up(self, limit: int) -> list[int]:
        for size in range(min(NGRAM_MAX, len(self._ids)), NGRAM_MIN - 1, -1):
            if (at := self._next.get(tuple(self._ids[-size:]))) is not None:
                found = self._ids[at : at + max(0, limit)]
                return [found[i % len(found)] for i in range(limit)]  # a text that repeats itself goes on doing so
        return []

    def _settle(self) -> None:
        """Learn from the step before, now that it is known how many tokens it gave."""
        gained = len(self._ids) - self._length
        if not self._seconds or not gained:
            return
        if not self._drafted:
            self._plain_s = _blend(self._plain_s, self._seconds)
            self._balance += SHARE
        elif self._plain_s:
            cost = self._seconds / self._plain_s
            self._extra = max(SHARE, _blend(self._extra, (cost - 1) / self._drafted))
            self._balance = min(self._balance + gained - cost, 2 * ALLOWANCE)
            accepted = gained == self._drafted + 1
            self._longest = (
                min(2 * self._longest, DRAFT_MAX) if accepted else max(DRAFT_FIRST, min(self._longest, gained))
            )


class ForcedDrafter(PromptLookup):
    """Drafts what a constraint leaves no choice about, such as the keys of an object; else as prompt lookup does."""

    def __init__(self, ids: Sequence[int], constraint: Constraint) -> None:
        super().__init__(ids)
        self._constraint = constraint

    def draft(self, limit: int) -> list[int]:
        found, forced = super().draft(limit), self._constraint.forced()[: max(0, limit)]
        self._drafted = len(forced or found)
        return forced or found


def _blend(old: float, new: float) -> float:
    return MEMORY * old + (1 - MEMORY) * new if old else new
