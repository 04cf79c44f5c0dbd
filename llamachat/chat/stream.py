"""One answer on its way: into events for the screen, and into the records of its node."""

import time
from collections.abc import Callable, Iterator, Sequence

from llamachat.chat.history import Record
from llamachat.chat.thinking import ThinkSplitter, opened_by, spelled_tags
from llamachat.chat.tree import Node
from llamachat.chat.window import Window
from llamachat.core.detokenize import Detokenizer
from llamachat.events import Event, Evicted, TextDelta
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.models.load import LoadedModel

FLUSH_S = 1.0  # seconds after which what came of an answer is put on disk


class Stream:
    """Iterate once; `do` is given what the node becomes, the end included, wherever the iteration is left."""

    def __init__(
        self,
        model: LoadedModel,
        window: Window,
        settings: AnswerSettings,
        node: Node,
        prompt: list[int],
        do: Callable[[Record], None],
        interrupted: Callable[[], bool],
    ) -> None:
        """A node that has tokens goes on behind them; `prompt` ends with these."""
        self._window, self._node, self._do = window, node, do
        self._begun = node.ids or ()
        self._said = Said(model, window)
        self.answer = Answer(
            model.engine,
            model.tokenizer,
            window.cache,
            prompt,
            settings,
            interrupted=interrupted,
            room=window.room,
            begun=self._begun,
            spelled=self._said.spelled,
        )
        self._pieces = [] if self._begun else [self._said.opened]  # of the text, not yet in a record
        self._recorded, self._flushed = 0, time.monotonic()

    def __iter__(self) -> Iterator[Event]:
        splitter = ThinkSplitter()
        splitter.add(self._node.text + "".join(self._pieces))
        try:
            yield from self._evictions()
            for piece in self.answer:
                self._pieces.append(piece)
                if time.monotonic() - self._flushed >= FLUSH_S:
                    self._flush()
                yield from self._evictions()
                yield from (TextDelta(*part) for part in splitter.add(piece))
            yield from self._evictions()
            yield from (TextDelta(*part) for part in splitter.finish())
        finally:
            self._flush()
            self._end()

    def _flush(self) -> None:
        ids = self.answer.ids[self._recorded :]
        self._do({"type": "piece", "id": self._node.id, "text": "".join(self._pieces), "ids": ids})
        self._pieces.clear()
        self._recorded, self._flushed = len(self.answer.ids), time.monotonic()

    def _end(self) -> None:
        """Where a character was cut in two and has come together since, the text is made anew."""
        node, answer = self._node, self.answer
        text = self._said.text(node.ids or (), node) if self._begun and answer.exact else node.text
        changed = text if text != node.text else None
        self._do({"type": "end", "id": node.id, "reason": answer.reason, "exact": answer.exact, "text": changed})

    def _evictions(self) -> Iterator[Evicted]:
        events, self._window.events = self._window.events, []
        yield from events


class Said:
    """What ids say as an answer to the question that the window shows."""

    def __init__(self, model: LoadedModel, window: Window) -> None:
        self.spelled = spelled_tags(model.tokenizer)
        self._tokenizer = model.tokenizer
        header = "".join(map(model.token_text, window.view.opened if window.view else []))
        self.opened = opened_by(header) or ""  # the tag of thoughts that the header began: the text is to begin with it

    def text(self, ids: Sequence[int], like: Node) -> str:
        """With the tag where another answer has it."""
        detokenizer = Detokenizer(self._tokenizer, spelled=self.spelled)
        text = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
        return self.opened + text if like.text.startswith(self.opened) else text
