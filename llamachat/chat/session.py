"""A conversation that can be asked, stopped, rewound, branched, saved and tuned; a backend gives the answers."""

import gc
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llamachat.chat.asked import Asked, Beginning
from llamachat.chat.backend import Backend, adapting, drawing, require, scoring
from llamachat.chat.export import export
from llamachat.chat.history import History, message, piece
from llamachat.chat.kept_dialog import Dialog, require_short
from llamachat.chat.recording import Stream
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.chat.tree import Node, path
from llamachat.errors import LlamachatError, UsageError
from llamachat.events import (
    AdapterView,
    Event,
    Finished,
    Forgotten,
    Progress,
    Stats,
    TextSize,
    TokenView,
    Turn,
    TurnDone,
)


class Session(Dialog):
    """One dialog and what answers it: all that the terminal, and whoever else shows a chat, asks of it.

    What returns an iterator of events answers something: it ends with TurnDone, and whatever was answered is kept, even of
    a stopped turn, and even when the iterator is left. Every method raises LlamachatError (UsageError for what makes no
    sense now, or what the backend cannot do) and then has changed nothing. Only `interrupt` may be called while another is
    at work.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        system: str | None = None,
        *,
        archive: Archive | None = None,
        another: Callable[[str, Progress], Backend] | None = None,
    ) -> None:
        """`archive`: where the dialog is saved, if it is. `another`: makes the backend of another model, telling how far."""
        super().__init__(settings, archive)
        self.last_stats: Stats | None = None  # of the last answer, if there was one
        self._another, self._stop_asked = another, False
        self._unheard: str | None = None  # what the person has been told of
        self._notices += backend.notes
        self._adopt(backend, settings)
        self._recall()
        self.set_system(system)

    def _adopt(self, backend: Backend, settings: Settings) -> None:
        """Go on with these."""
        self.backend, self.settings = backend, settings
        self._do({"type": "model", "name": backend.reference, "tokenizer": backend.tokenizer})
        self._record_parameters()

    def _recall(self) -> None:
        """Let the backend know what was answered in the dialogs that are saved now."""
        if self.kept:
            self.backend.recall(self._keeper.archive.answers)

    # ---- what it is ----

    @property
    def context_used(self) -> int:
        """Tokens the model remembers: see Backend."""
        return self.backend.context_used

    @property
    def context_size(self) -> int:
        """Tokens it can remember; 0: not known."""
        return self.backend.context_size

    def describe(self) -> Mapping[str, str]:
        """What is running, for people; "model", "weights" (scheme and size) and "engine" are always among the keys."""
        return self.backend.describe()

    def weigh(self, text: str) -> TextSize | None:
        """What a text would take of the context; None where nobody can tell."""
        return self.backend.weigh(text, self.system)

    def finished(self) -> Finished:
        """For who must not ask any more once an answer is under way."""
        return Finished(
            self.name,
            self.on_disk,
            self.describe(),
            self.last_stats,
            self.context_used,
            self.context_size,
            self.turns(),
            self.saved,
        )

    # ---- answering ----

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a message."""
        self._check(text)
        return self._answer_new(self._tree.active, text)

    def edit(self, number: int, text: str) -> Iterator[Event]:
        """Ask question `number` in other words, as another branch."""
        self._check(text)
        return self._answer_new(self._tree.before_question(number), text)

    def regenerate(self) -> Iterator[Event]:
        """Answer the last question once more, as another branch."""
        self._stop_asked = False
        return self._answer_new(self._last_question())

    def resume(self) -> Iterator[Event]:
        """Go on with the last answer from exactly the tokens it has. Raises UsageError where it had ended by itself."""
        self._last_question()
        answer = self._tree.active
        if answer.reason == "stop":
            raise UsageError("the last answer ended by itself", remedy="ask, or /regen for another one")
        if answer.text:
            require(self.backend, "continues")
            if answer.ids is None:
                raise UsageError("the last answer's tokens are another model's", remedy="/regen answers anew")
        self._stop_asked = False
        self._write([], sync=True)  # a copy of what another chat has open is no file yet
        return self._stream(answer)

    def take_alternative(self, index: int, choice: int) -> Iterator[Event]:
        """Put the choice-th likeliest token (from 1) in place of the last answer's index-th (from 1) and go on from there,
        as another branch; the first TextDelta brings the text up to and with it."""
        require(self.backend, "continues")
        backend, asked = drawing(self.backend), self._last_answer()
        return self._take(asked.path[-1], backend.alternative(asked, index, choice))

    def interrupt(self) -> None:
        """Stop what is under way, soon: an answer's iterator then ends with TurnDone("interrupt"), and what is slow raises
        UsageError. Harmless otherwise. Called from a signal handler or another thread, perhaps more than once."""
        self._stop_asked = True

    def _check(self, text: str) -> None:
        require_short("message", text)
        self._stop_asked = False  # what is stopped is what comes from here on, even before its first step

    def _answer_new(self, behind: Node, text: str | None = None) -> Iterator[Event]:
        """A new answer to a question, or to this one behind an answer; where it cannot begin, all is as before."""
        before = self._tree.active
        new = [] if text is None else [self._tree.add(behind, "user", text)]
        answer = self._tree.add(new[0] if new else behind, "assistant")
        new.append(answer)
        events = self._begun(answer, before, new[0])
        self._write([message(node) for node in new], sync=True)
        try:
            yield from self._stream(answer, events)
        except LlamachatError:
            if not (answer.ids or answer.text):
                self._do({"type": "drop", "id": new[0].id})
                self._do({"type": "active", "id": before.id})
            raise

    def _take(self, question: Node, begun: Beginning) -> Iterator[Event]:
        """A new answer that begins so."""
        before, answer = self._tree.active, self._tree.add(question, "assistant", begun.text)
        answer.ids, answer.reason = begun.ids, "stop" if begun.ends else "interrupt"
        events = self._begun(answer, before, answer)
        self._write([message(answer), piece(answer)], sync=True)
        yield from self._stream(answer, events, repeat=True)

    def _begun(self, answer: Node, before: Node, first: Node) -> Iterator[Event]:
        """The events of an answer; where it cannot begin, what is new of the dialog (from `first` on) goes again."""
        answer.parameters = self.history.parameters
        try:
            return self.backend.respond(self._asked(answer), self.settings)
        except LlamachatError:
            self._tree.drop(first)
            self._tree.active = before
            raise

    def _stream(self, answer: Node, events: Iterator[Event] | None = None, repeat: bool = False) -> Iterator[Event]:
        """What is shown of an answer's events: those of going on with it unless given. `repeat`: and what it has."""
        events = events or self.backend.respond(self._asked(answer), self.settings)
        stream = Stream(answer, events, self._do, self.interrupt, repeat)
        try:
            yield from stream
        finally:
            if stream.done:
                self.last_stats = stream.done.stats
        assert stream.done, "a backend that does not raise ends with TurnDone"
        yield TurnDone(stream.done.stats, stream.done.reason, stream.done.exact)

    def _asked(self, answer: Node) -> Asked:
        return Asked(path(answer)[:-1], answer, self.system, lambda: self._stop_asked)

    # ---- the dialog ----

    def notices(self) -> Sequence[str]:
        """See Dialog; one says, when it becomes so, what the backend cannot do of the settings in force."""
        before, self._unheard = self._unheard, self.backend.unheard(self.settings)
        new = [self._unheard] if self._unheard and self._unheard != before else []
        return [*super().notices(), *self.backend.remarks(), *new]

    def use_model(self, name: str, progress: Progress = lambda what, done, total: None) -> None:
        """Put another model in this one's place and keep the dialog; slow. The old one stays where that fails or is stopped."""

        def told(what: str, done: int, total: int | None) -> None:
            self._require_going()
            progress(what, done, total)

        self._stop_asked = False
        backend = self.backend.sibling(name) or self._elsewhere(name, told)
        backend.check()
        self._require_going()
        self._notices += backend.notes
        self._adopt(backend, self.settings)
        self.last_stats = None  # they were the other one's
        self._recall()
        gc.collect()  # the old one may hang in a cycle (a traceback's, of an import), and is large; see __main__

    def _elsewhere(self, name: str, progress: Progress) -> Backend:
        if self._another is None:
            raise UsageError("this chat has one model only")
        return self._another(name, progress)

    def _require_going(self) -> None:
        """Raises UsageError where another model was to come, and is no longer."""
        if self._stop_asked:
            raise UsageError("stopped", f"{self.backend.name} stays")

    def others(self) -> Sequence[tuple[str, str]]:
        """Models where this one is, which `use_model` takes by name; each with a word on it."""
        return self.backend.others()

    def adapters(self) -> Sequence[AdapterView]:
        """Those of the model, off ones too, in the order in which they are added up."""
        return adapting(self.backend).adapters()

    def add_adapter(self, path: str) -> AdapterView:
        """One more, of "PATH[:SCALE]"; slow. The dialog stays, and is read anew with the next question."""
        added = adapting(self.backend).add_adapter(path)
        self._record_parameters()
        return added

    def scale_adapter(self, name: str, scale: float | None) -> AdapterView:
        """Another scale, 0: off, for an adapter; None: on again. As with `add_adapter`, the dialog is read anew."""
        scaled = adapting(self.backend).scale_adapter(name, scale)
        self._record_parameters()
        return scaled

    def recorded(self) -> Mapping[str, object]:
        """See Dialog; and the adapters that answer."""
        found = adapting(self.backend).adapters() if "adapters" in self.backend.capabilities else ()
        scales = {each.name: each.scale for each in found if each.scale}
        return {**super().recorded(), **({"adapters": scales} if scales else {})}

    def clear(self) -> None:
        """See Dialog; what the model remembers of it goes too."""
        super().clear()
        self.backend.forget()
        self.last_stats = None

    def turns(self) -> Sequence[Turn]:
        """The active branch from the system prompt on, dropped turns included."""
        return self._turns(self.backend.seen(path(self._tree.active), self.system))

    def context(self) -> Sequence[Turn]:
        """`turns`, for what they say of what the model sees. Raises UsageError where that is not known."""
        require(self.backend, "window")
        return self.turns()

    # ---- on disk ----

    def load(self, name: str) -> None:
        """Leave this dialog (it stays saved) and open another; where another chat has that open, a copy, which is saved with
        the first question."""
        if name == self.name and self._keeper.journal is not None:
            return
        opened, settings = self._fetch(name)
        held_with, adapted = opened.history.model, opened.history.parameters.get("adapters", {})
        self.close()
        self._keeper.adopt(opened)
        self.history, self.last_stats = opened.history, None
        self._adopt(self.backend, settings)
        if held_with not in ("", self.backend.reference):
            self._notices.append(f"this dialog was held with {held_with}; {self.backend.name} goes on with it")
        if adapted != self.recorded().get("adapters", {}):
            names = ", ".join(map(str, adapted)) if isinstance(adapted, dict) and adapted else "none"
            self._notices.append(f"this dialog was held with other adapters ({names[:200]}); /lora lists those here")
        self.backend.take_up(self.history.uid, self._tree, self._notices.append)

    def new(self) -> None:
        """Leave this dialog (it stays saved) and begin another, with the same system prompt and settings."""
        self.close()
        self._begin_another()

    def delete(self, name: str) -> Forgotten:
        """See Dialog; in the place of this one another begins."""
        this = name == self.name
        forgotten = super().delete(name)
        if this:
            self._begin_another()
        self._recall()
        return forgotten

    def _begin_another(self) -> None:
        system = self.system
        self._keeper.leave()
        self.history, self.last_stats = History(uid=secrets.token_hex(8)), None
        self._adopt(self.backend, self.settings)
        self.set_system(system)
        self.backend.forget()

    def open(self, name: str) -> None:
        """`load`, or begin a dialog of this name."""
        (self.load if self._keeper.archive.exists(name) else self.save)(name)

    def export(self, file: Path) -> None:
        """The active branch as Markdown, or as JSON where the name ends in .json; an existing file is refused."""
        about = {"name": self.name, "model": self.backend.name, "parameters": self.parameters(), "system": self.system}
        export(file, path(self._tree.active), about)

    def close(self) -> None:
        """See Dialog; the backend keeps what helps to go on."""
        if self._keeper.journal is not None:
            self.backend.keep(self.history.uid)
        super().close()

    # ---- seeing inside ----

    def tokens(self, alternatives: int = 10) -> Sequence[TokenView]:
        """The last answer, token by token; a model that runs here scores it anew (slow for long answers)."""
        return scoring(self.backend).tokens(self._last_answer(), alternatives)

    def why(self) -> Sequence[tuple[str, str]]:
        """Which settings shaped the last answer, and what each did to it: rows for people."""
        return drawing(self.backend).why(self._last_answer(), self.settings)

    def _last_answer(self) -> Asked:
        """To be looked into. Raises UsageError where there is none."""
        self._stop_asked = False
        self._last_question()
        return self._asked(self._tree.active)
