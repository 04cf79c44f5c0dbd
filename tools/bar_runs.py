"""Bars of whole processes and of what else is timed: starts, answers, the compiler; and what the engine's rounding costs."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from bar_lab import Lab, Row, default_file, process
from bar_speed import held
from quantized_files import quantized

from llamachat import paths
from llamachat.bench import drafts
from llamachat.bench.runners import Facts, facts_of
from llamachat.engines.native import build
from llamachat.errors import UsageError
from llamachat.models.load import load
from llamachat.system import environment

PEER_START = """
import sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=2048, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
answer = llm.create_chat_completion([{"role": "user", "content": "hi"}], max_tokens=1, temperature=0.0)
print(answer["choices"][0]["message"]["content"])
"""


def start(lab: Lab) -> Iterator[Row]:
    """Whole processes, from nothing to the first token, the files in the system's cache; and the memory they held."""
    taken = _starts(lab, default_file(), None, {})
    ours, peer = (statistics.median(s for s, _ in runs) if runs else None for runs in taken.values())
    if ours is None:
        raise UsageError("`llamachat complete hi` failed", "no start was measured", "try it by hand")
    if peer:
        yield Row("second start to first token, default model", "s", ours, peer, _times(taken), 0.9, "-")
    facts = _default_facts(lab)
    peers = max((most for _, most in taken["llama.cpp"]), default=0) / 1e6 or None
    most = max(most for _, most in taken["llamachat"])
    yield held(f"resident, complete -n 1 (context {facts.slots})", facts, most, peers)


def first_start(shape: str, lab: Lab) -> Iterator[Row]:
    """With a cache folder that holds nothing but the compiled library: weights are packed. The file is in the system's cache."""
    file = quantized(shape, "Q4_K_M", default_file(), lab.threads, lab.say)
    with tempfile.TemporaryDirectory(prefix="first-", dir=paths.cache_dir()) as folder:
        ours = Path(folder, "llamachat", "native")

        def forget() -> None:
            shutil.rmtree(Path(folder, "llamachat"), ignore_errors=True)
            ours.mkdir(0o700, parents=True)
            shutil.copy2(build.library(), ours)

        taken = _starts(lab, file, forget, {"XDG_CACHE_HOME": folder})
    if all(taken.values()):
        medians = [statistics.median(seconds for seconds, _ in runs) for runs in taken.values()]
        yield Row(f"first start to first token, {shape.upper()} Q4_K_M", "s", *medians, _times(taken), 1.3, "-")


def _starts(
    lab: Lab, file: Path, before: Callable[[], None] | None, extra: Mapping[str, str]
) -> dict[str, list[tuple[float, int]]]:
    """Seconds and bytes of ours and of the peer's, in turn; `before` each of ours. A first one of each warms up."""
    threads = str(lab.threads)
    model = [] if file == default_file() else ["-m", str(file)]
    complete = ["-m", "llamachat", "complete", "hi", "-n", "1", "--temp", "0", "--threads", threads, *model]
    commands = {"llamachat": complete, "llama.cpp": ["-c", PEER_START, str(file), threads]}
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for repeat in range(lab.repeats + 1):
        for name, arguments in commands.items():
            if before and name == "llamachat":
                before()
            seconds, most = process([sys.executable, *arguments], extra)
            if repeat and seconds:
                taken[name].append((seconds, most))
    return taken


def _times(taken: Mapping[str, list[tuple[float, int]]]) -> float:
    """How many times as long as the peer ours took: the median of the repeats' own ratios."""
    return statistics.median(ours / peer for (ours, _), (peer, _) in zip(*taken.values(), strict=False))


def _default_facts(lab: Lab) -> Facts:
    return facts_of(load(None, threads=lab.threads).engine, 0.0)


def guesses(lab: Lab) -> Iterator[Row]:
    model = load(None, ctx_size=1024, threads=lab.threads)
    for name, measured, bar in (
        ("edit tasks", drafts.edit, 2.0),
        ("a second turn that edits the first", drafts.second_turn, 1.3),
        ("free chat", drafts.chat, 0.99),
    ):
        gain = measured(model, lab.repeats)
        yield Row(f"guesses on/off, {name}", "tok/s", gain.with_tok_s, gain.without_tok_s, gain.ratio, bar)


def batch(lab: Lab) -> Iterator[Row]:
    script = str(Path(__file__).with_name("measure_batch.py"))
    found = json.loads(_said([script, "--repeats", str(lab.repeats)]).splitlines()[-1])
    times = {way: found["tokens"] / taken["seconds"] for way, taken in found["results"].items()}
    many, one = times["parallel 32"], times["one by one"]
    yield Row("a batch of 32 beside one by one, SmolLM2", "tok/s", many, one, many / one, 3.0)


def fidelity(lab: Lab) -> Iterator[Row]:
    """KL divergence of the engine from exact arithmetic on the same file; 2,048 tokens of Python's manual."""
    file = str(default_file())
    options = ["--engine", "native", "--windows", "4", "--threads", str(lab.threads), "--json"]
    found = json.loads(_said(["-m", "llamachat", "eval", "-m", file, "--against", file, *options]))
    kl = found["kl_mean"]["value"] if isinstance(found["kl_mean"], dict) else found["kl_mean"][0]
    yield Row("mean KL divergence, SmolLM2 Q4_1", "nats", kl, None, kl, 0.0013, "-")


def compiled(lab: Lab) -> Iterator[Row]:
    """What an install without a ready library waits for."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        kernels = build.wanted()[1]
        build.compile_library(Path(folder, build.LIBRARY), kernels=kernels, environment=environment.of_compiler())
        seconds = time.perf_counter() - begin
    yield Row(f"compile of {' and '.join(kernels)} kernels", "s", seconds, None, seconds, 10.0, "-")


def _said(arguments: list[str]) -> str:
    """What a Python program of ours wrote. Raises UsageError where it failed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment.of_ourselves()
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UsageError(f"{arguments[-1]}: {last}", "its bar was not measured")
    return done.stdout


PARTS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "start": start,
    "first-start": partial(first_start, "0.5b"),
    "guesses": guesses,
    "batch": batch,
    "fidelity": fidelity,
    "compile": compiled,
}
LARGE = {"first-start-8b": partial(first_start, "8b")}  # files that are made only when asked for
