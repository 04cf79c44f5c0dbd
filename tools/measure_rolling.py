"""What the rolling cache computes and what it costs: python tools/measure_rolling.py [--parts equality cost ...].

equality   largest difference of logits from one dense float64 forward over the whole history, on random models; beside
           a cache that turns its stored keys in place at every eviction (the control), and, for the native engine, beside
           itself with a slot for every token
cost       an eviction beside one decode step, on a real model with the native engine; the control has all keys to turn
recompute  a decode step at a full window beside reading the window anew for every token
turns      seconds to the first token of a turn, beside dropping the oldest messages and reading the rest anew

The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rolling import Float64Engine, Model, Roll, random_model, replay

from llamachat.core.cache import Cache, CacheStep
from llamachat.core.generate import advance, prefill
from llamachat.core.spec import KvBits
from llamachat.engines.native.engine import NativeEngine
from llamachat.engines.torch.engine import TorchEngine
from llamachat.models.load import load

ENGINES = ("torch", "native")
PINNED, LONGEST = 6, 8  # of the random models' cache: pinned tokens, most tokens of a step
CASES = [  # engine, type of keys and values, RoPE, key-value heads of 4, window, most tokens of a step
    *(("torch", kind, "none", 2, 256, 1) for kind in ("float64", "float32", "float16", "bfloat16", "int8")),
    *(("native", kind, "none", 2, 256, 1) for kind in ("float32", "float16", "bfloat16", "int8")),
    *((engine, "float32", rope, 2, 64, LONGEST) for rope in ("linear", "yarn", "llama3") for engine in ENGINES),
    *((engine, "float32", "none", heads, 64, LONGEST) for heads in (1, 4) for engine in ENGINES),
    *((engine, "float32", "none", 2, window, LONGEST) for window in (16, 64, 256, 1024, 4096) for engine in ENGINES),
]


# ---- equality ----


def built(engine: str, kind: str, model: Model, slots: int) -> Any:
    """kind: of keys and values; the arithmetic is in float32, or in float64 for those."""
    if engine == "native":
        return NativeEngine.build(model.config, model.tensors, slots=slots, kv=kind, threads=1)
    if kind == "float64":
        return Float64Engine.build(model.config, model.tensors, slots=slots)
    bits: KvBits | None = 8 if kind == "int8" else None
    made = TorchEngine.build(model.config, model.tensors, slots=slots, dtype="float32", kv_bits=bits)
    if kind != "int8":
        made.keys_values.data = made.keys_values.data.to(getattr(torch, kind))
    return made


class InPlace(Cache):
    """The control: positions are counted from the start of what is left, so that every kept key has to be turned."""

    def __init__(self, engine: Any, size: int) -> None:
        super().__init__(size)
        self.engine = engine

    def plan(self, count: int) -> CacheStep:
        step = super().plan(count)
        return CacheStep(step.slots, step.positions - self.evicted, step.visible)

    def evict(self, count: int) -> None:
        super().evict(count)
        index = np.arange(self.pinned, len(self))
        slots = self.slots(index)
        turn = turn_native if isinstance(self.engine, NativeEngine) else turn_torch
        for run in np.split(index, np.flatnonzero(np.diff(slots) != 1) + 1):
            if len(run):
                first = int(slots[run[0] - self.pinned])
                turn(self.engine, range(first, first + len(run)), int(run[0]), count)


def turn_torch(engine: TorchEngine, slots: range, start: int, by: int) -> None:
    """Turn the stored keys of these slots back by so many positions, to `start` and on, and round them again."""
    kept = engine.keys_values
    where = (slice(None), 0, slice(None), slice(slots.start, slots.stop))
    keys = kept.data[where] if kept.scale is None else kept.data[where] * kept.scale[where]
    kept._write(where, kept._turn(keys, np.full(len(slots), -by)))
    kept.positions[slots.start : slots.stop] = np.arange(start, start + len(slots))


def turn_native(engine: NativeEngine, slots: range, start: int, by: int) -> None:
    """The same, by way of keys that are not rotated, in float32."""
    config = engine.config
    keys = np.empty((config.num_hidden_layers, config.num_key_value_heads, len(slots), config.head_dim), np.float32)
    engine._lib.engine_unrotated_keys(engine._engine, slots.start, len(slots), keys.ctypes.data)
    engine._lib.engine_rotate_keys(engine._engine, slots.start, len(slots), start, keys.ctypes.data)


def equality(evictions: int, windows: Sequence[int]) -> Iterable[dict[str, Any]]:
    """Largest differences from the dense forward in the first and the last hundred tokens behind the first full window.

    With steps of one token, each eviction is of one token too: a key of the control is turned as often as the window is
    long. With longer ones it is turned some ten times.
    """
    torch.set_num_threads(1)
    for engine, kind, rope, heads, window, longest in CASES:
        if window not in windows:
            continue
        model = random_model(rope, num_key_value_heads=heads, num_hidden_layers=3 if window < 1024 else 1)
        pinned, spare = min(PINNED, window // 4), longest - 1
        ours, control = (built(engine, kind, model, window) for _ in range(2))
        history = Roll(ours, Cache(window), pinned).random(evictions, longest, spare=spare)
        moved = Roll(control, InPlace(control, window), pinned).random(evictions, longest, spare=spare)
        assert moved.ids == history.ids
        expected = model.dense(history)
        row = {"engine": engine, "keys": kind, "rope": rope, "kv_heads": heads, "window": window, "step": longest}
        row |= {"evictions": evictions, "tokens": len(history.ids)}
        for name, errors in (("ours", history.errors(expected)), ("in_place", moved.errors(expected))):
            row |= {f"{name}_first": errors[window:][:100].max(), f"{name}_last": errors[-100:].max()}
        if engine == "native":
            row["ours_to_itself"] = history.errors(replay(built(engine, kind, model, len(history.ids)), history)).max()
        yield row


# ---- speed, on a real model with the native engine ----


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def some_ids(count: int, vocabulary: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(100, vocabulary - 100, count)]


def filled(engine: Any, window: int, pinned: int) -> Cache:
    """A cache that is full for the second time, so that it goes round."""
    cache, ids = Cache(window), some_ids(2 * window, engine.config.vocab_size)
    cache.pin(pinned)
    prefill(engine, cache, ids[:window])
    cache.evict(cache.evictable)
    prefill(engine, cache, ids[window + pinned :][: cache.free])
    return cache


def medians(repeats: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each, in turn in every repeat, after one to warm up."""
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    return {f"{name}_ms": 1e3 * statistics.median(each[name] for each in taken) for name in runs}


