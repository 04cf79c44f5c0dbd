"""See gpu_check.sh. Checks that fail are listed last, and end it with 1; what cannot be measured here says why."""

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from gpu_models import LAYERS, PEERS, RandomTorch, layer_error, peer
from gpu_parallel import engine, furthest, written

from llamachat.bench.runners import Ours
from llamachat.bench.shapes import SHAPES
from llamachat.bench.work import Course, Runner
from llamachat.core.spec import ModelSpec
from llamachat.engines.memory import size
from llamachat.engines.torch.engine import free_memory, planned_bytes

DEPTH = 128
ON = {"cuda": (48, 5), "cpu": (4, 1)}  # tokens of a lap, laps: on the CPU this is a rehearsal
SLOTS = 1024
UNKNOWN = "not yet measured"


@dataclass
class Run:
    """Where it runs, for how long, and what has come of it."""

    device: str
    ends: float  # of time.monotonic()
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What a part lacks, or what breaks in it, is said, and the others run."""
        self.say(f"{name} …")
        began = time.monotonic()
        try:
            yield
        except (ImportError, TimeoutError) as error:
            self.say(f"{name}: {error}")
        except torch.OutOfMemoryError as error:
            self.say(f"{name}: {str(error).splitlines()[0]}")
        except Exception as error:  # noqa: BLE001 - the other parts are to run, and this one has failed
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self.say(f"{name}: {time.monotonic() - began:.0f} s")

    def needs(self, seconds: float) -> None:
        """Raises TimeoutError where less time is left."""
        left = self.ends - time.monotonic()
        if left < seconds:
            raise TimeoutError(f"{UNKNOWN}, as {left:.0f} s are left")

    def require(self, what: str, holds: bool) -> str:
        if not holds:
            self.failed.append(what)
        return "yes" if holds else "NO"

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print()
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, no CUDA device: a rehearsal"
    return f"{name}; torch {torch.__version__}"


def copied(device: str) -> float:
    """Bytes a second that a copy on the device reads and writes: the median of some."""
    amount = 1 << (31 if device == "cuda" else 27)
    source, target = (torch.ones(amount, dtype=torch.uint8, device=device) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def once() -> float:
        wait()
        began = time.perf_counter()
        target.copy_(source)
        wait()
        return time.perf_counter() - began

    once()
    return 2 * amount / statistics.median(once() for _ in range(10))


def layers(run: Run) -> Iterator[list[str]]:
    """Each kind of layer, in both dtypes and for one and several tokens, beside the product in float64."""
    for kind, (*_, kernels) in LAYERS.items():
        for dtype, promised in kernels.items():
            with run.part(f"layer {kind}, {dtype}"):
                run.needs(5)
                found = [layer_error(kind, dtype, run.device, tokens) for tokens in (1, 33)]
                kernel, error = found[0][0], max(error for _, error in found)
                right = run.require(f"{kind}, {dtype}: error {error:.2f} of what is allowed", error <= 1)
                if run.device == "cuda":
                    run.require(f"{kind}, {dtype}: {kernel} multiplies it, promised is {promised}", kernel == promised)
                yield [kind, dtype, kernel, f"{error:.2f}", right]


def laps(device: str, runners: Sequence[Runner]) -> list[list[float]]:
    """Tokens a second of each runner in each lap, in turn, after one to warm up."""
    tokens, count = ON[device]
    courses = [Course(runner) for runner in runners]
    found: list[list[float]] = [[] for _ in runners]
    for lap in range(count + 1):
        for course, speeds in zip(courses, found, strict=True):
            course.reach(DEPTH)
            seconds = course.decode(tokens)
            speeds += [tokens / seconds] if lap else []
    return found


def decode(run: Run, spec: ModelSpec, scheme: str, bandwidth: float) -> list[str]:
    """A row: our decode, its share of the copy bandwidth, the peer's, how many times faster ours is."""
    row = [scheme, UNKNOWN, UNKNOWN, UNKNOWN, PEERS[scheme], UNKNOWN, UNKNOWN]
    with run.part(f"decode, {scheme}"):
        run.needs(60)
        before = free_memory(run.device)
        ours = RandomTorch(spec, scheme, run.device, SLOTS)
        row[3] = plan(run, spec, ours, before)
        (speeds,) = laps(run.device, [ours])
        row[1:3] = _shown(speeds, ours, bandwidth)
        other = peer(spec, scheme, run.device)
        speeds, theirs = laps(run.device, [ours, other])
        row[1:3] = _shown(speeds, ours, bandwidth)
        ratio = statistics.median(a / b for a, b in zip(speeds, theirs, strict=True))
        row[5:] = f"{statistics.median(theirs):.1f}", f"{ratio:.2f}"
    return row


