"""How far something is, in one line: 'fetching ██░░░░ 25% · 0:42 left · 202/808 MB · 14 MB/s · owner/repo'."""

import time
from collections.abc import Iterator

from llamachat.events import Progress
from llamachat.system.amounts import Pace, share, size
from llamachat.ui.render import meter, percent

LONG, SHORT = 10, 6  # cells of a bar, and of one with amounts behind it
BYTES = ("fetching", "checking", "unpacking")  # what is told of these begins with the word, and is counted in bytes
LATE = 1.0  # seconds that something may take without a word


def late(progress: Progress) -> Progress:
    """It, from a second on."""
    begin = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        if time.monotonic() - begin > LATE:
            progress(what, done, total)

    return tell


class ProgressLine:
    """Told what is being done, and how much of it is done, again and again; `what` and so the line may be anyone's text."""

    def __init__(self) -> None:
        self.line = ""
        self._what, self._pace = "", Pace()

    def tell(self, what: str, done: int, total: int | None) -> None:
        """The line ends where the terminal does, so what matters most comes first."""
        if what != self._what:
            self._what, self._pace = what, Pace()
        self._pace.tell(done)
        verb, _, thing = what.partition(" ")
        width = SHORT if verb in BYTES else LONG
        bar = f"{meter(min(done, total), total, width)} {percent(done, total)}" if total else ""
        if total and verb in BYTES:
            self.line = " · ".join(filter(None, (f"{verb} {bar}", *self._amounts(done, total), thing)))
        else:
            self.line = f"{what} {bar}".rstrip()

    def _amounts(self, done: int, total: int) -> Iterator[str]:
        left, speed = self._pace.left(total), self._pace.speed
        yield f"{left} left" if left and done < total else ""
        yield share(done, total)
        yield f"{size(speed)}/s" if speed else ""
