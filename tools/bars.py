"""The project's own bars, each measured beside llama.cpp in this run: python tools/bars.py [--only PART ...].

Random weights of real shapes for speed, in files by llama.cpp's own quantizer where a file's type is what counts; the default
model for what needs a real one. Each part loads its models once, and gives rows; medians of runs that take turns. Only errors
make the exit code other than 0, no bar that is missed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import bar_runs
import bar_speed
from bar_lab import Lab, Row

from llamachat.bench import report
from llamachat.bench.machine import processor
from llamachat.engines.native.build import BuildError
from llamachat.engines.native.engine import default_threads
from llamachat.errors import LlamachatError

LARGE = bar_speed.LARGE | bar_runs.LARGE
PARTS: dict[str, Callable[[Lab], Iterator[Row]]] = bar_speed.PARTS | bar_runs.PARTS | LARGE


def run(threads: int, repeats: int, only: Sequence[str], tables: bool = True) -> bool:
    """Measure these parts (none: all but the large ones), and show them as a table; the last line is JSON, without `tables` the
    only one. False where a part failed, which is said: the others are measured."""
    lab, rows, failed = Lab(threads, repeats, report.note), list[Row](), list[str]()
    machine = processor()
    if tables:
        report.note(f"{machine}; {threads} threads, medians of {repeats}")
    for name in only or [name for name in PARTS if name not in LARGE]:
        if tables:
            report.note(f"measuring {name} …")
        try:
            for row in PARTS[name](lab):
                rows.append(row)
                if tables:
                    report.note("  " + "  ".join(_shown(row)))
        except (LlamachatError, BuildError, OSError) as error:
            failed.append(name)
            report.note(f"{name}: {error}")
    if tables:
        report.table(["", "ours", "peer", "judged", "bar", "met"], [_shown(row) for row in rows])
    results = [asdict(row) | {"met": row.met} for row in rows]
    facts = {"processor": machine, "threads": threads, "repeats": repeats, "failed": failed}
    report.write(facts | {"bars": results, "versions": report.versions()})
    return not failed


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
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads are whole numbers from 1 on")
    sys.exit(0 if run(options.threads, options.repeats, options.only, tables=not options.json) else 3)


if __name__ == "__main__":
    main()
