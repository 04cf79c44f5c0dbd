"""What the terminal sends, before prompt-toolkit makes keys of it.

Not all of it is typing: replies to what was asked, reports of mice and focus, keys that nobody knows. prompt-toolkit would
type most of that into the line, and fails at some; here it is dropped, whole sequences at a time (ECMA-48). A bracketed
paste is bounded, and one whose end never comes is over once a person types again.
"""

import re
import time
from collections.abc import Callable

from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

PASTED = 16_000_000  # characters of one paste; the rest of it is dropped
_SILENCE = 1.0  # seconds after which what was begun is given up
_KEY = 12  # characters that one key, or a few quick ones, may send
_BEGIN, _END = "\x1b[200~", "\x1b[201~"
_STRING = r"[^\x07\x1b]{0,4096}"
_WHOLE = re.compile(
    r"\x1b\[\[[A-E]"  # F1 to F5 of the Linux console
    r"|\x1b\[M[^\x1b]{3}"  # a mouse
    r"|\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI
    rf"|\x1b\]\d{_STRING}(?:\x07|\x1b\\)"  # OSC: the answer to a question about a colour, say
    rf"|\x1b[P_^X]{_STRING}\x1b\\"  # DCS, APC, PM, SOS
)
_BEGUN = re.compile(
    r"\x1b(?:\[(?:\[|M[^\x1b]{0,2}|[0-?]{0,64}[ -/]{0,8})?"
    rf"|\](?:\d{_STRING}\x1b?)?|[P_^X]{_STRING}\x1b?)?"
)
_REPLY = re.compile(r"\x1b(?:\[[0-?]|\]\d)")  # how one begins; no hand types it that fast
_POSITION = re.compile(r"\x1b\[\d+;\d+R")  # of the cursor, which is never asked for


class Keyboard(Vt100Parser):
    """Takes the place of an input's parser, and gives keys to the same callback."""

    def __init__(
        self, feed_key_callback: Callable[[KeyPress], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(feed_key_callback)
        self._clock = clock
        self._held = ""  # the start of a sequence
        self._paste: list[str] | None = None  # what came of an open one
        self._size = 0
        self._since = clock()  # the last read

    def feed(self, data: str) -> None:
        silent = self._clock() - self._since > _SILENCE
        self._since = self._clock()
        if silent:
            data = self._after_silence(data)
        text, self._held = self._held + data, ""
        while text:
            if self._paste is not None:
                text = self._pasted(text)
            elif text[0] == "\x1b":
                text = self._sequence(text)
            else:
                plain, escape, rest = text.partition("\x1b")
                super().feed(plain)
                text = escape + rest

    def flush(self) -> None:
        """Nothing has followed for a moment: an escape that was held is a key. A reply may still be under way."""
        if self._paste is None and not _REPLY.match(self._held):
            held, self._held = self._held, ""
            super().feed(held)
        super().flush()

    def _after_silence(self, data: str) -> str:
        """A reply that stopped in its midst is dropped. Somebody who types into an open paste thinks that it is over; their
        Enter does not send it."""
        if self._paste is None:
            self._held = ""
        elif len(data) <= _KEY and _END not in self._held + data:
            self._end_paste(self._held)
            self._held = ""
            return data.lstrip("\r\n")
        return data

    def _sequence(self, text: str) -> str:
        """Deal with what begins with an escape; returns what is left."""
        if whole := _WHOLE.match(text):
            if whole[0] == _BEGIN:
                self._paste, self._size = [], 0
            elif whole[0] in ANSI_SEQUENCES and not _POSITION.fullmatch(whole[0]):
                super().feed(whole[0])
            else:
                super().flush()  # an escape before it has nothing to do with what follows
            return text[whole.end() :]
        if _BEGUN.fullmatch(text):
            self._held = text
            return ""
        super().feed("\x1b")
        return text[1:]

    def _pasted(self, text: str) -> str:
        content, end, rest = text.partition(_END)
        if end:
            self._end_paste(content)
            return rest
        cut = next((size for size in range(len(_END) - 1, 0, -1) if text.endswith(_END[:size])), 0)
        self._held = text[len(text) - cut :]
        self._keep(text[: len(text) - cut])
        return ""

    def _keep(self, text: str) -> None:
        if self._paste is not None and (room := PASTED - self._size) > 0:
            self._paste.append(text[:room])
            self._size += len(text[:room])

    def _end_paste(self, last: str) -> None:
        self._keep(last)
        content, self._paste = "".join(self._paste or ()), None
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, content))
