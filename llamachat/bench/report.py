"""What was measured: a table for people on stderr, one JSON line for machines on stdout."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llamachat.bench.contest import Outcome

COLUMNS = {  # of a contender's results, where any has one
    "prefill_tok_s": "prefill tok/s",
    "decode_tok_s": "decode tok/s",
    "first_token_s": "first token s",
    "peak_mb": "memory MB",
    "read_mb_per_token": "MB/token",
    "bandwidth_share": "of limit",
    "busy_share": "of it when busy",
}


def speeds(outcome: Outcome, facts: dict[str, Any], tables: bool = True) -> None:
    """One line an engine, ours first; ratios say how many times faster we are. Without `tables` only the JSON."""
    results = {laps.facts.name: outcome.result(laps) for laps in outcome.laps}
    shown = [key for key in COLUMNS if any(key in found for found in results.values())]
    rows = []
    for laps in outcome.laps:
        found = results[laps.facts.name]
        ratios = ["", ""]
        if laps is not outcome.laps[0]:
            ratios = [f"{outcome.ratio(laps, part):.2f}" for part in ("prefill_s", "decode_s")]
            found |= {"prefill_ratio": float(ratios[0]), "decode_ratio": float(ratios[1])}
        rows.append([laps.facts.name, *(_figure(key, found) for key in shown), *ratios])
    if tables:
        table(["", *(COLUMNS[key] for key in shown), "prefill ×", "decode ×"], rows)
        profile(results["llamachat"].get("profile_ms", {}))
    read = sorted(outcome.bandwidth)
    memory = {"read_gb_s": round(read[len(read) // 2] / 1e9, 1)} if any(read) else {}
    detail = {"engine": outcome.laps[0].facts.detail}
    write({**facts, **detail, **memory, "results": results, "versions": versions()})


def _figure(key: str, found: dict[str, Any]) -> str:
    if key not in found:
        return ""
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
    """The first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 140).print(shown)


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
