"""A chat from the first moment on: while its session loads, and how far that is."""

import signal
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

from llamachat.chat.session import Session
from llamachat.errors import LlamachatError, LostError
from llamachat.ui.progress_line import ProgressLine

ENDINGS = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]


class StillLoadingError(KeyboardInterrupt):
    """Ctrl-C while a text waited for the model."""


class Watch:
    """How far loading is: written by whoever loads, in any thread, and shown while one waits for it."""

    def __init__(self) -> None:
        self.plan = ""  # what memory it will take
        self.line = ""
        self.notes: list[str] = []  # to be shown once it is done
        self._progress = ProgressLine()

    def progress(self, what: str, done: int, total: int | None) -> None:
        self._progress.tell(what, done, total)
        self.line = self._progress.line

    def note(self, line: str) -> None:
        self.line = line
        self.notes.append(line)


class Chat:
    """A session that may still be loading."""

    def __init__(self, load: Callable[[], Session], model: str = "", watch: Watch | None = None) -> None:
        self.watch = watch or Watch()
        self.loading: Future[Session] = Future()
        self.model = model or "the model"
        self.busy = False  # with something that could not be stopped
        # A daemon, so that one may leave before a download ends.
        Thread(target=self._load, args=(load,), name="load", daemon=True).start()

    def _load(self, load: Callable[[], Session]) -> None:
        try:
            self.loading.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread, by result()
            self.loading.set_exception(error)

    def ready(self) -> Session | None:
        return None if self.failure() or not self.loading.done() else self.loading.result()

    def failure(self) -> BaseException | None:
        """Why there will never be a session."""
        return self.loading.exception() if self.loading.done() else None

    def ends(self, error: LlamachatError) -> bool:
        """Whether nothing more can be asked, and the error is the chat's last word."""
        return self.failure() is not None or isinstance(error, LostError)

    def close(self) -> None:
        """Let the session write down what it wants to keep."""
        if session := self.ready():
            session.close()


def ignore_signals() -> None:
    """From now on nothing keeps the session from being closed; shells, for one, send SIGHUP twice."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
