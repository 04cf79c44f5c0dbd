"""The thread that obeys the texts of a chat at a terminal, one at a time, while the event loop's shows what comes of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Protocol

from llamachat.chat.session import Session
from llamachat.errors import LlamachatError, UsageError
from llamachat.events import Event, TextDelta, TurnDone
from llamachat.ui.above import Above
from llamachat.ui.commands import Context, LeaveError, is_message, respond
from llamachat.ui.opening import Chat, StillLoadingError

_PATIENCE = 5.0  # seconds that leaving waits for an answer to stop


@dataclass(frozen=True)
class Typed:
    text: str
    shown: str  # with the size of what was pasted in place of it


class Listener(Protocol):
    """Who is told what came of a text; but for `fail`, in the event loop's thread."""

    def done(self, given_back: Typed | None, told: bool = False) -> None:
        """It is ready for the next text. What is given back was not obeyed, since the model is still loading, or, where the
        reason has been told, is a message that could not be sent."""
        ...

    def leave(self) -> None: ...

    def fail(self, error: BaseException) -> None:
        """What the chat ends with; `leave` follows."""
        ...

    def mistake(self, error: BaseException) -> None:
        """A command has made one."""
        ...


class Worker:
    """Posts the events of answers, and what is to be done after them, to what is above the prompt."""

    def __init__(self, chat: Chat, above: Above, listener: Listener, seen: Callable[[Session], None]) -> None:
        """`seen` is shown the session each time before it is used, in the worker's thread."""
        self._chat, self._above, self._listener, self._seen = chat, above, listener, seen
        self._jobs: SimpleQueue[Typed | None] = SimpleQueue()
        self._thread: Thread | None = None
        self.answering, self.stop_asked = False, False
        self._lock = Lock()  # of these two
        self.given_back = False  # the last text, not obeyed; of a message: as long as nothing is answered

    # ---- in the event loop's thread ----

    def start(self, context: Context) -> None:
        self._thread = Thread(target=self._work, args=(context,), name="obey", daemon=True)
        self._thread.start()

    def obey(self, typed: Typed) -> None:
        self.stop_asked, self.given_back = False, is_message(typed.text)
        self._jobs.put(typed)

    def stop(self, busy: bool) -> None:
        """Stop what it is with, if it is with anything."""
        with self._lock:
            self.stop_asked = busy
            if busy and (session := self._chat.ready()):
                session.interrupt()

    def end(self) -> None:
        """Wait until it is; an answer that does not stop keeps the session busy."""
        self._jobs.put(None)
        if self._thread:
            self._thread.join(_PATIENCE)
            self._chat.busy = self._thread.is_alive()

    # ---- in its own ----

    def _work(self, context: Context) -> None:
        while (typed := self._jobs.get()) is not None:
            after: Callable[[], None] | None = None
            try:
                self._obey(context, typed)
            except LeaveError:
                after = self._listener.leave
            except StillLoadingError:
                self.given_back = True
                after = partial(self._listener.done, typed)
            except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                if self._chat.failure():
                    self.given_back = True
                    return
                if isinstance(error, LlamachatError) and not self._chat.ends(error):
                    self._above.screen.error(error)
                else:
                    self._listener.fail(error)
                    after = self._listener.leave
            self._above.post(after or partial(self._listener.done, typed if self.given_back else None, told=True))

    def _obey(self, context: Context, typed: Typed) -> None:
        events = self._begun(context, typed)
        if events is None:
            return
        session = self.session()
        try:
            with self._lock:
                if self.stop_asked:
                    raise StillLoadingError
                self.answering = True
            for event in events:
                self.given_back = self.given_back and not isinstance(event, TextDelta | TurnDone)
                self._above.post(event)
                with self._lock:
                    if isinstance(event, TurnDone):
                        self.answering = False
                    elif self.stop_asked:  # perhaps a little before there was something to stop
                        session.interrupt()
        finally:
            self.answering = False
            self._above.post(self._above.end_answer)

    def _begun(self, context: Context, typed: Typed) -> Iterator[Event] | None:
        """A command may make a mistake of its own; an answer that does may have spoilt the session, and ends the chat."""
        try:
            return respond(context, typed.text)
        except (LlamachatError, LeaveError):
            raise
        except Exception as error:
            if self._chat.failure():
                raise
            self._above.post(partial(self._listener.mistake, error))
            return None

    def session(self) -> Session:
        """Wait for loading, unless Ctrl-C ends the wait."""
        while True:
            with suppress(TimeoutError):
                session = self._chat.loading.result(0.1)
                self._seen(session)
                return session
            if self.stop_asked:
                raise StillLoadingError


def not_yet() -> Session:
    """Of the session, where it answers."""
    raise UsageError("the model is still loading", remedy="ask again when it is there")
