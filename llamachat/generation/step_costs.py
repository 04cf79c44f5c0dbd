"""What a step of several tokens takes, in steps of one token: measured as it runs, guessed from its neighbours until then."""

from itertools import pairwise

EACH = 0.25  # of a step of one token, that each further one is taken to cost at most until that has been measured
SURPRISE = 2.0  # times what is expected, that a step counts for at most: real changes come again, others do not
FIRST = 4  # tokens of the longest step that is tried before others have been measured
KEPT = 5  # latest measurements that count
LASTING = 256  # steps after which a cost that was not measured again may have become another


class StepCosts:
    """Of one model on this machine at this time."""

    def __init__(self, most: int) -> None:
        """For steps of up to `most` tokens."""
        self._single: list[float] = []  # seconds
        self._measured: dict[int, list[float]] = {}  # by the number of tokens
        self._lately: set[int] = set()  # of which there are new ones
        self._steps = 0
        self._costs = [1 + EACH * further for further in range(most)]

    @property
    def known(self) -> bool:
        """Whether a step of one token has been measured."""
        return bool(self._single)

    @property
    def foreseen(self) -> int:
        """Tokens of the longest step whose cost can be told from those that were measured."""
        return max(FIRST, 2 * max(self._measured, default=0))

    def of(self, tokens: int) -> float:
        """A step of so many."""
        return self._costs[tokens - 1]

    def step(self, tokens: int, seconds: float) -> float:
        """One has been run; returns what that cost, or SURPRISE times what was expected where the machine was disturbed."""
        self._steps += 1
        if self._steps % LASTING == 0:
            self._measured = {count: self._measured[count] for count in self._lately}
            self._lately = set()
            self._interpolate()
        if tokens == 1:
            self._single = [*self._single, seconds][-KEPT:]
            return 1.0
        from statistics import median  # which an answer of one token needs not

        cost = seconds / median(self._single)
        if tokens <= len(self._costs):
            cost = min(max(cost, 1.0), SURPRISE * self.of(tokens))
            self._measured[tokens] = [*self._measured.get(tokens, ()), cost][-KEPT:]
            self._lately.add(tokens)
            self._interpolate()
        return cost

    def _interpolate(self) -> None:
        """Costs between those that were measured lie on a line, or below it where that would keep them from being tried; those
        behind the last go on as from the first to it."""
        most = len(self._costs)
        points = [(1, 1.0), *((count, sum(each) / len(each)) for count, each in sorted(self._measured.items()))]
        last, cost = points[-1]
        slope = (cost - 1) / (last - 1) if last > 1 else EACH
        for (low, less), (high, more) in pairwise([*points, (most + 1, cost + slope * (most + 1 - last))]):
            for count in range(low + 1, high):
                line = less + (more - less) * (count - low) / (high - low)
                self._costs[count - 1] = min(line, less + EACH * (count - low))
            if high <= most:
                self._costs[high - 1] = more
