"""Many questions to a server at once: as many threads, each of which waits for its own answer."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from llamachat.errors import LlamachatError
from llamachat.remote.asking import ServerError

WINDOW = 1024  # results that may wait for an earlier one
POLL = 0.05  # seconds between two looks at what may have come
Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True)
class Patience:
    """How long a server that says when it is to be asked again is waited for, in seconds."""

    least: float = 0.5  # before a question is asked again
    most: float = 300  # for one question in all


USUAL = Patience()


class InFlight(Generic[Asked, Given]):
    """Up to `parallel` questions under way; a server that is busy is asked again, which `say` is told."""

    def __init__(
        self,
        answer: Callable[[Asked, Callable[[], bool]], Given],
        parallel: int,
        interrupted: Callable[[], bool],
        say: Callable[[str], None],
        patience: Patience = USUAL,
    ) -> None:
        """`answer` is called in a thread, with what tells it to stop, and may raise LlamachatError."""
        self._answer, self._parallel, self._interrupted = answer, parallel, interrupted
        self._say, self._patience = say, patience
        self._left = threading.Event()  # nobody takes outcomes any more
        self._waiting: deque[Future[Given | LlamachatError]] = deque()  # in the order of their questions

    @property
    def idle(self) -> bool:
        """Nothing can be done before the next question: who gives the questions may wait for it."""
        return not self._waiting

    def run(self, requests: Iterator[Asked | LlamachatError | None]) -> Generator[Given | LlamachatError, None, None]:
        """An outcome for each question, in order, as soon as it and those before have ended.

        None from `requests` means that there is none yet; an error among them is passed on in its place. When interrupted,
        the answers in progress end as they are, and no more are begun.
        """
        more = True
        with ThreadPoolExecutor(self._parallel) as threads:
            try:
                while more or self._waiting:
                    more = not self._interrupted() and self._admit(requests, threads) and more
                    while self._waiting and self._waiting[0].done():
                        yield self._waiting.popleft().result()
                    if pending := [each for each in self._waiting if not each.done()]:
                        wait(pending, POLL, FIRST_COMPLETED)
            finally:
                self._left.set()

    def _admit(self, requests: Iterator[Asked | LlamachatError | None], threads: ThreadPoolExecutor) -> bool:
        """Ask as many as may be under way; False when there are no more."""
        while self._under_way < self._parallel and len(self._waiting) < WINDOW and not self._stopped():
            try:
                request = next(requests)
            except StopIteration:
                return False
            if request is None:
                break
            if isinstance(request, LlamachatError):
                bad: Future[Given | LlamachatError] = Future()
                bad.set_result(request)
                self._waiting.append(bad)
            else:
                self._waiting.append(threads.submit(self._outcome, request))
        return True

    @property
    def _under_way(self) -> int:
        return sum(not each.done() for each in self._waiting)

    def _outcome(self, request: Asked) -> Given | LlamachatError:
        left = self._patience.most
        while True:
            try:
                return self._answer(request, self._stopped)
            except ServerError as error:
                pause = max(error.retry_after or 0, self._patience.least)
                if error.retry_after is None or pause > left:
                    return error
                left -= pause
                self._say("the server is busy; questions that it turns away are asked again when it says")
                self._pause(pause)
            except LlamachatError as error:
                return error

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped():
            self._left.wait(min(left, POLL))

    def _stopped(self) -> bool:
        return self._left.is_set() or self._interrupted()
