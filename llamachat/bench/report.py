"""What was measured: a table for people on stderr, one JSON line for machines on stdout."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llamachat.bench.contest import Outcome

GAP = 2  # columns of the terminal between two of a table
ROWS = {  # of the contenders' results, where any has one
    "prefill_tok_s": "prefill tok/s",
    "decode_tok_s": "decode tok/s",
    "first_token_s": "first token s",
    "peak_mb": "memory MB",
    "read_mb_per_token": "MB a token",
    "bandwidth_share": "of bandwidth",
    "busy_share": "kept when busy",
    "prefill_ratio": "prefill ×",
    "decode_ratio": "decode ×",
}


def speeds(outcome: Outcome, facts: dict[str, Any], tables: bool = True) -> None:
    """One column an engine, ours first; ratios say how many times faster we are. Without `tables` only the JSON."""
    results = {laps.facts.name: outcome.result(laps) for laps in outcome.laps}
    for laps in outcome.laps[1:]:
        found = results[laps.facts.name]
        found |= {f"{part}_ratio": round(outcome.ratio(laps, f"{part}_s"), 2) for part in ("prefill", "decode")}
    if tables:
        shown = [key for key in ROWS if any(key in found for found in results.values())]
        rows = [[ROWS[key], *(_figure(key, found) for found in results.values())] for key in shown]
        table(["", *results], rows)
        profile(results["llamachat"].get("profile_ms", {}))
    read = sorted(outcome.bandwidth)
    memory = {"read_gb_s": round(read[len(read) // 2] / 1e9, 1)} if any(read) else {}
    detail = {"engine": outcome.laps[0].facts.detail}
    write({**facts, **detail, **memory, "results": results, "versions": versions()})


def _figure(key: str, found: dict[str, Any]) -> str:
    if key not in found:
        return ""
    if key.endswith("ratio"):
        return f"{found[key]:.2f}"
    return f"{100 * found[key]:.0f}%" if key.endswith("share") else f"{found[key]:.4g}"


def profile(parts: dict[str, float]) -> None:
    """Parts of a decoded token, in milliseconds and per cent."""
    whole = sum(parts.values())
    if parts:
        table(
            ["a decoded token", "ms", "%"],
            [[name, f"{ms:.3f}", f"{100 * ms / whole:.1f}"] for name, ms in parts.items()],
        )


def table(columns: list[str], rows: list[list[str]]) -> None:
    """The first column is text, the others are numbers; only between words is anything broken."""
    from rich.console import Console
    from rich.table import Table

    from llamachat.ui.cells import cells, fit

    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 140)
    texts = [[column, *(row[number] for row in rows)] for number, column in enumerate(columns)]
    least = [max(cells(word) for text in column for word in text.split() or [""]) for column in texts]
    wanted = [max(map(cells, column)) for column in texts]
    gaps = GAP * (len(columns) - 1)
    console.width = max(console.width, sum(least) + gaps)  # what is narrower breaks it in its own way
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column, width in zip(columns, fit(wanted, least, console.width - gaps) or least, strict=True):
        shown.add_column(column, justify="right" if shown.columns else "left", width=width)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def note(line: str) -> None:
    """Progress, for people."""
    sys.stderr.write(line + "\n")


def write(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def versions() -> dict[str, str]:
    """Of what shapes the figures."""
    found = {}
    for package in ("llamachat", "torch", "llama-cpp-python", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
