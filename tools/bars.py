"""The project's own bars, each measured beside llama.cpp in this run: python tools/bars.py [--only PART ...].

Random weights of real shapes for speed, the default model for what needs one. Each part loads its models once, and gives
rows; parts that need no more than rows not asked for are left out.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from llamachat.bench import drafts, report
from llamachat.bench.contest import Contender, Outcome, measure
from llamachat.bench.machine import bandwidth_of
from llamachat.bench.runners import Facts, Spec
from llamachat.bench.shapes import gguf_file
from llamachat.bench.work import Work
from llamachat.engines.native.engine import default_threads
from llamachat.errors import LlamachatError
from llamachat.models import catalog, fetch
from llamachat.models.load import load
from llamachat.system import environment

SPARE = 150_000_000  # bytes that a process may hold beside 1.1 times its weights, keys and values


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

    def contest(self, specs: Sequence[Spec], works: Sequence[Work]) -> list[Outcome]:
        """Ours first; a peer that cannot run is left out, which is said."""
        with ExitStack() as stack:
            contenders = [stack.enter_context(Contender(specs[0]))]
            for spec in specs[1:]:
                try:
                    contenders.append(stack.enter_context(Contender(spec)))
                except LlamachatError as error:
                    self.say(f"{spec.kind}: {error}")
            return [measure(contenders, work, self.repeats, bandwidth_of(self.threads)) for work in works]

    def spec(self, kind: str, works: Sequence[Work], model: str | None = None, **options: str) -> Spec:
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


def default_file() -> str:
    return str(fetch.fetch(catalog.resolve(None), fetch.silent, False))


def _smollm2(lab: Lab) -> Iterator[Row]:
    works = [Work(prompt=512, decode=64, depth=128)]
    file = default_file()
    (outcome,) = lab.contest([lab.spec("llamachat", works), lab.spec("llama.cpp", works, file)], works)
    yield from faster("decode, SmolLM2 Q4_1", outcome, "decode_s", 3.0)
    yield from faster("prefill 512, SmolLM2 Q4_1", outcome, "prefill_s", 2.5)


def _one_b(lab: Lab) -> Iterator[Row]:
    near, deep = Work(prompt=512, decode=32, depth=128), Work(decode=32, depth=4096)
    ours = [lab.spec("llamachat", [near, deep], shape="1b", scheme=scheme) for scheme in ("int4-head8", "int4")]
    with gguf_file("1b", eight=False) as file:
        peer = lab.spec("llama.cpp", [near, deep], str(file))
        (outcome,) = lab.contest([*ours, peer], [near])
        (deeper,) = lab.contest([ours[0], peer], [deep])
    yield from faster("decode, 1B int4, int8 head", outcome, "decode_s", 1.15)
    yield from share_of_bandwidth("decode, 1B int4, int8 head", outcome, 0.92)
    yield from faster("decode, 1B int4, int4 head", outcome, "decode_s", 1.35, at=1)
    yield from faster("prefill 512, 1B int4", outcome, "prefill_s", 2.5)
    yield from faster("decode at 4096, 1B int4, f16 KV", deeper, "decode_s", 1.2)
    yield _memory("resident, 1B int4 (context 4128)", deeper)


def _one_b_int8(lab: Lab) -> Iterator[Row]:
    yield from _decode(lab, "1b", "int8", Work(decode=24, depth=64), 1.0)


def _eight_b(lab: Lab) -> Iterator[Row]:
    yield from _decode(lab, "8b", "int4-head8", Work(decode=8, depth=8), 1.1)


def _mixture(lab: Lab) -> Iterator[Row]:
    yield from _decode(lab, "a3b", "int4-head8", Work(decode=24, depth=64), 1.2)


def _decode(lab: Lab, shape: str, scheme: str, work: Work, bar: float) -> Iterator[Row]:
    with gguf_file(shape, eight=scheme == "int8") as file:
        specs = [lab.spec("llamachat", [work], shape=shape, scheme=scheme), lab.spec("llama.cpp", [work], str(file))]
        (outcome,) = lab.contest(specs, [work])
    yield from faster(f"decode, {shape.upper()} {scheme}", outcome, "decode_s", bar)
    yield from share_of_bandwidth(f"decode, {shape.upper()} {scheme}", outcome, 0.92)


def _memory(name: str, outcome: Outcome) -> Row:
    laps = outcome.laps[0]
    peers = [each.peak / 1e6 for each in outcome.laps[1:]]
    return _held(name, laps.facts, laps.peak, peers[0] if peers else None)


def _held(name: str, facts: Facts, most: int, peer: float | None) -> Row:
    limit = 1.1 * (facts.weights + facts.kv * facts.slots) + SPARE
    return Row(name, "MB", most / 1e6, peer, most / 1e6, limit / 1e6, "-")


PEER_START = """
import sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=2048, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
answer = llm.create_chat_completion([{"role": "user", "content": "hi"}], max_tokens=1, temperature=0.0)
print(answer["choices"][0]["message"]["content"])
"""


def _start(lab: Lab) -> Iterator[Row]:
    """Whole processes, from nothing to the first token, the files in the system's cache; and the memory they held."""
    threads = str(lab.threads)
    commands = {
        "llamachat": ["-m", "llamachat", "complete", "hi", "-n", "1", "--temp", "0", "--threads", threads],
        "llama.cpp": ["-c", PEER_START, default_file(), threads],
    }
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for repeat in range(lab.repeats + 1):
        for name, arguments in commands.items():
            seconds, most = process([sys.executable, *arguments])
            if repeat and seconds:
                taken[name].append((seconds, most))
    ours, peer = (statistics.median(s for s, _ in runs) if runs else None for runs in taken.values())
    assert ours is not None
    yield Row("start to first token, default model", "s", ours, peer, ours, 0.6, "-")
    facts = _default_facts(lab)
    peers = max((most for _, most in taken["llama.cpp"]), default=0) / 1e6 or None
    most = max(most for _, most in taken["llamachat"])
    yield _held(f"resident, complete -n 1 (context {facts.slots})", facts, most, peers)


