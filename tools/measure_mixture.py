"""What one decoded token reads of a mixture of experts: python tools/measure_mixture.py [--layers N]. Linux only.

The kernel marks each page of memory that is touched. The marks are cleared, one token is decoded, and the marked pages of the
weights are counted, beside the bytes of the experts that a token's router picks and of all that every token reads. Random
weights of Qwen3-30B-A3B's layers; pages of 4 KiB, so large ones are switched off first.
"""

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

if os.environ.get("NUMPY_MADVISE_HUGEPAGE") != "0":  # numpy reads it when it is imported
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"})

from llamachat.bench import shapes
from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.memory import active_bytes
from llamachat.engines.native.engine import NativeEngine

SELF = Path("/proc/self")
REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def touched(first: int, end: int) -> int:
    """Bytes of the marked pages in the regions of memory that hold these addresses."""
    total, inside = 0, False
    for line in (SELF / "smaps").read_text().splitlines():
        if region := REGION.match(line):
            inside = int(region[1], 16) < end and int(region[2], 16) > first
        elif inside and line.startswith("Referenced:"):
            total += int(line.split()[1]) * 1024
    return total


def main(layers: int) -> None:
    spec = replace(shapes.SHAPES["a3b"], num_hidden_layers=layers)
    weights = shapes.random_weights(spec, "int4-head8")
    starts = [(data.ctypes.data, data.nbytes) for _, data in weights.tensors.values()]
    first, end = min(at for at, _ in starts), max(at + size for at, size in starts)
    sizes = {name: data.nbytes for name, (_, data) in weights.tensors.items()}
    active, engine, cache = active_bytes(spec, sizes) or 0, NativeEngine(spec, weights, slots=64), Cache(64)
    print(
        f"weights {weights.nbytes / 1e6:.1f} MB; of the experts picked and of what is always read {active / 1e6:.1f} MB"
    )
    for token in range(5):
        (SELF / "clear_refs").write_text("1")
        advance(engine, cache, [token])
        read = touched(first, end)
        print(f"token {token}: {read / 1e6:.1f} MB read, {read / active:.4f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    main(parser.parse_args().layers)
