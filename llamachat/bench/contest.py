"""Runs engines in turn on the same work, beside the memory's speed, and makes medians of what they took."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from llamachat.bench.busy import busy_core
from llamachat.bench.runners import Facts, Spec
from llamachat.bench.work import Work
from llamachat.errors import LlamachatError, UsageError
from llamachat.system import environment


class Contender:
    """A runner in a process of its own, so that no two engines' threads share one."""

    def __init__(self, spec: Spec) -> None:
        command = [sys.executable, "-m", "llamachat.cli.bench_process", json.dumps(asdict(spec))]
        pipe, env = subprocess.PIPE, environment.of_ourselves()
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        try:
            self.facts = Facts(**self._answer())
        except LlamachatError:
            self.__exit__()
            raise

    def run(self, work: Work) -> dict[str, Any]:
        """Do the work once: what `runners.serve` says of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(work)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UsageError("an engine could not be measured", "its process ended", "see its own message above")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            error = LlamachatError(said["error"])
            error.exit_code = said["exit_code"]
            raise error
        return said


@dataclass
class Laps:
    """What one contender took in each repeat."""

    facts: Facts
    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)  # of decoding while another process kept a core busy
    peak: int = 0
    profile: dict[str, float] = field(default_factory=dict)  # of the last repeat

    def add(self, taken: dict[str, Any]) -> None:
        self.prefill_s.append(taken["prefill_s"])
        self.decode_s.append(taken["decode_s"])
        self.peak, self.profile = taken["peak"], taken["profile"]


@dataclass
class Outcome:
    """A contest: the contenders' laps, ours first, and the bytes a second that memory gave in each repeat."""

    work: Work
    laps: list[Laps]
    bandwidth: list[float]

    def read(self, laps: Laps) -> float:
        """Bytes of weights, keys and values that a decoded token reads."""
        return laps.facts.read + laps.facts.kv * (self.work.start + self.work.decode / 2)

    def result(self, laps: Laps) -> dict[str, Any]:
        """Medians of one contender, by name; without what could not be measured."""
        facts, work, read = laps.facts, self.work, self.read(laps)
        decode = [work.decode / seconds if seconds else 0.0 for seconds in laps.decode_s]
        found = {
            "prefill_tok_s": work.prompt / statistics.median(laps.prefill_s) if work.prompt else 0.0,
            "decode_tok_s": statistics.median(decode),
            "load_s": facts.load_s,
            "first_token_s": facts.load_s + statistics.median(laps.prefill_s) if facts.load_s and work.prompt else 0.0,
            "weights_mb": facts.weights / 1e6,
            "kv_mb": facts.kv * facts.slots / 1e6,
            "loaded_mb": facts.resident / 1e6,
            "peak_mb": laps.peak / 1e6,
            "read_mb_per_token": read / 1e6,
            "bandwidth_share": self._share(decode, read),
            "busy_share": self.busy_share(laps),
        }
        kept = {key: float(f"{value:.4g}") for key, value in found.items() if value}
        return kept | ({"profile_ms": laps.profile} if laps.profile else {})

    def busy_share(self, laps: Laps) -> float:
        """The part of its quiet speed that a contender keeps while another process has a core; 0 where not measured."""
        shares = [quiet / busy for quiet, busy in zip(laps.decode_s, laps.busy_s, strict=False)]
        return statistics.median(shares) if shares else 0.0

    def _share(self, decode: list[float], read: float) -> float:
        shares = [speed * read / limit for speed, limit in zip(decode, self.bandwidth, strict=True) if limit]
        return statistics.median(shares) if shares else 0.0

    def ratio(self, laps: Laps, part: str, ours: Laps | None = None) -> float:
        """How many times faster we were: the median of the repeats' own ratios. `part` is prefill_s or decode_s."""
        mine: list[float] = getattr(ours or self.laps[0], part)
        theirs: list[float] = getattr(laps, part)
        return statistics.median(b / a for a, b in zip(mine, theirs, strict=True) if a)


def measure(
    contenders: Sequence[Contender],
    work: Work,
    repeats: int,
    bandwidth: Callable[[int], float] = lambda amount: 0.0,
    busy: bool = False,
) -> Outcome:
    """All in turn in every repeat, after one to warm up; `bandwidth` is of as many bytes as our decoded token reads.

    `busy`: each decodes a second time in every repeat, while another process keeps a core busy.
    """
    outcome = Outcome(work, [Laps(contender.facts) for contender in contenders], [])
    for repeat in range(repeats + 1):
        for contender, laps in zip(contenders, outcome.laps, strict=True):
            taken = contender.run(work)
            if repeat:
                laps.add(taken)
        if repeat and busy:
            with busy_core():
                for contender, laps in zip(contenders, outcome.laps, strict=True):
                    laps.busy_s.append(contender.run(replace(work, prompt=0, depth=work.start))["decode_s"])
        if repeat:
            outcome.bandwidth.append(bandwidth(int(outcome.read(outcome.laps[0]))))
    return outcome
