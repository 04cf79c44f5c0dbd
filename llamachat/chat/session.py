"""Where dialog, cache and generation meet: a conversation that can be asked, stopped, rewound, branched, saved and tuned."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llamachat.chat.export import export
from llamachat.chat.history import History, Record, message
from llamachat.chat.insight import reasons, sampling_of, scored
from llamachat.chat.keeper import Keeper
from llamachat.chat.model_facts import depends_on_length, tokenizer_fingerprint, weights
from llamachat.chat.store import MAX_TEXT, Archive
from llamachat.chat.stream import Said, Stream
from llamachat.chat.thinking import ThinkSplitter, without_thinking
from llamachat.chat.tree import Node, Tree, path
from llamachat.chat.window import Overflow, Window
from llamachat.checks import is_whole, shown
from llamachat.core.cache import Cache
from llamachat.core.sampler import TokenLogprobs
from llamachat.errors import LlamachatError, UsageError, reading
from llamachat.events import Branch, Event, SavedDialog, Stats, TextDelta, TokenView, Turn, TurnDone
from llamachat.generation import snapshot
from llamachat.generation.completion import AnswerSettings
from llamachat.models.load import LoadedModel


class Session:
    """One conversation with a loaded model; see ui.contract.ChatSession for what its methods promise.

    All that is said goes through `_do`, which changes the dialog and writes down how.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: AnswerSettings,
        system: str | None = None,
        overflow: Overflow = "roll",
        *,
        archive: Archive | None = None,
        load_model: Callable[[str], LoadedModel] | None = None,
        snapshots: bool = False,
    ) -> None:
        """`archive`: where the dialog is saved, if it is. `snapshots`: whether its keys and values are kept on disk."""
        self.last_stats: Stats | None = None
        self.history = History(uid=secrets.token_hex(8))
        self._notices: list[str] = []
        self._keeper = Keeper(archive, self._notices.append)
        self._wanted, self._load_model, self._snapshots = overflow, load_model, snapshots
        self._stop_asked = False
        self._greet(model)
        self._adopt(model, settings)
        self.set_system(system)

    def _greet(self, model: LoadedModel) -> None:
        """Say what a person should know of a model."""
        self._notices += model.notes
        if self._wanted == "roll" and depends_on_length(model):
            self._notices.append(
                "positions of this model depend on the context's length: "
                "when that is full, what stays of the dialog is computed anew"
            )

    def _adopt(self, model: LoadedModel, settings: AnswerSettings) -> None:
        """Go on with this model."""
        self.model, self.settings = model, settings
        refills = self._wanted == "roll" and depends_on_length(model)
        self.overflow: Overflow = "refill" if refills else self._wanted
        self._cache = Cache(model.engine.slots)
        self._window = Window(model, self._cache, self.overflow, lambda: self._stop_asked)
        self._do({"type": "model", "name": model.reference, "tokenizer": tokenizer_fingerprint(model.tokenizer)})
        self._do({"type": "parameters", "values": dict(self.parameters())})

    # ---- what it is ----

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.history.system

    @property
    def context_used(self) -> int:
        """Tokens the model remembers."""
        return len(self._cache)

    @property
    def context_size(self) -> int:
        """Tokens it can remember."""
        return self._cache.size

    @property
    def name(self) -> str | None:
        """Under which the dialog is saved; None when it leaves no trace."""
        return self._keeper.name

    def describe(self) -> Mapping[str, str]:
        """Facts for people."""
        return {**self.model.describe(), "weights": weights(self.model), "overflow": self.overflow}

    def notices(self) -> Sequence[str]:
        """Lines not yet handed out."""
        found = list(self._notices)
        self._notices.clear()
        return found

    # ---- answering ----

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a message. Leaving the iteration early, or `interrupt`, keeps what was said so far."""
        self._check(text)
        return self._ask(self._tree.active, text)

    def edit(self, number: int, text: str) -> Iterator[Event]:
        """Ask question `number` in other words, as another branch."""
        self._check(text)
        question = self._tree.question(number)
        assert question.parent is not None
        return self._ask(question.parent, text)

    def regenerate(self) -> Iterator[Event]:
        """Answer the last question once more, as another branch."""
        self._stop_asked = False
        return self._answer_anew(self._last_question())

    def resume(self) -> Iterator[Event]:
        """Go on with the last answer from exactly the tokens it has."""
        self._last_question()
        answer = self._tree.active
        if answer.reason == "stop":
            raise UsageError("the last answer ended by itself", remedy="ask, or /regen for another one")
        if answer.ids is None and answer.text:
            raise UsageError("the last answer's tokens are another model's", remedy="/regen answers anew")
        self._stop_asked = False
        return self._go_on(answer)

    def take_alternative(self, index: int, choice: int) -> Iterator[Event]:
        """Put the choice-th likeliest token in place of the last answer's index-th, and go on, as another branch."""
        ids = self._answer_ids()
        if not 1 <= index <= len(ids):
            raise UsageError(f"there is no token {index}", remedy=f"the last answer has {len(ids)}")
        if not 1 <= choice <= self.model.engine.config.vocab_size:
            raise UsageError(f"there is no alternative {choice}", remedy="count from 1")
        self._stop_asked = False
        token = self._scored(choice, only=index)[0].top[choice - 1][0]
        return self._take(ids[: index - 1], token)

    def interrupt(self) -> None:
        """Stop the answer in progress after the current token; may be called from a signal handler."""
        self._stop_asked = True

    def _check(self, text: str) -> None:
        _require_short("message", text)
        self._stop_asked = False  # what is stopped is what comes from here on, even before its first step

    def _ask(self, parent: Node, text: str) -> Iterator[Event]:
        tree, before = self._tree, self._tree.active
        question = tree.add(parent, "user", text)
        yield from self._answer_new(question, before, question)

    def _answer_anew(self, question: Node) -> Iterator[Event]:
        yield from self._answer_new(question, self._tree.active)

    def _answer_new(self, question: Node, before: Node, new: Node | None = None) -> Iterator[Event]:
        """A new answer to a question, which is new itself or not; where it cannot begin, all is as before."""
        answer = self._tree.add(question, "assistant")
        answer.parameters = self.history.parameters
        first = new or answer
        try:
            prompt = self._window.prompt(path(question), answer, self.system)
        except LlamachatError:
            self._tree.drop(first)
            self._tree.active = before
            raise
        self._write([message(node) for node in ([new, answer] if new else [answer])], sync=True)
        try:
            yield from self._generate(answer, prompt)
        except LlamachatError:
            if not answer.ids:
                self._do({"type": "drop", "id": first.id})
                self._do({"type": "active", "id": before.id})
            raise

    def _go_on(self, answer: Node) -> Iterator[Event]:
        prompt = self._window.prompt(path(answer)[:-1], answer, self.system)
        yield from self._generate(answer, prompt)

    def _take(self, ids: Sequence[int], token: int) -> Iterator[Event]:
        """A new answer that begins with these ids, and goes on after them unless the token ends it."""
        before, question = self._tree.active, self._last_question()
        ends = token in self.settings.stop_ids
        ids = [*ids] if ends else [*ids, token]
        answer = self._tree.add(question, "assistant", Said(self.model, self._window).text(ids, before))
        answer.ids, answer.parameters = tuple(ids), self.history.parameters
        try:
            prompt = self._window.prompt(path(question), answer, self.system)
        except LlamachatError:
            self._tree.drop(answer)
            self._tree.active = before
            raise
        piece = {"type": "piece", "id": answer.id, "text": answer.text, "ids": ids}
        self._write([message(answer), piece], sync=True)
        splitter = ThinkSplitter()
        yield from (TextDelta(*part) for part in splitter.add(answer.text))
        if not ends:
            yield from self._generate(answer, prompt)
            return
        self._do({"type": "end", "id": answer.id, "reason": "stop", "exact": True, "text": None}, sync=True)
        self.last_stats = Stats(len(prompt), len(prompt), 0, 0.0, 0.0, len(self._cache), self._cache.size)
        yield TurnDone(self.last_stats, "stop")

    def _generate(self, node: Node, prompt: list[int]) -> Iterator[Event]:
        """Stream an answer, or the rest of one."""
        stream = Stream(self.model, self._window, self.settings, node, prompt, self._streamed, lambda: self._stop_asked)
        try:
            yield from stream
        finally:
            self.last_stats = stream.answer.stats()
        yield TurnDone(self.last_stats, stream.answer.reason)

    def _streamed(self, record: Record) -> None:
        self._do(record, sync=record["type"] == "end")

    # ---- the dialog ----

    @property
    def _tree(self) -> Tree:
        return self.history.tree

    def turns(self) -> Sequence[Turn]:
        """The active branch from the system prompt on, dropped turns included."""
        line, view = path(self._tree.active), self._window.view
        dropped = 2 * self._window.first(line)
        found = list[Turn]()
        if self.system:
            known = view is not None and view.system == self.system
            found.append(Turn(0, "system", self.system, len(view.pinned) if view and known else 0, "pinned"))
        for i, node in enumerate(line):
            tokens = node.tokens or len(node.ids or ())
            said = node.text if node.role == "user" else without_thinking(node.text)
            found.append(Turn(i // 2 + 1, node.role, said, tokens, "dropped" if i < dropped else "kept"))
        return found

    def clear(self) -> None:
        """Begin anew, as another branch."""
        self._do({"type": "active", "id": 0})
        self._window.forget()
        self.last_stats = None

    def begin(self, messages: Sequence[tuple[Literal["user", "assistant"], str]]) -> None:
        """`clear`, then have these said, question and answer in turn."""
        roles = [role for role, _ in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise UsageError("first messages are not question and answer in turn", remedy="begin with a question")
        for _, text in messages:
            self._check(text)
        self.clear()
        for role, text in messages:
            node = self._tree.add(self._tree.active, role, text)
            self._write([message(node)])
            if role == "assistant":
                node.text = ""
                self._do({"type": "piece", "id": node.id, "text": text, "ids": []})
                self._do({"type": "end", "id": node.id, "reason": "stop", "exact": False, "text": None})

    def set_system(self, text: str | None) -> None:
        """Another system prompt from the next answer on; the dialog stays."""
        _require_short("system prompt", text or "")
        self._do({"type": "system", "text": text or None})

    def undo(self, count: int = 1) -> int:
        """Go back before the last `count` questions; returns how many that were."""
        line = [self._tree.root, *path(self._tree.active)]
        if count < 1 or len(line) == 1:
            raise UsageError("there is nothing to undo")
        back = min(count, len(line) // 2)
        self._do({"type": "active", "id": line[-2 * back - 1].id})
        return back

    def fork(self) -> int:
        """Mark this point: what comes next is another branch; returns the id of the one left behind."""
        here = self._tree.active.id
        self._do({"type": "fork", "id": here})
        return here

    def branches(self) -> Sequence[Branch]:
        """All of them, in the order they began."""
        return self._tree.branches()

    def switch(self, branch: int) -> None:
        """Make another branch the active one."""
        self._do({"type": "active", "id": self._tree.find(branch).id})

    def _last_question(self) -> Node:
        question = self._tree.active.parent
        if question is None:
            raise UsageError("there is no answer yet", remedy="ask something")
        return question

    # ---- on disk ----

    def _do(self, record: Record, sync: bool = False) -> None:
        """Change the dialog, and write down how."""
        self.history.apply(record)
        self._write([record], sync)

    def _write(self, records: Sequence[Record], sync: bool = False) -> None:
        self._keeper.write(self.history, records, sync)

    def save(self, name: str) -> None:
        """Call the dialog this from now on."""
        self._keeper.rename(name)

    def load(self, name: str) -> None:
        """Leave this dialog (it stays saved) and open another; a copy of it where another chat has it open."""
        if name == self.name and self._keeper.journal is not None:
            return
        opened = self._keeper.fetch(name)
        held_with = opened.history.model
        try:
            settings = self._settings_of(opened.history.parameters)
        except UsageError:
            opened.journal.close()
            raise
        self.close()
        self._keeper.adopt(opened)
        self.history, self.last_stats = opened.history, None
        self._adopt(self.model, settings)
        if held_with not in ("", self.model.reference):
            self._notices.append(f"this dialog was held with {held_with}; {self.model.name} goes on with it")
        self._restore()

    def open(self, name: str) -> None:
        """`load`, or begin a dialog of this name."""
        (self.load if self._keeper.archive.exists(name) else self.save)(name)

    def saved(self) -> Sequence[SavedDialog]:
        """Every dialog on disk, the latest first."""
        return self._keeper.archive.saved()

    def export(self, file: Path) -> None:
        """The active branch as Markdown, or as JSON where the name ends in .json."""
        about = {"name": self.name, "model": self.model.name, "parameters": self.parameters(), "system": self.system}
        export(file, path(self._tree.active), about)

    def close(self) -> None:
        """Leave the dialog: keep its keys and values, let its file go."""
        if self._snapshots and self._keeper.journal is not None and (state := self._window.state()):
            with suppress(OSError):  # a full disk: it is computed anew next time
                snapshot.save(self._snapshot(), self.model.engine, self._cache, state)
        if self._keeper.unsaved:
            self._write([], sync=True)  # there may be room by now
        self._keeper.close()

    def _restore(self) -> None:
        """Take up the keys and values that were kept when the dialog was left, if they are of what it is now."""
        if not self._snapshots:
            return
        try:
            with reading("the keys and values that were kept"):
                state = snapshot.restore(self._snapshot(), self.model.engine, self._cache, self._notices.append)
                if state is not None:
                    self._window.take_up(state, self._tree)
        except LlamachatError:  # of another dialog, or the model's files have been removed
            self._cache.truncate(0)

    def _snapshot(self) -> Path:
        return snapshot.place(self.model, f"dialog {self.history.uid}")

    # ---- settings ----

    def parameters(self) -> Mapping[str, object]:
        """What `set_parameter` can set, with the current values."""
        sampling = self.settings.sampling
        names = (name for name in sampling.__dataclass_fields__ if name != "logit_bias")
        return {**{name: getattr(sampling, name) for name in names}, "max_tokens": self.settings.max_tokens}

    def set_parameter(self, name: str, value: str) -> None:
        """Set a parameter from its text, "none" for no value. Raises UsageError on a bad name or value."""
        if name not in self.parameters():
            raise UsageError(f"there is no parameter {name!r}", remedy=f"known: {', '.join(self.parameters())}")
        self.settings = self._settings_of({**self.parameters(), name: _number(name, value)})
        self._do({"type": "parameters", "values": dict(self.parameters())})

    def _settings_of(self, parameters: Mapping[str, Any]) -> AnswerSettings:
        """Raises UsageError for impossible ones."""
        limit = parameters.get("max_tokens")
        if limit is not None and (not is_whole(limit) or limit < 1):
            raise UsageError(f"max_tokens cannot be {shown(limit)}", remedy="give a whole number from 1 on, or none")
        return replace(self.settings, sampling=sampling_of(parameters, self.settings.sampling), max_tokens=limit)

    def use_model(self, name: str) -> None:
        """Put another model in this one's place and keep the dialog; the old one stays where that fails or is stopped."""
        if self._load_model is None:
            raise UsageError("this chat has one model only")
        self._stop_asked = False
        model = self._load_model(name)
        _ = model.dialog  # raises UsageError where it cannot chat
        if self._stop_asked:
            raise UsageError("stopped", f"{self.model.name} stays")
        self._greet(model)
        self._adopt(model, replace(self.settings, stop_ids=model.stop_ids))

    # ---- seeing inside ----

    def tokens(self, alternatives: int = 10) -> Sequence[TokenView]:
        """The last answer, token by token, scored anew."""
        self._stop_asked = False
        text = self.model.token_text
        return [
            TokenView(text(each.id), each.id, each.logprob, tuple((text(id), id, value) for id, value in each.top))
            for each in self._scored(alternatives)
        ]

    def why(self) -> Sequence[tuple[str, str]]:
        """Which settings shaped the last answer, and what each did to it."""
        self._stop_asked = False
        ids, answer = self._answer_ids(), self._tree.active
        params = sampling_of(answer.parameters, self.settings.sampling)
        whole = self._whole(answer)
        rows = reasons(self.model.engine, self._cache, whole, len(ids), params, lambda: self._stop_asked)
        end = {
            "stop": "the model ended it",
            "length": "max_tokens or the context ended it",
            "interrupt": "it was stopped",
        }
        limit = answer.parameters.get("max_tokens")
        return [*rows, ("max_tokens", f"{'none' if limit is None else limit}: {end[answer.reason]}")]

    def _answer_ids(self) -> tuple[int, ...]:
        """Of the last answer. Raises UsageError where there is none."""
        self._last_question()
        ids = self._tree.active.ids
        if not ids:
            raise UsageError("the last answer has no tokens of this model", remedy="/regen answers anew")
        return ids

    def _scored(self, top: int, only: int | None = None) -> list[TokenLogprobs]:
        """Logprobs of the last answer's tokens, or of one of them (from 1)."""
        ids, answer = self._answer_ids(), self._tree.active
        whole, count = self._whole(answer), len(ids)
        if only is not None:
            whole, count = whole[: len(whole) - len(ids) + only], 1
        return scored(self.model.engine, self._cache, whole, count, top, lambda: self._stop_asked)

    def _whole(self, answer: Node) -> list[int]:
        """All ids up to the end of the last answer. Raises UsageError where the model sees only its end."""
        whole = self._window.in_step(path(answer)[:-1], answer, self.system)
        view = self._window.view
        if view is None or view.gone or len(whole) - 1 > self._cache.size:
            raise UsageError("question and answer are not in the context as a whole", "the answer cannot be scored")
        return whole


def _require_short(what: str, text: str) -> None:
    """Raises UsageError for what would make a line of the file that cannot be read again."""
    if len(text) > MAX_TEXT:
        raise UsageError(f"the {what} has {len(text)} characters", "it was not sent", f"at most {MAX_TEXT} will do")


def _number(name: str, text: str) -> Any:
    """An int or float from its text; None for "none"."""
    if text.strip().lower() in ("none", "off", ""):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(f"{name} cannot be {text!r}", remedy="give a number, or none")
