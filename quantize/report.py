"""What quantization did to each tensor and to the whole: error, size, memory. As a table, JSON or an HTML page."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import log10, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.core.tensors import Array, Tensor, dequantize
from llamachat.engines.memory import kv_bytes, size
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import base_of
from quantize.recipe import Recipe

SLAB = 1 << 20
CONTEXTS = (2048, 8192, 32768)
BAR, LEAST = 20, 5  # characters of the longest bar, and as many at least
GAP, WIDE = 2, 140  # columns between two of the table, and of all where it is for no terminal


def measured(
    original: Tensor, coded: Tensor | None, arrays: Mapping[str, Array], scheme: str, threads: int | None
) -> dict[str, Any]:
    """Facts of a tensor. error: root mean square, relative to the weights'; outliers: share beyond six times that."""
    facts = {"shape": original.shape, "scheme": scheme, "bytes": sum(array.nbytes for array in arrays.values())}
    if coded is None:
        return facts
    rows, columns = original.shape
    step = max(1, SLAB // columns)

    def part(start: int) -> tuple[float, float, int]:
        before, after = (dequantize(each.rows(slice(start, start + step))) for each in (original, coded))
        power = float(np.vdot(before, before))
        wide = np.abs(before) > 6 * sqrt(power / before.size)
        difference = after - before
        return float(np.vdot(difference, difference)), power, int(np.count_nonzero(wide))

    with ThreadPoolExecutor(threads) as pool:
        lost, power, outliers = (sum(each) for each in zip(*pool.map(part, range(0, rows, step)), strict=True))
    error = sqrt(lost / power) if power else 0.0
    snr = 20 * log10(1 / error) if error else None
    return {**facts, "error": error, "snr_db": snr, "outliers": outliers / (rows * columns)}


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: where it lies, and the facts of each tensor."""

    source: Checkpoint
    out: Path
    recipe: Recipe
    tensors: Mapping[str, Mapping[str, Any]]
    merged: str = ""  # the adapters that were merged before, for people

    def summary(self) -> dict[str, Any]:
        """The whole in numbers; sizes in bytes, memory with a cache of 16 bits."""
        weights = sum(prod(facts["shape"]) for facts in self.tensors.values())
        linear = [facts for name, facts in self.tensors.items() if ".layers." in name and len(facts["shape"]) == 2]
        before = sum(info.nbytes for info in base_of(self.source).index().values())
        after = sum(file.stat().st_size for file in self.out.iterdir() if file.suffix == ".safetensors")
        config = self.source.config
        slot = kv_bytes(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 1, 16)
        lengths = [length for length in CONTEXTS if length <= config.max_position_embeddings] or [CONTEXTS[0]]
        return {
            "weights": weights,
            "source_bytes": before,
            "bytes": after,
            "bits_per_weight": 8 * after / weights,
            "bits_per_linear_weight": 8 * sum(f["bytes"] for f in linear) / sum(prod(f["shape"]) for f in linear),
            "memory": {str(length): after + slot * length for length in lengths},
        }

    def kinds(self) -> dict[str, dict[str, Any]]:
        """The facts of the tensors of one kind, put together: their mean square error, their bytes."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for name, facts in self.tensors.items():
            if "error" in facts:
                groups.setdefault(_kind(name), []).append(facts)
        return {kind: _together(facts) for kind, facts in groups.items()}

    def left(self) -> list[str]:
        """The matrices left in float: their kind, how many of how many, and their width if that is why."""
        shapes = {name: tuple(facts["shape"]) for name, facts in self.tensors.items()}
        every = Counter(_kind(name) for name, shape in shapes.items() if len(shape) == 2)
        left = Counter((_kind(name), shapes[name][1], self.recipe.told(name)) for name in self.recipe.left(shapes))
        return [
            kind
            + (f" ({count} of {every[kind]})" if every[kind] > 1 else "")
            + (f", as no group divides its width of {width}" if told else "")
            for (kind, width, told), count in left.items()
        ]

    def as_json(self) -> dict[str, Any]:
        merged = {"merged": self.merged} if self.merged else {}
        return {"path": str(self.out), **merged, **self.summary(), "tensors": self.tensors}


def _kind(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    return parts[-1]


def _together(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = [each["error"] for each in facts]
    error = sqrt(sum(each * each for each in errors) / len(errors))
    weights = sum(prod(each["shape"]) for each in facts)
    return {
        "scheme": ", ".join(dict.fromkeys(each["scheme"] for each in facts)),
        "bits": 8 * sum(each["bytes"] for each in facts) / weights,
        "error": error,
        "worst": max(errors),
        "snr_db": 20 * log10(1 / error) if error else None,
        "outliers": sum(each["outliers"] * prod(each["shape"]) for each in facts) / weights,
    }


def show(conversion: Conversion, per_layer: bool = False) -> None:
    """Print tables to the terminal; what it has no room for is left out, the bars first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows: Mapping[str, Mapping[str, Any]] = conversion.kinds()
    if per_layer:
        rows = {name: facts for name, facts in conversion.tensors.items() if "error" in facts}
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    columns = _fitting(_columns(rows), [facts["error"] for facts in rows.values()], console.width)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in columns:
        table.add_column(header, justify="left" if header in ("tensors", "scheme", "") else "right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text("\n".join(lines(conversion))))


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    facts = rows.values()
    bits = (each.get("bits") or 8 * each["bytes"] / prod(each["shape"]) for each in facts)
    return {
        "tensors": [*rows],
        "scheme": [each["scheme"] for each in facts],
        "bits": [f"{each:.2f}" for each in bits],
        "error": [f"{each['error']:.2%}" for each in facts],
        "": ["" for _ in facts],
        "SNR": [_db(each["snr_db"]) for each in facts],
        "outliers": [f"{each['outliers'] * 1e6:.1f} ppm" for each in facts],
    }


def _fitting(columns: dict[str, list[str]], errors: Sequence[float], width: int) -> dict[str, list[str]]:
    """Those that there is room for, with a bar for each error if there is."""
    largest = max(errors, default=0.0) or 1.0
    for leaving in ("", "outliers", "SNR", "scheme"):
        room = width - sum(GAP + max(map(len, [header, *cells])) for header, cells in columns.items()) + GAP
        if "" in columns and room >= LEAST:
            return columns | {"": ["█" * round(min(BAR, room) * error / largest) for error in errors]}
        if room >= 0 and "" not in columns:
            return columns
        columns = {header: cells for header, cells in columns.items() if header != leaving}
    return columns


def lines(conversion: Conversion) -> list[str]:
    """The whole in sentences."""
    facts = conversion.summary()
    memory = ", ".join(f"{size(need)} with {int(length):,} tokens" for length, need in facts["memory"].items())
    left = "; ".join(conversion.left())
    return [
        f"{conversion.out}: {size(facts['source_bytes'])} of weights became {size(facts['bytes'])}, "
        f"{facts['bits_per_weight']:.2f} bits a weight ({facts['bits_per_linear_weight']:.2f} in the linear layers)",
        *([f"merged before: {conversion.merged}"] if conversion.merged else []),
        *([f"left in float: {left}"] if left else []),
        f"memory to run it: {memory}",
    ]


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def html(conversion: Conversion, evaluation: Mapping[str, Any] | None = None) -> str:
    """The report as one page that needs nothing else."""
    from html import escape

    worst = max((facts.get("error", 0) for facts in conversion.tensors.values()), default=0) or 1
    rows = "".join(
        f"<tr><td>{escape(name)}<td>{escape(facts['scheme'])}<td>{8 * facts['bytes'] / prod(facts['shape']):.2f}"
        f"<td>{facts['error']:.2%}<td><div style='width:{200 * facts['error'] / worst:.0f}px'></div>"
        f"<td>{_db(facts['snr_db'])}<td>{facts['outliers'] * 1e6:.1f}"
        for name, facts in conversion.tensors.items()
        if "error" in facts
    )
    quality = "".join(f"<li>{escape(key)}: {escape(str(value))}" for key, value in (evaluation or {}).items())
    told = "".join(f"<li>{escape(line)}" for line in lines(conversion))
    return (
        "<!doctype html><meta charset=utf-8><title>Quantization report</title>"
        "<style>body{font:15px sans-serif;margin:2em}td,th{padding:2px 12px;text-align:left}"
        "div{background:#47a;height:10px}</style>"
        f"<h1>{escape(conversion.out.name)}</h1><ul>{told}{quality}</ul><table><tr><th>tensor<th>scheme<th>bits"
        f"<th>error<th><th>SNR<th>outliers (ppm){rows}</table>"
    )