def _default_facts(lab: Lab) -> Facts:
    from llamachat.bench.runners import facts_of

    return facts_of(load(None, threads=lab.threads).engine, 0.0)


LAUNCH = """
import os, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start if code == 0 else 0.0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def process(command: list[str]) -> tuple[float, int]:
    """Seconds that it ran, and the most bytes it held; no seconds where it failed.

    It is started by a small process, as what a process holds when it starts another counts as the other's.
    """
    launched, env = [sys.executable, "-c", LAUNCH, *command], environment.of_ourselves()
    done = subprocess.run(launched, capture_output=True, text=True, check=True, env=env)
    seconds, most = done.stdout.split()
    return float(seconds), int(most) * (1 if sys.platform == "darwin" else 1024)


def _lookup(lab: Lab) -> Iterator[Row]:
    model = load(None, ctx_size=1024, threads=lab.threads)
    for name, measured, bar in (
        ("edit tasks", drafts.edit, 2.0),
        ("a second turn that edits the first", drafts.second_turn, 1.3),
        ("free chat", drafts.chat, 0.99),
    ):
        gain = measured(model, lab.repeats)
        yield Row(f"guesses on/off, {name}", "tok/s", gain.with_tok_s, gain.without_tok_s, gain.ratio, bar)


PARTS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "smollm2": _smollm2,
    "1b": _one_b,
    "1b-int8": _one_b_int8,
    "8b": _eight_b,
    "a3b": _mixture,
    "start": _start,
    "lookup": _lookup,
}


def run(threads: int, repeats: int, only: Sequence[str], tables: bool = True) -> None:
    """Measure these parts (none: all), and show them as a table; the last line is JSON, without `tables` the only one."""
    lab = Lab(threads, repeats, report.note)
    rows = []
    for name, part in PARTS.items():
        if not only or name in only:
            if tables:
                report.note(f"measuring {name} …")
            rows += list(part(lab))
    if tables:
        report.table(["", "ours", "peer", "judged", "bar", "met"], [_shown(row) for row in rows])
    results = [asdict(row) | {"met": row.met} for row in rows]
    report.write({"threads": threads, "repeats": repeats, "bars": results, "versions": report.versions()})


def _shown(row: Row) -> list[str]:
    peer = f"{row.peer:.4g}" if row.peer is not None else ""
    sign = "≥" if row.better == "+" else "≤"
    judged = [f"{row.judged:.3g}", f"{sign} {row.bar:.3g}", "yes" if row.met else "NO"]
    return [f"{row.name}, {row.unit}", f"{row.ours:.4g}", peer, *judged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=PARTS, help="these parts alone")
    parser.add_argument("--repeats", type=int, default=5, help="medians are of so many")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: all cores")
    parser.add_argument("--json", action="store_true", help="only the JSON line, no table")
    options = parser.parse_args()
    run(options.threads, options.repeats, options.only, tables=not options.json)


if __name__ == "__main__":
    main()
