"""One answer as it comes."""

from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, Literal, TypeVar

from llamachat.errors import UsageError
from llamachat.events import FinishReason
from llamachat.generation.completion import Answer

Prediction = TypeVar("Prediction")


class Stream(Iterator[str], Generic[Prediction]):
    """The pieces of an answer's text, each computed when it is asked for; whole characters only.

    `close`, or leaving a `with` block, ends the generation. So does the model's next request; who then reads on is told
    by a UsageError.
    """

    def __init__(
        self,
        answer: Answer,
        pieces: Generator[str],
        begin: "Callable[[Stream[Prediction]], None]",
        predict: Callable[[Answer], Prediction],
    ) -> None:
        self._answer, self._pieces, self._begin, self._predict = answer, pieces, begin, predict
        self._state: Literal["waiting", "reading", "ended", "lost"] = "waiting"

    @property
    def result(self) -> Prediction:
        """What the call without a stream returns; before the end, as far as it has come."""
        return self._predict(self._answer)

    @property
    def finish_reason(self) -> FinishReason | None:
        """None before the end, then "stop" (the model ended it), "length" (max_gen_len or max_seq_len did), "repeat" (it went
        round in circles: where allow_loops is False) or "interrupt" (it was closed)."""
        return None if self._state in ("waiting", "reading") else self._answer.reason

    def __next__(self) -> str:
        if self._state == "lost":
            cause, remedy = "the model has begun another answer", "read a stream to its end before the next request"
            raise UsageError(cause, "this one ended there", remedy)
        if self._state == "waiting":
            self._begin(self)
            self._state = "reading"
        try:
            return next(self._pieces)
        except BaseException:  # its end, too
            self._state = "ended"
            raise

    def close(self) -> None:
        """End the generation here; the model is free for the next request."""
        self._end("ended")

    def give_way(self) -> None:
        """Another request has begun."""
        self._end("lost")

    def _end(self, state: Literal["ended", "lost"]) -> None:
        if self._state in ("waiting", "reading"):
            self._state = state
            self._pieces.close()

    def __enter__(self) -> "Stream[Prediction]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
