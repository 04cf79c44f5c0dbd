"""Answers of earlier dialogs, for guesses at what comes: read in the background, while nothing is answered."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock, Thread

from llamachat.generation.guesses import Guesses
from llamachat.generation.suffixes import SuffixArray

MOST = 100_000  # tokens, sorted in some 70 ms; in memory 40 bytes each
PATIENCE = 1.0  # seconds in which a first question may come that nothing is to be in the way of


class Recall:
    """What a model guesses by, to which answers may come from another thread."""

    def __init__(self) -> None:
        self.guesses, self.saved = Guesses(), False  # whether dialogs are saved
        self._idle, self._over = Event(), Event()  # nothing is answered; the reading under way is wanted no more
        self._lock = Lock()  # of what is found
        self._idle.set()

    def begin(self, answers: Iterable[Sequence[int]], vocab_size: int) -> None:
        """Guess by these alone, and by what is said from now on. Ids that the vocabulary lacks spoil their answer."""
        with self._lock:
            self._over.set()
            self._over, self.saved = Event(), True
            self.guesses.forget()
        Thread(target=self._read, args=(answers, vocab_size, self._over), name="recall", daemon=True).start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While something is answered."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def _read(self, answers: Iterable[Sequence[int]], vocab_size: int, over: Event) -> None:
        over.wait(PATIENCE)
        texts, left = list[Sequence[int]](), MOST
        for ids in answers:
            self._idle.wait()
            if over.is_set() or not left:
                break
            if ids and min(ids) >= 0 and max(ids) < vocab_size:
                texts.append(ids[:left])
                left -= len(texts[-1])
        if over.is_set() or not texts:
            return
        found = SuffixArray(texts)
        with self._lock:
            if not over.is_set():
                self.guesses.earlier = found
