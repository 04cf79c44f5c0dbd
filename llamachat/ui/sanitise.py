"""The one filter between text from outside (models, files, their names) and the terminal: no such text can drive it.

What comes out has no control characters but newline and tab, so there is nothing left for a terminal to obey. Whole
escape sequences (ECMA-48, with ESC or as one C1 character) vanish with what they carry; a broken or endless one is
shown as text. Characters that hide or reorder other text (Unicode's Default_Ignorable_Code_Point) are spelled out,
like ⟨U+202E⟩, unless they do their proper work in an emoji, an ideograph or a word of a joining script.
"""

import re

_BOUND = 256  # characters that a sequence may carry before it counts as text
_BODY = rf"[^\x00-\x1f\x7f-\x9f]{{0,{_BOUND}}}"
_CSI = rf"(?:\x1b\[|\x9b)[0-?]{{0,{_BOUND}}}[ -/]{{0,{_BOUND}}}"
_STRING = rf"(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f]){_BODY}"  # OSC, DCS, SOS, PM, APC
_ESCAPE = rf"\x1b[ -/]{{1,{_BOUND}}}"
_CONTROL = re.compile(
    rf"(?P<sequence>{_CSI}[@-~]|{_STRING}(?:\x07|\x9c|\x1b\\)|{_ESCAPE}[0-~]|\x1b[0-OQ-WYZ\\`-~])"
    rf"|(?P<open>(?:{_CSI}|{_STRING}\x1b?|{_ESCAPE}|\x1b|\r)\Z)"
    r"|(?P<newline>\r\n?|[\v\f\x85\u2028\u2029])"
    r"|(?P<broken>[\x1b\x90\x98\x9b\x9d-\x9f])"
    r"|(?P<surrogate>[\ud800-\udfff])"
    r"|(?P<dropped>[\x00-\x08\x0e-\x1f\x7f-\x9f])"
)

# Ranges, not properties: the standard library's `re` has none. The first four hold no ignorable character.
_EMOJI = "\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_IDEOGRAPHS = "\u2e80-\u3163\u3165-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
_VARIED = rf"{_EMOJI}{_IDEOGRAPHS}0-9#*©®‼⁉\u2100-\u214f\u1000-\u109f\u1810-\u18af"
_JOINING = "\u0620-\u109f\u1780-\u17b3\u17b6-\u17ff\u1810-\u18af"
_VARIATION = "\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180d\u180f"
_JOINER = "\u200c\u200d"
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_HIDDEN = re.compile(
    rf"[{_IGNORABLE}]|(?<![{_VARIED}])[{_VARIATION}]"
    rf"|(?!(?:(?<=[{_EMOJI}])|(?<=[{_EMOJI}]\ufe0f))\u200d[{_EMOJI}]|(?<=[{_JOINING}])[{_JOINER}][{_JOINING}])[{_JOINER}]"
)


class Sanitiser:
    """Filters a text that comes in pieces; however it is cut, the result is that of the whole."""

    def __init__(self) -> None:
        self._open = ""  # a sequence, or a CR, that may go on in the next piece
        self._before = ""  # the last two characters: they decide what may follow
        self._joiner = ""  # one that waits for its right-hand neighbour

    def feed(self, text: str) -> str:
        """What may be shown now."""
        return self._expose(self._strip(text))

    def finish(self) -> str:
        """What was held back; the sanitiser is then as new."""
        text = self._strip("\0")  # ends whatever is open, and is itself dropped
        text, self._joiner = self._joiner + text, ""
        shown = self._spell_out(text)
        self._before = ""
        return shown

    def _strip(self, text: str) -> str:
        text, self._open = self._open + text, ""
        return _CONTROL.sub(self._settle, text)

    def _settle(self, match: re.Match[str]) -> str:
        match match.lastgroup:
            case "open":
                self._open = match[0]
            case "newline":
                return "\n"
            case "broken":
                return _name(match[0])
            case "surrogate":
                return "\ufffd"
        return ""

    def _expose(self, text: str) -> str:
        text, self._joiner = self._joiner + text, ""
        if text.endswith(tuple(_JOINER)):
            text, self._joiner = text[:-1], text[-1]
        return self._spell_out(text)

    def _spell_out(self, text: str) -> str:
        whole, start = self._before + text, len(self._before)
        self._before = whole[-2:]
        return _HIDDEN.sub(lambda match: match[0] if match.start() < start else _name(match[0]), whole)[start:]


def sanitise(text: str) -> str:
    """A whole text, made safe to show."""
    sanitiser = Sanitiser()
    return sanitiser.feed(text) + sanitiser.finish()


def sanitise_line(text: str) -> str:
    """A text of one line, such as a name or an error: what would break the line becomes a space."""
    return " ".join(sanitise(text).split())


def _name(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
