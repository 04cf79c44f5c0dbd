"""Guesses how an answer goes on by what was said before: drafts for speculative decoding without a draft model.

The longest suffix of the sequence that stood before, in the dialog or in earlier answers, is taken to go on as it did there
(prompt lookup, Saxena 2023; SuffixDecoding, Oliaro et al. 2024, arXiv 2411.04975). A draft is verified in one step with the
token before it, and its tokens are accepted only where the sampler draws the same ones (Leviathan et al. 2023): guesses
change the time, never the text.

How often a guess is right is learned by how many tokens agreed before it, from every token that comes, drafted or not; what a
step of several tokens costs is measured. A draft is as long as makes the most of these, and none where that is not faster. What
drafts lost is kept as a balance besides, so that even an answer where all of them are wrong takes less than a per cent longer.
"""

from collections.abc import Sequence

from llamachat.core.sampler import Constraint
from llamachat.generation.step_costs import StepCosts
from llamachat.generation.suffixes import GAP, GrowingText, SuffixArray, agreement

DRAFT_MAX = 16  # tokens
ENOUGH = 6  # tokens that agree with a place in the dialog, for which no better one is looked for in earlier answers
ALLOWANCE = 0.6  # steps of one token that an answer may lose
SHARE = 0.004  # of each such step, that it may lose besides
MOST_LOST = 8.0  # such steps of those that drafts have gained, which they may lose again
MARGIN = 0.05  # that a draft must be expected to gain
SAID, EARLIER = (0.1, 0.35, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95), (0.05, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_KINDS = (0, 1, 2, 3, 4, *[5] * 2, *[6] * 5, *[7] * 20, 8)  # of as many tokens that agreed, with one rate each


class Rates:
    """How often a guess is right, by the number of tokens that agreed before it."""

    WEIGHT, LATEST = 8.0, 32.0  # guesses that what is taken before any counts for, and that count at all

    def __init__(self, before: Sequence[float]) -> None:
        self._made, self._right = [self.WEIGHT] * len(before), [self.WEIGHT * rate for rate in before]

    def of(self, agreed: int) -> float:
        kind = _KINDS[min(agreed, len(_KINDS) - 1)]
        return self._right[kind] / self._made[kind]

    def learn(self, agreed: int, right: bool) -> None:
        kind = _KINDS[min(agreed, len(_KINDS) - 1)]
        made = self._made[kind] + 1
        fade = min(1.0, self.LATEST / made)
        self._made[kind], self._right[kind] = made * fade, (self._right[kind] + right) * fade


class Follower:
    """A place in a text that the sequence has agreed with so far."""

    def __init__(self, rates: Rates, ids: Sequence[int]) -> None:
        self._rates, self._ids = rates, ids
        self._at, self._agreed = 0, 0

    @property
    def guess(self) -> int:
        """The token that comes next if it goes on so; GAP: there is no such place."""
        return self._ids[self._at] if 0 < self._at < len(self._ids) else GAP

    def rate(self, further: int) -> float:
        """How often the guess of the token behind `further` right ones is right."""
        return self._rates.of(self._agreed + further)

    def hear(self, token: int) -> bool:
        """This token has come; whether it was the guess, and the next one is that behind it."""
        if (guess := self.guess) == GAP:
            return False
        self._rates.learn(self._agreed, guess == token)
        self._at, self._agreed = self._at + 1, self._agreed + 1
        return guess == token

    def go_to(self, at: int, agreed: int) -> None:
        """Another place, behind so many tokens that the sequence agrees with; 0: none."""
        self._at, self._agreed = at, agreed

    @property
    def agreed(self) -> int:
        return self._agreed

    def draft(self, limit: int) -> list[int]:
        """What follows; the end of a text that repeats itself goes on doing so."""
        found = list(self._ids[self._at : self._at + limit])
        if GAP in found:
            return found[: found.index(GAP)]
        return [found[i % len(found)] for i in range(limit)]


class Guesses:
    """All that guesses are made by, from answer to answer of one model. It lives in memory alone."""

    def __init__(self) -> None:
        self.costs = StepCosts(1 + DRAFT_MAX)
        self.text, self.earlier = GrowingText(), SuffixArray()
        self.rates = Rates(SAID), Rates(EARLIER)

    def begin(self, ids: Sequence[int], constraint: Constraint | None = None) -> "Guesser":
        """Of an answer that goes on from these; one at a time. `constraint`: see Guesser."""
        return Guesser(self, ids, constraint)

    def forget(self) -> None:
        """All texts."""
        self.text.forget()
        self.earlier = SuffixArray()


class Guesser:
    """The drafter of one answer. What a constraint leaves no choice about, such as the keys of an object, is drafted first."""

    def __init__(self, guesses: Guesses, ids: Sequence[int], constraint: Constraint | None) -> None:
        self._text, self._earlier, self._costs = guesses.text, guesses.earlier, guesses.costs
        self._constraint, self._balance = constraint, ALLOWANCE
        place = self._text.begin(ids)
        self._said = Follower(guesses.rates[0], self._text.ids)
        self._other = Follower(guesses.rates[1], self._earlier.ids)
        self._said.go_to(place, agreement(self._text.ids, place, self._text.ids))
        self._other.go_to(*self._earlier.find(self._text.ids))
        self._drafted, self._seconds, self._length = 0, 0.0, 0  # the step under way; length of the text before it
        self._forced = False  # whether its draft is a constraint's

    def add(self, token: int) -> None:
        """The sequence goes on with this token."""
        went_on, place, ids = self._said.hear(token), self._text.add(token), self._text.ids
        if not went_on:
            self._said.go_to(place, agreement(ids, place, ids))
        if not self._other.hear(token):
            self._other.go_to(*(self._earlier.find(ids) if self._said.agreed < ENOUGH else (0, 0)))

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none where there is nothing to go by, or drafting does not pay."""
        self._settle()
        self._length = len(self._text.ids)
        found = self._constraint.forced()[: max(0, limit)] if self._constraint else []
        self._forced = bool(found)
        found = found or self._best(min(limit, DRAFT_MAX, self._costs.foreseen - 1))
        self._drafted = len(found)
        return found

    def stepped(self, seconds: float) -> None:
        """The step with the last draft took so long."""
        self._seconds = seconds

    def _best(self, limit: int) -> list[int]:
        if not self._costs.known:
            return []
        (gain, length), (other_gain, other_length) = self._worth(self._said, limit), self._worth(self._other, limit)
        if other_gain > gain:
            return self._other.draft(other_length)
        return self._said.draft(length) if length else []

    def _worth(self, follower: Follower, limit: int) -> tuple[float, int]:
        """How many times faster a draft of the best length makes the step, as far as one can tell, and that length."""
        best, length = 1 + MARGIN, 0
        if follower.guess == GAP:
            return best, length
        expected = chance = 1.0
        for count in range(1, limit + 1):
            chance *= follower.rate(count - 1)
            expected += chance
            cost = self._costs.of(count + 1)
            if cost - 1 > self._balance:
                break
            if expected > best * cost:
                best, length = expected / cost, count
        return best, length

    def _settle(self) -> None:
        """Learn from the step before, now that it is known how many tokens it gave."""
        gained = len(self._text.ids) - self._length
        if not self._seconds or not gained or not (self._costs.known or not self._drafted):
            return
        cost = self._costs.step(1 + self._drafted, self._seconds)
        if not self._forced:
            self._balance = min(self._balance + (gained - cost if self._drafted else SHARE), MOST_LOST)
