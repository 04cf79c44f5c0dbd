"""What the bars (bars.py) are measured with: rows, contests, and whole processes from nothing to their end."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llamachat.bench.contest import Contender, Outcome, measure
from llamachat.bench.machine import bandwidth_of
from llamachat.bench.runners import Spec
from llamachat.bench.work import Work
from llamachat.errors import LlamachatError
from llamachat.models import catalog, fetch
from llamachat.system import environment


@dataclass(frozen=True)
class Row:
    """One measure. `better`: the larger "+" or the smaller "-" the better; `judged` is held against the bar."""

    name: str
    unit: str
    ours: float
    peer: float | None
    judged: float
    bar: float
    better: str = "+"

    @property
    def met(self) -> bool:
        return self.judged >= self.bar if self.better == "+" else self.judged <= self.bar


@dataclass(frozen=True)
class Lab:
    """What every part is measured with."""

    threads: int
    repeats: int
    say: Callable[[str], None]

    def contest(self, specs: Sequence[Spec], works: Sequence[Work], busy: bool = False) -> list[Outcome]:
        """Ours first; a peer that cannot run is left out, which is said."""
        with ExitStack() as stack:
            contenders = [stack.enter_context(Contender(specs[0]))]
            for spec in specs[1:]:
                try:
                    contenders.append(stack.enter_context(Contender(spec)))
                except LlamachatError as error:
                    self.say(f"{spec.kind}: {error}")
            bandwidth = bandwidth_of(self.threads)
            return [measure(contenders, work, self.repeats, bandwidth, busy) for work in works]

    def spec(self, kind: str, works: Sequence[Work], model: str | None = None, **options: object) -> Spec:
        return Spec(kind, self.threads, max(work.context for work in works), model, **options)  # type: ignore[arg-type]


def faster(name: str, outcome: Outcome, part: str, bar: float, at: int = 0) -> Iterator[Row]:
    """How many times faster than the peer, which comes last, the contender `at` is."""
    key = {"prefill_s": "prefill_tok_s", "decode_s": "decode_tok_s"}[part]
    mine, peer = outcome.laps[at], outcome.laps[-1]
    ours = outcome.result(mine)[key]
    if peer.facts.name.startswith("llama.cpp"):
        yield Row(name, "tok/s", ours, outcome.result(peer)[key], outcome.ratio(peer, part, mine), bar)


def share_of_bandwidth(name: str, outcome: Outcome, bar: float) -> Iterator[Row]:
    share = outcome.result(outcome.laps[0]).get("bandwidth_share")
    if share:
        yield Row(name, "share of read bandwidth", share, None, share, bar)


def kept_when_busy(name: str, outcome: Outcome, bar: float) -> Iterator[Row]:
    """The part of their quiet speed that we and the peer keep while another process has a core."""
    ours, *peers = (outcome.busy_share(laps) for laps in outcome.laps)
    yield Row(name, "share of quiet speed", ours, peers[0] if peers else None, ours, bar)


def default_file() -> Path:
    """The default model's, fetched if it is not there."""
    return fetch.fetch(catalog.resolve(None), fetch.silent, False)


LAUNCH = """
import os, resource, subprocess, sys, time
start, null = time.perf_counter(), subprocess.DEVNULL
with subprocess.Popen(sys.argv[1:], stdin=null, stdout=subprocess.PIPE, stderr=null) as process:
    process.stdout.read(1)
    seconds = time.perf_counter() - start
    process.communicate()
print(seconds if process.returncode == 0 else 0.0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def process(command: list[str], extra: Mapping[str, str] | None = None) -> tuple[float, int]:
    """Seconds until it wrote something, or ended, and the most bytes it held; no seconds where it failed.

    It is started by a small process, as what a process holds when it starts another counts as the other's. `extra` is added to
    its environment.
    """
    launched, env = [sys.executable, "-c", LAUNCH, *command], environment.of_ourselves() | dict(extra or {})
    done = subprocess.run(launched, capture_output=True, text=True, check=True, env=env)
    seconds, most = done.stdout.split()
    return float(seconds), int(most) * (1 if sys.platform == "darwin" else 1024)