def cost(engine: Any, windows: Sequence[int], pins: Sequence[int], repeats: int) -> Iterable[dict[str, Any]]:
    """An eviction: forgetting tokens, and turning the pinned ones. The control is spared the reading of its keys."""
    config = engine.config
    for window, pinned in ((window, pinned) for window in windows for pinned in pins if pinned < window):
        cache, tail = filled(engine, window, pinned), window - pinned
        keys = np.ones((config.num_hidden_layers, config.num_key_value_heads, tail, config.head_dim), np.float32)

        def evict(cache: Cache = cache) -> None:
            cache.evict(1)
            turn = cache.plan(1).pinned
            assert turn
            engine._pin(*turn)

        def step(cache: Cache = cache) -> None:
            advance(engine, cache, [100])

        def in_place(tail: int = tail, keys: Any = keys) -> None:
            engine._lib.engine_rotate_keys(engine._engine, engine.slots - tail, tail, 0, keys.ctypes.data)

        yield {"window": window, "pinned": pinned, **medians(repeats, evict=evict, step=step, in_place=in_place)}


def recompute(engine: Any, window: int, pinned: int, repeats: int, steps: int = 20) -> dict[str, Any]:
    """One more token behind a full window: ours, and by reading all that is kept anew."""
    cache, fresh = filled(engine, window, pinned), Cache(window, window)
    ids = some_ids(window, engine.config.vocab_size)

    def rolling() -> None:
        for _ in range(steps):
            cache.evict(1)
            advance(engine, cache, [100])

    def anew() -> None:
        fresh.truncate(0)
        prefill(engine, fresh, ids)

    taken = medians(repeats, rolling=rolling, recompute=anew)
    taken["rolling_ms"] /= steps
    return {"window": window, "pinned": pinned, **taken, "times": taken["recompute_ms"] / taken["rolling_ms"]}


