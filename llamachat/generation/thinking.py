"""What a model thinks before it answers: told apart from the answer by the marks around it, which are not shown."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llamachat.core.detokenize import Detokenizer
from llamachat.core.dialog import DialogFormat
from llamachat.core.sampler import Constraint
from llamachat.core.thoughts import TAGGED, Thoughts
from llamachat.core.tokenizer import Tokenizer

Part = tuple[str, bool]  # text, and whether it is thought


def spelled_marks(tokenizer: Tokenizer, thoughts: Thoughts) -> Mapping[int, bytes]:
    """Control tokens that marks are made of: their text, which a detokenizer would leave out."""
    marks = "\n".join(thoughts.all)
    return {token: name.encode() for name, token in tokenizer.specials.items() if name in marks}


def unheard(name: str, dialog: DialogFormat, thinking: bool | None) -> str | None:
    """A line for people where a model called `name` cannot do as it is told; None where it can."""
    if thinking is None or dialog.switch == "full" or (dialog.switch == "effort" and thinking):
        return None
    if dialog.switch == "effort":
        return f"{name} always thinks; told not to, it thinks as little as it can"
    return (
        f"{name} has no switch for thinking: it does as it was trained; a budget of 0 tokens ends each thought at once"
    )


class ThinkSplitter:
    """Pieces of text in, parts out, across any cutting of the pieces. `began`: the mark that the header has begun with."""

    def __init__(self, thoughts: Thoughts = TAGGED, began: str = "") -> None:
        self._thoughts = thoughts
        self.end: str | None = thoughts.marks.get(began)  # of the thought under way
        self.marked = self.end is not None  # there was one
        self._done = False  # the answer has begun
        self._held = ""

    @property
    def thinking(self) -> bool:
        return self.end is not None

    def add(self, text: str) -> list[Part]:
        """What of the text so far is certain, without the marks."""
        return list(self._split(text))

    def finish(self) -> list[Part]:
        """What was held back, unless it is half of a mark that an answer had to begin with."""
        held, self._held = self._held, ""
        half = self._thoughts.answers and not (self.thinking or self._done)
        return [(held, self.thinking)] if held and not half else []

    def _split(self, text: str) -> Iterator[Part]:
        self._held += text
        while self._held:
            if self._done:
                yield self._take(len(self._held)), False
            elif self.end is not None:
                at = self._held.find(self.end)
                said = self._take(_certain(self._held, self.end) if at < 0 else at)
                if said:
                    yield said, True
                if at < 0:
                    return
                self._take(len(self.end))
                self.end = None
            elif not self._opening():
                return

    def _opening(self) -> bool:
        """Whether it is clear what stands first: a thought, or the answer."""
        start, marks = self._held.lstrip(), (*self._thoughts.marks, *self._thoughts.answers)
        mark = next((mark for mark in marks if start.startswith(mark)), None)
        if mark is not None:
            self._held, self.end = start[len(mark) :], self._thoughts.marks.get(mark)
            self._done, self.marked = self.end is None, self.marked or self.end is not None
        elif any(each.startswith(start) for each in marks):
            return False
        else:
            self._done = True
        return True

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def _certain(text: str, mark: str) -> int:
    """How much of the text the mark cannot begin in."""
    starts = range(max(0, len(text) - len(mark) + 1), len(text))
    return next((at for at in starts if mark.startswith(text[at:])), len(text))


class Tagger:
    """Text with a model's own marks in, text with TAGGED's out: as a dialog is kept. Those that TAGGED knows stay."""

    def __init__(self, thoughts: Thoughts) -> None:
        self._splitter = None if thoughts.marks is TAGGED.marks else ThinkSplitter(thoughts)
        (self._begin, self._end), *_ = TAGGED.marks.items()
        self._inside = False

    def add(self, text: str) -> str:
        return text if self._splitter is None else self.tag(self._splitter.add(text))

    def finish(self) -> str:
        return "" if self._splitter is None else self.tag(self._splitter.finish())

    def tag(self, parts: Iterable[Part]) -> str:
        """Parts that are told apart already."""
        out = ""
        for text, thought in parts:
            mark = "" if thought is self._inside else self._begin if thought else self._end
            out, self._inside = out + mark + text, thought
        return out


def trimmed(parts: Iterable[Part]) -> Iterator[Part]:
    """Without the space before a thought, and that between it and the answer."""
    last, fresh = False, False
    for text, thought in parts:
        fresh = fresh or thought is not last
        last, said = thought, text.lstrip() if fresh else text
        if said:
            fresh = False
            yield said, thought


def parted(parts: Iterable[Part]) -> tuple[str, str]:
    """What was thought, and the answer."""
    thought, said = list[str](), list[str]()
    for text, is_thought in parts:
        (thought if is_thought else said).append(text)
    return "".join(thought).rstrip(), "".join(said)


class Thinking:
    """A Constraint: thoughts are free until they have `budget` tokens (None: for ever), at which they are closed.

    Once a thought is over, the answer follows `inner`. `began`: as of ThinkSplitter. Closing is a matter of tokens that
    alone may come, so that they are a part of the sequence as any other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        size: int,
        thoughts: Thoughts,
        began: str,
        budget: int | None,
        inner: Constraint | None = None,
    ) -> None:
        """`size`: ids of the model's vocabulary."""
        self._tokenizer, self._thoughts, self._budget, self._inner = tokenizer, thoughts, budget, inner
        self._text = Detokenizer(tokenizer, continues=True, spelled=spelled_marks(tokenizer, thoughts))
        self._splitter = ThinkSplitter(thoughts, began)
        self._size = size
        self._tokens = 0  # of thoughts so far
        self._closing: list[int] = []  # what has to come

    def begin(self, before: Iterable[int] = ()) -> "Thinking":
        """Of an answer that has begun with these tokens."""
        for token in before:
            self._observe(token)
        self._close()
        return self

    @property
    def complete(self) -> bool:
        """See Constraint."""
        return self._follows is not None and self._follows.complete

    def allowed(self) -> NDArray[np.bool_] | None:
        """See Constraint."""
        if self._closing:
            mask = np.zeros(self._size, bool)
            mask[self._closing[0]] = True
            return mask
        if self._follows is not None:
            return self._follows.allowed()
        return self._unthinking if self._spent else None

    def forced(self) -> list[int]:
        """See Constraint."""
        if self._closing or self._follows is None:
            return [*self._closing]
        return self._follows.forced()

    def add(self, token: int) -> None:
        """See Constraint."""
        if self._closing:
            del self._closing[0]
        elif self._follows is not None:
            self._follows.add(token)
        self._observe(token)
        self._close()

    @property
    def _spent(self) -> bool:
        """Whether a thought that began here would be closed at once."""
        spent = self._budget is not None and self._tokens >= self._budget
        return spent and self._splitter.marked and not self._splitter.thinking

    @cached_property
    def _unthinking(self) -> NDArray[np.bool_]:
        """[size] all tokens but those that begin a thought alone."""
        written = [self._tokenizer.encode_skeleton(mark, start=False) for mark in self._thoughts.marks]
        mask = np.ones(self._size, bool)
        mask[[ids[0] for ids in written if len(ids) == 1]] = False
        return mask

    @property
    def _follows(self) -> Constraint | None:
        """What the answer must be, where it has come to that."""
        return None if self._splitter.thinking or self._closing else self._inner

    def _observe(self, token: int) -> None:
        self._tokens += self._splitter.thinking
        self._splitter.add(self._text.add(token))

    def _close(self) -> None:
        """A thought that has had its tokens has to end."""
        end = self._splitter.end
        if end is not None and self._budget is not None and self._tokens >= self._budget and not self._closing:
            self._closing = self._tokenizer.encode_skeleton(self._thoughts.closing(end), start=False)