def _shown(speeds: Sequence[float], ours: RandomTorch, bandwidth: float) -> list[str]:
    read = ours.read + ours.engine.kv_bytes / SLOTS * DEPTH
    return [f"{statistics.median(speeds):.1f}", f"{statistics.median(speeds) * read / bandwidth:.0%}"]


def plan(run: Run, spec: ModelSpec, ours: RandomTorch, before: int) -> str:
    """The plan of memory beside what was taken of the GPU."""
    planned, held = sum(_planned(spec, ours, run.device)), ours.engine.weight_bytes + ours.engine.kv_bytes
    run.require(f"planned {size(planned)}, held {size(held)}", planned == held)
    if run.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        taken = before - free_memory(run.device)
        run.require(f"planned {size(planned)}, taken {size(taken)}", taken <= planned * 1.03 + (256 << 20))
        return f"{size(planned)}, {size(taken)}"
    return f"{size(planned)}, {size(held)}"


def _planned(spec: ModelSpec, ours: RandomTorch, device: str) -> tuple[int, int]:
    return planned_bytes(spec, ours.index, slots=SLOTS, device=device, dtype="bfloat16", kv_bits=16)


def parallel(run: Run, spec: ModelSpec) -> Iterator[list[str]]:
    """One model over the GPUs that there are, or where there is one or none over two processes on the CPU."""
    gpus = torch.cuda.device_count()
    device, count = ("cuda", gpus) if gpus > 1 else ("cpu", 2)
    with run.part(f"tensor parallel, {count} processes, {device}"), written(spec) as folder:
        run.needs(60)
        error = furthest(folder, device, count)
        right = run.require(f"{count} processes: logits differ by {error:.1e} of the largest", error <= 1e-5)
        one, several = UNKNOWN, UNKNOWN
        if device == "cuda":
            with (
                engine(folder, device, 1, SLOTS, "bfloat16") as a,
                engine(folder, device, count, SLOTS, "bfloat16") as b,
            ):
                found = laps(device, [Ours(a), Ours(b)])
                one, several = (f"{statistics.median(speeds):.1f}" for speeds in found)
        yield [f"{count}, {device}", f"{error:.1e}", right, one, several]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, help="8b on a GPU, else 135m")
    parser.add_argument("--minutes", type=float, default=7.5, help="parts that would take longer are left out")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = Run(device, time.monotonic() + 60 * given.minutes)
    shape = given.shape or ("8b" if device == "cuda" else "135m")
    print(f"{machine(device)}; shape {shape}")
    table(["layer", "dtype", "kernel", "error, of what is allowed", "right"], [*layers(run)])
    bandwidth = copied(device)
    print(f"\nA copy on the device reads and writes {bandwidth / 1e9:.0f} GB/s.")
    head = [
        "weights",
        "tok/s",
        "of the copy bandwidth",
        "memory planned, taken",
        "bitsandbytes",
        "tok/s",
        "times faster",
    ]
    table(head, [decode(run, SHAPES[shape], scheme, bandwidth) for scheme in PEERS])
    head = ["processes", "largest difference of a logit", "right", "tok/s of one", "tok/s of all"]
    table(head, [*parallel(run, SHAPES["1b" if device == "cuda" else "135m"])])
    for line in run.failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
