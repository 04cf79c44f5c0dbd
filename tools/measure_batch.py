"""How much faster a batch is than its prompts one by one, in one run: `python tools/measure_batch.py [--parallel 8 16 32]`.

64 short prompts on the default model, by turns; medians; the last line is JSON. The answers of both ways must be the same.
`cpu` is processor seconds, which say more than seconds do while other programs run.
"""

import argparse
import io
import json
import statistics
import sys
import time
from typing import Any

from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.generation.prompting import PARALLEL
from llamachat.models.load import load

THINGS = ("a river", "a mountain", "a teapot", "an engine", "a violin", "a forest", "a market", "a glacier")


def prompts(count: int) -> list[str]:
    return [f"Write one sentence about {THINGS[i % len(THINGS)]} and the number {i}." for i in range(count)]


class Given:
    """Requests that are all there."""

    def __init__(self, texts: list[str]) -> None:
        self._lines = iter([json.dumps({"prompt": text}) for text in texts])

    def take(self, wait: bool) -> str:
        return next(self._lines, "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--parallel", type=int, nargs="+", default=[PARALLEL])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = load(options.model, parallel=max(options.parallel))
    sampling = model.sampling.replace(seed=1)
    if options.temperature is not None:
        sampling = sampling.replace(temperature=options.temperature)
    settings = AnswerSettings(sampling, model.stop_ids, max_tokens=options.tokens)
    texts = prompts(options.count)

    def one_by_one() -> list[list[int]]:
        run = Completer(model, settings, model.system, False, False)
        return [run.result(run.dialog(text))["tokens"] for text in texts]

    def batched(parallel: int) -> list[list[int]]:
        run, out = Completer(model, settings, model.system, False, False), io.StringIO()
        run.batch(Given(texts), out, parallel)
        return [json.loads(line)["tokens"] for line in out.getvalue().splitlines()]

    ways: dict[str, Any] = {"one by one": one_by_one}
    ways |= {f"parallel {n}": lambda n=n: batched(n) for n in options.parallel}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[list[int]]] = {}
    for _ in range(options.repeats):
        for way, run in ways.items():
            begin, busy = time.perf_counter(), time.process_time()
            answers[way] = run()
            seconds[way].append(time.perf_counter() - begin)
            cpu[way].append(time.process_time() - busy)
    alone = answers["one by one"]
    tokens = sum(map(len, alone))
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    for way, median in medians.items():
        line = f"{way:<14}{median:8.2f} s {tokens / median:8.0f} tok/s {medians['one by one'] / median:6.2f} ×"
        sys.stdout.write(line + ("" if answers[way] == alone else "  OTHER ANSWERS") + "\n")
    facts = {"model": model.name, "engine": model.engine.describe(), "prompts": len(texts), "tokens": tokens}
    rows = {
        way: {
            "seconds": round(median, 3),
            "times": round(medians["one by one"] / median, 2),
            "cpu": round(statistics.median(cpu[way]), 3),
        }
        for way, median in medians.items()
    }
    same = all(each == alone for each in answers.values())
    sys.stdout.write(json.dumps({**facts, "temperature": sampling.temperature, "same": same, "results": rows}) + "\n")


if __name__ == "__main__":
    main()
