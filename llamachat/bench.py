"""`llamachat bench`: speed of a model, beside peers in the same run; the last line is JSON.

Every repeat measures each engine in turn, so that a machine whose speed drifts slows all of them alike; medians are shown.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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

    def feed(self, ids: list[int]) -> None:
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
        raise UsageError(f"{package} is not installed", "there is no peer to measure", f"pip install {package}") from error


@dataclass
class Times:
    """Tokens per second of each repeat."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {
            f"{what}_tok_s": round(statistics.median(values), 1)
            for what, values in (("prefill", self.prefill), ("decode", self.decode))
        }


def measure(runners: Sequence[Runner], prompt: int, decode: int, depth: int, repeats: int, vocabulary: int) -> list[Times]:
    """Prefill of `prompt` tokens, then decode of `decode` behind `depth` (0: behind the prompt), in turn, `repeats` times."""
    ids = [(7 * i + 11) % (vocabulary - 20) + 10 for i in range(max(prompt, depth, decode))]
    times = [Times() for _ in runners]
    for repeat in range(-1, repeats):  # the first is a warm-up
        for runner, result in zip(runners, times, strict=True):
            runner.reset()
            prefilled = prompt / _seconds(lambda: runner.feed(ids[:prompt]))  # noqa: B023 - called at once
            if depth:
                runner.reset()
                runner.feed(ids[:depth])
            decoded = decode / _seconds(lambda: [runner.feed([token]) for token in ids[:decode]])  # noqa: B023
            if repeat >= 0:
                result.prefill.append(prefilled)
                result.decode.append(decoded)
    return times


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
    sys.stdout.write(json.dumps({**facts, "results": {name: result for name, result in rows}}) + "\n")


def versions() -> dict[str, str]:
    """Of what shapes the figures."""
    found = {}
    for package in ("llamachat", "torch", "llama-cpp-python", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
