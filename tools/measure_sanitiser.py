"""Bytes of fuzz through the sanitiser: `python tools/measure_sanitiser.py [--bytes N] [--seed N]`; the last line is JSON.

Attacks, their fragments, random bytes and plain text, in random order and pieces, decoded as a model's and as a file's
bytes would be. Nothing but text, newlines and tabs may come out, a terminal emulator may be told nothing but to draw them,
and the pieces may not matter. Then every attack between two texts, at every two split points.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacks import COMPLETE, FORBIDDEN, SPELLED, told

from llamachat.system.sanitise import Sanitiser, sanitise

ATTACKS = [*COMPLETE.values(), *SPELLED]
PLAIN = ["Some plain text, ", "日本語", "👩‍🚀", "עברית", "می‌خواهم", "\n", "0;31m", "\t", "2J"]


def fuzz(chance: random.Random, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        attack = chance.choice(ATTACKS).encode(errors="surrogatepass")
        kinds = (attack, attack[: chance.randint(0, len(attack))], chance.randbytes(chance.randint(1, 12)))
        part = chance.choice((*kinds, bytes([chance.randrange(0x20)]), chance.choice(PLAIN).encode()))
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def pieces(text: str, chance: random.Random) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + chance.choice((1, 1, 2, 3, 8, 40, 300))
        yield text[start:end]
        start = end


def check(raw: bytes, chance: random.Random) -> float:
    """Seconds that the sanitiser took; raises AssertionError on what it let through."""
    text = chance.choice((lambda: raw.decode("latin-1"), lambda: raw.decode(errors="surrogateescape")))()
    sanitiser, parts = Sanitiser(), list(pieces(text, chance))
    begin = time.perf_counter()
    shown = "".join(map(sanitiser.feed, parts)) + sanitiser.finish()
    seconds = time.perf_counter() - begin
    assert not FORBIDDEN.search(shown), raw
    assert told(shown) <= {"draw", "linefeed", "tab"}, raw
    assert shown == sanitise(text), raw
    assert sanitise(shown) == shown, raw
    return seconds


def split_everywhere() -> int:
    """How many ways of cutting an attack there were."""
    count = 0
    for attack in ATTACKS:
        text = f"a{attack}z"
        whole = sanitise(text)
        for first in range(len(text) + 1):
            for second in range(first, len(text) + 1):
                sanitiser, cuts = Sanitiser(), (text[:first], text[first:second], text[second:])
                assert "".join(map(sanitiser.feed, cuts)) + sanitiser.finish() == whole, cuts
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=10**7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, done, seconds = random.Random(options.seed), 0, 0.0
    while done < options.bytes:
        raw = fuzz(chance, min(20_000, options.bytes - done))
        seconds += check(raw, chance)
        done += len(raw)
    found = {"bytes": done, "splits": split_everywhere(), "attacks": len(ATTACKS), "us_per_byte": 1e6 * seconds / done}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
