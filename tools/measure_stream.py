"""A long text through a small window: python tools/measure_stream.py [--tokens 1000000].

Python's own manual and library, teacher-forced through a rolling cache of the native engine: speed and memory must stay
what they were at the first full window, and the text as likely as with the window read anew (StreamingLLM's sliding
recomputation). That window read anew, in which nothing was ever evicted, is also what step times are compared with, in
turn, so that a machine whose speed drifts slows both. The control does the same with nothing pinned.
The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from llamachat.core.cache import Cache
from llamachat.core.generate import advance, prefill
from llamachat.generation.perplexity import manual
from llamachat.models.load import LoadedModel, load

PROBE = 32  # tokens before the window is full that are run one by one in a sample


def texts() -> Iterator[str]:
    """The manual, then the library's sources."""
    yield manual()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(errors="ignore")


def tokens(model: LoadedModel, count: int) -> NDArray[np.int32]:
    """So many at most, as one array, which takes less memory than a list and does not move."""
    parts, total = [np.array(model.encode_text(""), np.int32)], 0
    for text in texts():
        parts.append(np.array(model.tokenizer.encode(text), np.int32))
        total += len(parts[-1])
        if total >= count:
            break
    return np.concatenate(parts)[:count]


def resident() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class Sample:
    """At one place of the text, where the window is full: of PROBE tokens that are run one by one."""

    at: int
    evictions: int
    step_ms: list[float] = field(default_factory=list)
    anew_ms: list[float] = field(default_factory=list)  # with the window read anew
    nll: list[float] = field(default_factory=list)
    anew: list[float] = field(default_factory=list)
    resident_mb: float = 0.0


class Stream:
    """`ids` through a window. The engine has slots for two of them: this one, and one to read anew."""

    def __init__(self, engine: Any, ids: NDArray[np.int32], window: int, pinned: int, step: int) -> None:
        self.engine, self.ids, self.window, self.step = engine, ids, window, step
        self.cache, self.fresh = Cache(window), Cache(window, window)
        self.cache.pin(pinned)
        self.at = self.evictions = 0
        self.samples: list[Sample] = []

    def run(self, every: int) -> None:
        """To the end; a sample about every so many tokens, the first one in the first full window."""
        start, due = time.perf_counter(), 0
        while self.at + self.step + PROBE < len(self.ids):
            free = self.cache.free - (PROBE if self.at >= due else 0)
            if free > 0:
                self._advance(self.cache, min(self.step, free))
                continue
            if self.cache.free:
                due = self.at + every
                self._sample()
                progress(self.at, len(self.ids), time.perf_counter() - start, self.samples[-1])
            self.cache.evict(self.window // 4)
            self.evictions += 1

    def _sample(self) -> None:
        sample = Sample(self.at, self.evictions)
        self.fresh.truncate(0)
        prefill(self.engine, self.fresh, self.cache.log)
        for _ in range(PROBE):
            following = int(self.ids[self.at + 1])
            for cache, ms, nll in (
                (self.fresh, sample.anew_ms, sample.anew),
                (self.cache, sample.step_ms, sample.nll),  # last, for it moves on
            ):
                begin = time.perf_counter()
                logits = self._advance(cache, 1)
                ms.append(1e3 * (time.perf_counter() - begin))
                nll.append(surprise(logits, following))
        sample.resident_mb = resident()
        self.samples.append(sample)

    def _advance(self, cache: Cache, count: int) -> NDArray[np.float32]:
        ids = self.ids[self.at : self.at + count].tolist()
        self.at += count if cache is self.cache else 0
        return advance(self.engine, cache, ids)


def surprise(logits: NDArray[np.float32], token: int) -> float:
    """Negative log-likelihood of a token."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return float(top + np.log(np.exp(wide - top).sum()) - wide[token])


def seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def progress(at: int, total: int, spent: float, sample: Sample) -> None:
    sys.stderr.write(
        f"{at}/{total} tokens, {at / spent:.0f} a second, {sample.evictions} evictions, {sample.resident_mb:.1f} MB, "
        f"step {statistics.median(sample.step_ms):.2f} ms (anew {statistics.median(sample.anew_ms):.2f}), "
        f"nll {np.mean(sample.nll):.3f} (anew {np.mean(sample.anew):.3f})\n"
    )


def mean(samples: list[Sample], name: str) -> float:
    return float(np.mean([getattr(sample, name) for sample in samples]))


def median(samples: list[Sample], name: str) -> float:
    return float(statistics.median(value for sample in samples for value in getattr(sample, name)))


def summary(stream: Stream, spent: float) -> dict[str, Any]:
    """`above` is by how much ours exceeds a window read anew; its error is that of the mean over samples."""
    first, *samples = stream.samples
    memory, step, anew_ms = [s.resident_mb for s in samples], median(samples, "step_ms"), median(samples, "anew_ms")
    nll, anew = mean(samples, "nll"), mean(samples, "anew")
    differences = [np.mean(sample.nll) - np.mean(sample.anew) for sample in samples]
    return {
        "tokens": stream.at,
        "seconds": spent,
        "tok_s": stream.at / spent,
        "evictions": stream.evictions,
        "samples": len(samples),
        "resident_first_mb": first.resident_mb,
        "resident_last_mb": memory[-1],
        "resident_growth_percent": 100 * (max(memory) / first.resident_mb - 1),
        "step_ms": step,
        "step_anew_ms": anew_ms,
        "step_above_percent": 100 * (step / anew_ms - 1),
        "step_in_the_first_window_ms": median([first], "step_ms"),
        "nll": nll,
        "nll_anew": anew,
        "nll_above_percent": 100 * (nll / anew - 1),
        "nll_above_error_percent": 100 * float(np.std(differences, ddof=1)) / len(samples) ** 0.5 / anew,
    }


def print_log(samples: list[Sample], lines: int = 10) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("tokens", "evictions", "MB", "step ms", "read anew", "nll", "read anew"):
        table.add_column(column, justify="right")
    parts = np.array_split(np.arange(1, len(samples)), min(lines, len(samples) - 1))
    for some in ([samples[0]], *([samples[index] for index in part] for part in parts)):
        numbers = median(some, "step_ms"), median(some, "anew_ms"), mean(some, "nll"), mean(some, "anew")
        last, cells = some[-1], (f"{number:.3f}" for number in numbers)
        table.add_row(f"{last.at:,}", f"{last.evictions:,}", f"{last.resident_mb:.1f}", *cells)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="by default the default model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--pinned", type=int, default=4)
    parser.add_argument("--step", type=int, default=128, help="tokens a forward")
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--control-tokens", type=int, default=12_000)
    arguments = parser.parse_args()
    model = load(arguments.model, ctx_size=2 * arguments.window, engine="native", threads=arguments.threads)
    ids = tokens(model, arguments.tokens)
    results: dict[str, Any] = {"model": model.name, "engine": model.engine.describe(), "window": arguments.window}
    runs = {"rolling": (ids, arguments.pinned), "nothing_pinned": (ids[: arguments.control_tokens], 0)}
    for name, (text, pinned) in runs.items():
        stream = Stream(model.engine, text, arguments.window, pinned, arguments.step)
        every = max(1, len(ids) // arguments.samples) if name == "rolling" else 1
        spent = seconds(lambda stream=stream, every=every: stream.run(every))
        results[name] = summary(stream, spent)
        sys.stdout.write(f"\n{name.replace('_', ' ')}, {pinned} tokens pinned\n")
        print_log(stream.samples)
        sys.stdout.write(", ".join(f"{key} {value:.5g}" for key, value in results[name].items()) + "\n")
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
