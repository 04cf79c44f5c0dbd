"""Ids -> text as they come, across UTF-8 boundaries and up to a stop string."""

import codecs
from collections.abc import Mapping, Sequence

from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import UsageError


class Detokenizer:
    """Text of ids one by one; all that `add` and `finish` return makes what `tokenizer.decode` gives for all ids.

    `continues`: the text goes on from another one, so that its first space, which `decode` may drop, is kept.
    `spelled`: bytes of control tokens that are to be in the text, which leaves them out otherwise.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, continues: bool = False, spelled: Mapping[int, bytes] | None = None
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._spelled = spelled or {}
        self._drop_space = tokenizer.dummy_prefix and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that this token completes; bytes of an unfinished one are held back."""
        data = self._spelled.get(token) or self._token_bytes(token)
        if data and self._drop_space:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that was never finished, or nothing."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Passes text on until one of `stops` is in it, whose first character is where the text ends.

    The stop string that is complete first counts, the longest of those that end there. Held back is only the longest
    end of the text that a stop string may begin with.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise UsageError("a stop string is empty", remedy="leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def add(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was met); nothing is shown after one."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        self._stopped = bool(found)
        end = min(found)[1] if found else len(text) - self._held_length(text)
        self._held = "" if found else text[end:]
        return text[:end], self._stopped

    def finish(self) -> str:
        """What was held back, when no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        longest = max(map(len, self._stops), default=1) - 1
        starts = range(max(0, len(text) - longest), len(text))
        return next((len(text) - at for at in starts if any(stop.startswith(text[at:]) for stop in self._stops)), 0)