@dataclass(frozen=True)
class Talk:
    """Turns of one length through a full window."""

    window: int
    pinned: int
    message: int
    answer: int
    turns: int

    def first_tokens(self, engine: Any, refill: bool, least: int) -> dict[str, float]:
        """Milliseconds until a message is read; at least so many tokens go when the window is full, in whole turns."""
        turn, cache, taken = self.message + self.answer, Cache(self.window), list[float]()
        ids = some_ids(self.window + turn * (self.turns + 1), engine.config.vocab_size)
        cache.pin(self.pinned)
        prefill(engine, cache, ids[: self.pinned])
        for start in range(self.pinned, len(ids) - turn, turn):
            ask, say = ids[start : start + self.message], ids[start + self.message : start + turn]
            begin = time.perf_counter()
            if cache.free < turn:
                count = turn * -(-max(turn - cache.free, least) // turn)
                ask = self._drop(cache, count, refill) + ask
            prefill(engine, cache, ask)
            if taken or len(ask) > self.message or cache.evicted:
                taken.append(1e3 * (time.perf_counter() - begin))
            prefill(engine, cache, say)  # stands for the answer, which takes as long either way
        return {"mean": statistics.mean(taken), "median": statistics.median(taken), "worst": max(taken)}

    def _drop(self, cache: Cache, count: int, refill: bool) -> list[int]:
        """The oldest turns go; returns what has to be read anew."""
        if not refill:
            cache.evict(count)
            return []
        kept = cache.log[self.pinned + count :]
        cache.truncate(self.pinned)
        return kept


def turns(engine: Any, talk: Talk) -> Iterable[dict[str, Any]]:
    """Ours evicts a quarter of the window at a time; dropping the oldest messages one by one is ollama's way."""
    quarter = talk.window // 4
    ways = {"rolling": (False, quarter), "read anew": (True, 1), "read anew, by quarters": (True, quarter)}
    for way, (refill, least) in ways.items():
        taken = talk.first_tokens(engine, refill, least)
        yield {"way": way, **asdict(talk), **{f"{name}_ms": value for name, value in taken.items()}}


# ---- the tables ----


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if value < 0.005 else f"{value:.2f}"


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in dict.fromkeys(key for row in rows for key in row):
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(shown(row.get(str(column.header).replace(" ", "_"), "")) for column in table.columns))
    Console(width=180).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["equality", "cost", "recompute", "turns"])
    parser.add_argument("--model", help="for the speeds; by default the default model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--evictions", type=int, default=1000)
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 64, 256, 1024, 4096], help="of the equality")
    parser.add_argument("--pinned", type=int, nargs="+", default=[4, 32, 128, 512], help="tokens, of the cost")
    parser.add_argument("--repeats", type=int, default=50, help="of the cost; the others take a tenth")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    engine: Any = None
    if set(arguments.parts) - {"equality"}:
        engine = load(arguments.model, ctx_size=8192, engine="native", threads=arguments.threads).engine
        results["engine"] = engine.describe()
    few = max(3, arguments.repeats // 10)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "equality": lambda: list(equality(arguments.evictions, arguments.windows)),
        "cost": lambda: list(cost(engine, (1024, 4096), arguments.pinned, arguments.repeats)),
        "recompute": lambda: [recompute(engine, 4096, 4, few)],
        "turns": lambda: list(turns(engine, Talk(1024, 32, 64, 64, 4 * few))),
    }
    for part in arguments.parts:
        results[part] = parts[part]()
        print_table(part, results[part])
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
