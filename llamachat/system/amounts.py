"""Bytes for people; how fast something gets done, and how long the rest will take."""

import re
import time
from collections import deque
from collections.abc import Callable

WINDOW = 10.0  # seconds that the speed is a mean of
LEAST = 1.0  # seconds before anything is said
AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]?)B", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(count: float) -> str:
    """Bytes for people: '93 MB', '1.3 GB' (decimal, as disks and downloads are counted)."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


def parse_size(text: str) -> int | None:
    """Bytes of what a person wrote ('5GB', '1.5 GB', '500MB'; decimal, as `size` counts); None for anything else."""
    match = AMOUNT.fullmatch(text.strip())
    return round(float(match[1]) * UNITS[match[2].upper()]) if match else None


def share(done: int, total: int) -> str:
    """Of so many bytes: '12/93 MB', '0.4/1.3 GB'."""
    number, unit = size(total).split()
    scale = {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return f"{done / scale:.{len(number.partition('.')[2])}f}/{number} {unit}"


class Pace:
    """Told how much is done, again and again. What was done before the first time (by an earlier run) is not counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def tell(self, done: int) -> None:
        """`done` may fall, where it begins anew."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        if len(self._seen) > 1 and now - self._seen[-2][0] < LEAST / 10:
            self._seen.pop()
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def speed(self) -> float | None:
        """A second; None while that is not known, or nothing comes."""
        (begin, before), (end, after) = (self._seen[0], self._seen[-1]) if self._seen else ((0, 0), (0, 0))
        return (after - before) / (end - begin) if end - begin >= LEAST and after > before else None

    def left(self, total: int) -> str:
        """Of the time, as a clock shows it: '0:42', '1:05:00'; "" while that is not known."""
        if self.speed is None:
            return ""
        seconds = min(int((total - self._seen[-1][1]) / self.speed), 359_999)
        hours, minutes = divmod(seconds // 60, 60)
        return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{seconds % 60:02}"
