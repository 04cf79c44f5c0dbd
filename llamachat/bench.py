"""`llamachat bench`: speed of a model, beside peers in the same run; the last line is JSON.

Every repeat measures each engine in turn, so that a machine whose speed drifts slows all of them alike; medians are shown.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llamachat.cache import Cache
from llamachat.engine import Engine
from llamachat.errors import UsageError
from llamachat.generate import advance, prefill


class Runner(Protocol):
    """Something that runs token ids; each call of `feed` continues what was fed since `reset`."""

    name: str

    def reset(self) -> None: ...

    def feed(self, ids: list[int]) -> object:
        """Run these as one batch, logits of the last."""
        ...


class Ours:
    """This project's engine."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.engine, self.cache = "llamachat", engine, Cache(engine.slots)

    def reset(self) -> None:
        self.cache.truncate(0)

    def feed(self, ids: list[int]) -> None:
        if len(ids) == 1:
            advance(self.engine, self.cache, ids)
        else:
            prefill(self.engine, self.cache, ids)


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, file: Path, context: int, threads: int) -> None:
        llama_cpp = _peer("llama_cpp", "llama-cpp-python")
        self.name = f"llama.cpp ({llama_cpp.__version__})"
        self._llm = llama_cpp.Llama(
            str(file), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def reset(self) -> None:
        self._llm.reset()

    def feed(self, ids: list[int]) -> None:
        self._llm.eval(ids)


class Transformers:
    """transformers on the weights of a GGUF file, dequantized to bfloat16."""

    def __init__(self, file: Path, threads: int) -> None:
        transformers, self._torch = _peer("transformers", "transformers and gguf"), _peer("torch", "torch")
        self._torch.set_num_threads(threads)
        self.name = f"transformers ({transformers.__version__}, bfloat16)"
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(file.parent, gguf_file=file.name, dtype=self._torch.bfloat16).eval()
        self._past: Any = None

    def reset(self) -> None:
        self._past = None

    def feed(self, ids: list[int]) -> None:
        with self._torch.inference_mode():
            out = self._model(self._torch.tensor([ids]), past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = out.past_key_values


def _peer(module: str, package: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise UsageError(
            f"{package} is not installed", "there is no peer to measure", f"pip install {package}"
        ) from error


@dataclass(frozen=True)
class Work:
    """What is timed: a prefill of `prompt` tokens, then `decode` tokens one by one behind `depth` (0: behind the prompt)."""

    prompt: int
    decode: int
    depth: int
    vocabulary: int  # ids are below this

    @property
    def context(self) -> int:
        """Tokens that must fit."""
        return max(self.prompt, self.depth) + self.decode + 8

    def seconds(self, runner: Runner) -> tuple[float, float]:
        """Of the prefill and of the decoding."""
        ids = [(7 * i + 11) % (self.vocabulary - 20) + 10 for i in range(self.context)]
        runner.reset()
        prefill_s = _seconds(lambda: runner.feed(ids[: self.prompt]))
        if self.depth:
            runner.reset()
            runner.feed(ids[: self.depth])
        return prefill_s, _seconds(lambda: [runner.feed([token]) for token in ids[: self.decode]])


class Peer:
    """A runner in a process of its own, so that no two engines' threads share one."""

    def __init__(self, kind: str, file: Path, threads: int, work: Work) -> None:
        command = [sys.executable, "-m", "llamachat.bench", kind, str(file), str(threads), json.dumps(asdict(work))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._answer()

    def seconds(self) -> tuple[float, float]:
        """Do the work once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        prefill_s, decode_s = self._answer()
        return prefill_s, decode_s

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UsageError("a peer could not run", "there is nothing to compare with", "see its own message above")
        return json.loads(line)


def serve(kind: str, file: str, threads: str, work: str) -> None:
    """A peer's process: says its name, then does the work once for each line it is sent."""
    said, sys.stdout = sys.stdout, sys.stderr  # libraries may talk
    task = Work(**json.loads(work))
    runner = PEERS[kind](Path(file), int(threads), task)
    said.write(json.dumps(runner.name) + "\n")
    said.flush()
    for _ in sys.stdin:
        said.write(json.dumps(task.seconds(runner)) + "\n")
        said.flush()


PEERS: dict[str, Callable[[Path, int, Work], Runner]] = {
    "llama.cpp": lambda file, threads, work: LlamaCpp(file, work.context, threads),
    "transformers": lambda file, threads, work: Transformers(file, threads),
}


def measure(ours: Runner, peers: Sequence[Peer], work: Work, repeats: int) -> list[tuple[str, dict[str, float]]]:
    """Median tokens a second of each, ours first; all of them in turn in every repeat, after one to warm up."""
    turns: list[tuple[str, Callable[[], tuple[float, float]]]] = [(ours.name, lambda: work.seconds(ours))]
    turns += [(peer.name, peer.seconds) for peer in peers]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in turns}
    for repeat in range(repeats + 1):
        for name, run in turns:
            taken = run()
            if repeat:
                seconds[name].append(taken)
    return [(name, _medians(taken, work)) for name, taken in seconds.items()]


def _medians(taken: list[tuple[float, float]], work: Work) -> dict[str, float]:
    prefill_s, decode_s = (statistics.median(column) for column in zip(*taken, strict=True))
    return {"prefill_tok_s": round(work.prompt / prefill_s, 1), "decode_tok_s": round(work.decode / decode_s, 1)}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory: the best of five passes over 512 MB."""
    data = np.ones(1 << 26, np.int64)
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(data.nbytes / _seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(5))


def report(rows: list[tuple[str, dict[str, float]]], facts: dict[str, Any]) -> None:
    """A table for people, and one JSON line for machines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "prefill tok/s", "decode tok/s", "prefill ×", "decode ×"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    ours = rows[0][1]
    for name, result in rows:
        ratios = [f"{ours[key] / result[key]:.2f}" for key in ("prefill_tok_s", "decode_tok_s")]
        speeds = [f"{result[key]:.1f}" for key in ("prefill_tok_s", "decode_tok_s")]
        table.add_row(name, *speeds, *(ratios if result is not ours else ["", ""]))
    Console(file=sys.stderr).print(table)
    sys.stdout.write(json.dumps({**facts, "results": dict(rows)}) + "\n")


def versions() -> dict[str, str]:
    """Of what shapes the figures."""
    found = {}
    for package in ("llamachat", "torch", "llama-cpp-python", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    serve(*sys.argv[1:])
