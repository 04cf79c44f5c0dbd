"""Damaged input for every parser: `python tests/fuzz_parsers.py [--executions N] [--seed N] [--only NAME] [--at N]`.

Each parser gets its share of the executions. Whatever it makes of an input, it ends in success or a LlamachatError of one
line within CPU seconds; anything else is printed with the input and what repeats it (`--only` and `--at`), and ends the run
with 1 at its end. The last line is JSON: of each parser the executions, how many were read and refused, how many of these
for a reason that nobody foresaw (an exception that `reading` made an error of), and the slowest.
"""

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from parsers import Parser, parsers

from llamachat.errors import LlamachatError

SECONDS = 10  # of the processor, for one input
LIMITED = 1  # for one that runs in a process with limits of its own
MEMORY = 8 << 30  # bytes of addresses, more than the process has to begin with
FORESEEN = (LlamachatError, ValueError, OSError, RecursionError)  # what damage of a file is usually reported as


class TooLongError(BaseException):
    """No Exception: no parser may take it for an error of its own."""


@dataclass
class Outcome:
    """What became of one parser's executions."""

    counts: Counter[str] = field(default_factory=Counter)
    unforeseen: Counter[str] = field(default_factory=Counter)  # type of exception
    slowest: float = 0.0  # seconds


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def end(signum: int, frame: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one that is on its way would end the process by default


def execute(parser: Parser, seed: int, number: int, outcome: Outcome) -> str | None:
    """One input; a report where something is wrong."""
    data = parser.spoil(random.Random(f"{seed} {parser.name} {number}"))
    begin = time.process_time()
    result, wrong = "read", None
    try:
        with within(LIMITED if parser.limited else SECONDS):
            parser.read(data)
    except LlamachatError as error:
        result = "refused"
        wrong = f"an error of several lines: {str(error)[:300]!r}" if len(str(error).splitlines()) > 1 else None
        note_cause(error, outcome)
    except TooLongError:
        result, wrong = ("refused", None) if parser.limited else ("failed", f"more than {SECONDS} s")
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        result, wrong = "failed", "".join(traceback.format_exception(error)[-6:])
    outcome.counts["failed" if wrong else result] += 1
    outcome.slowest = max(outcome.slowest, time.process_time() - begin)
    return f"{parser.name}, --seed {seed} --at {number}: {wrong}\n{data!r:.2000}" if wrong else None


def note_cause(error: LlamachatError, outcome: Outcome) -> None:
    """An exception of another kind that became an error at a boundary."""
    cause = error.__cause__
    if cause is not None and not isinstance(cause, FORESEEN):
        outcome.unforeseen[type(cause).__name__] += 1


def fuzz(
    chosen: list[Parser], executions: int, seed: int, at: int | None = None
) -> tuple[dict[str, Outcome], list[str]]:
    """Outcomes by parser, and reports of what is wrong."""
    outcomes, reports = {each.name: Outcome() for each in chosen}, list[str]()
    shares = sum(each.share for each in chosen)
    for parser in chosen:
        numbers = range(-(-executions * parser.share // shares)) if at is None else (at,)
        for number in numbers:
            report = execute(parser, seed, number, outcomes[parser.name])
            reports += [report] if report else []
            if len(reports) > 20:
                return outcomes, reports
    return outcomes, reports


def limit_memory() -> None:
    """What wants to allocate without bound gets a MemoryError."""
    held = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--executions", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", help="the parser of this name")
    options.add_argument("--at", type=int, help="its one execution of this number")
    given = options.parse_args()
    from conftest import unpacked_wheel

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as work:
        model = unpacked_wheel("mistral-common==1.13.1") / "mistral_common/data/tokenizer.model.v1"
        chosen = [each for each in parsers(Path(work), model) if given.only in (None, each.name)]
        limit_memory()
        outcomes, reports = fuzz(chosen, given.executions, given.seed, given.at)
    for report in reports:
        print(report)  # noqa: T201
    print(json.dumps(summary(outcomes)))  # noqa: T201
    raise SystemExit(bool(reports))


def summary(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    rows = {
        name: {**each.counts, "unforeseen": dict(each.unforeseen), "slowest_ms": round(1000 * each.slowest, 1)}
        for name, each in outcomes.items()
    }
    total = sum((each.counts for each in outcomes.values()), Counter[str]())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"parsers": rows, "total": {**total, "executions": total.total(), "peak_mb": peak}}


if __name__ == "__main__":
    main()
