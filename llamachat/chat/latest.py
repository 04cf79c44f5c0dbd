"""What of a dialog a server is sent: all of it, or its latest turns where that is too long for the model's context.

How many tokens a dialog makes is not known before a server has counted it. The last one that was counted tells how many there
are to a character (where nothing is counted, the last answer's pieces do), so that most dialogs are shortened before they are
refused; those that are refused all the same are shortened then.
"""

from collections.abc import Sequence

from llamachat.chat.asked import Asked
from llamachat.chat.tree import Node
from llamachat.core.dialog import Message
from llamachat.errors import DoesNotFitError
from llamachat.events import Evicted
from llamachat.remote.asking import TooLongError

KEPT = 2  # what stays of a dialog that is shortened makes at most this part of the context
ANSWER = 4  # this part is left for the answer, or fewer tokens where it may not have so many
FRAME = 16  # characters that count for what a dialog format writes around a message


class Latest:
    """Where the dialog begins for the server."""

    def __init__(self, size: int | None, *, stops: bool = False) -> None:
        """`size`: tokens of the context; None: not known yet. `stops`: a dialog that is too long is refused."""
        self.size, self.begins = size, None  # type: int | None, Node | None
        self._stops = stops
        self._rate: float | None = None  # tokens to a character

    def dropped(self, path: Sequence[Node]) -> int:
        """How many questions of this path are not sent."""
        return path.index(self.begins) // 2 if self.begins in path else 0

    def messages(self, asked: Asked) -> list[Message]:
        """What is sent; never what was thought."""
        system = [Message("system", asked.system)] if asked.system else []
        sent = asked.path[2 * self.dropped(asked.path) :]
        return [*system, *(Message(node.role, node.said) for node in sent)]

    def counted(self, messages: Sequence[Message], tokens: int) -> None:
        """A server has told how many tokens these make."""
        self._rate = tokens / max(1, _length(messages))

    def supposed(self, pieces: int, characters: int) -> None:
        """Nothing is counted, and an answer came so: a piece is nearly always a token."""
        self._rate = self._rate or pieces / max(1, characters)

    def expected(self, text: str) -> int | None:
        """Tokens that a text is likely to make; None where nothing has been counted yet."""
        return None if self._rate is None else round(self._rate * len(text))

    def fit(self, asked: Asked, most: int | None) -> Evicted | None:
        """Drop what is known not to fit with an answer of at most so many tokens. Raises DoesNotFitError where that stops."""
        if self.size is None or self._rate is None:
            return None
        tokens = round(self._rate * _length(self.messages(asked)))
        answer = min(self.size // ANSWER, self.size if most is None else most)
        if tokens + answer < self.size or self._questions(asked) == 1:
            return None
        return self._drop(asked, f"the dialog makes some {tokens} tokens, the context holds {self.size}")

    def refused(self, asked: Asked, error: TooLongError) -> Evicted:
        """Drop something of what a server has refused. Raises DoesNotFitError where that stops, or nothing is left to drop."""
        if error.context:
            self.size = error.context
        if error.prompt:
            self.counted(self.messages(asked), error.prompt)
        told = error.prompt and error.context
        size = f"makes {error.prompt} tokens, the context holds {error.context}" if told else f"is too long: {error}"
        if self._questions(asked) == 1:
            raise DoesNotFitError(f"this turn alone {size}", "the message was not sent", "shorten it") from error
        return self._drop(asked, f"the dialog {size}")

    def _questions(self, asked: Asked) -> int:
        """That are sent."""
        return len(asked.path) // 2 + 1 - self.dropped(asked.path)

    def _drop(self, asked: Asked, why: str) -> Evicted:
        """Whole turns, the oldest first: until half of the context is free, or, where that is not known, half of them."""
        if self._stops:
            remedy = "shorten it, /clear the dialog, or start with --overflow refill"
            raise DoesNotFitError(why, "the message was not sent", remedy)
        first, count = self.dropped(asked.path), self._questions(asked)
        turns = 1 if self._known else count // 2
        self.begins = asked.path[2 * (first + turns)]
        while turns < count - 1 and self._fills_too_much(asked):
            turns += 1
            self.begins = asked.path[2 * (first + turns)]
        return Evicted(turns, 0, refilled=True)

    @property
    def _known(self) -> bool:
        return self.size is not None and self._rate is not None

    def _fills_too_much(self, asked: Asked) -> bool:
        if self.size is None or self._rate is None:
            return False
        return self._rate * _length(self.messages(asked)) > self.size / KEPT


def _length(messages: Sequence[Message]) -> int:
    """Characters."""
    return sum(len(message.content) + FRAME for message in messages)
