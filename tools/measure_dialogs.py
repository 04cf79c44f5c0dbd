"""Plays random dialogs and looks at the cache after every step: `python tools/measure_dialogs.py [DIALOGS] [SEED]`."""

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dialogs import play

STEPS = 12

if __name__ == "__main__":
    count, seed = (int(word) for word in [*sys.argv[1:], *("100000", "0")[len(sys.argv) - 1 :]])
    begin, evictions = time.perf_counter(), 0
    for number in range(count):
        try:
            evictions += play(random.Random(f"{seed} {number}"), STEPS)
        except BaseException:
            print(f"dialog {number} of seed {seed}:")
            raise
    seconds = time.perf_counter() - begin
    print(f"{count} dialogs of {STEPS} steps, {evictions} evictions, every one in order; {seconds:.0f} s")
