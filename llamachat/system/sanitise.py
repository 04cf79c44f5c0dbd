"""The one filter between text from outside (models, files, their names) and the terminal: no such text can drive it.

What comes out has no control characters but newline and tab, so there is nothing left for a terminal to obey. Whole
escape sequences (ECMA-48, with ESC or as one C1 character) vanish with what they carry; a broken or endless one is
shown as text. Characters that hide, reorder or annotate other text (Unicode's Default_Ignorable_Code_Point and Cf) are
spelled out, like ⟨U+202E⟩, unless they do their proper work in an emoji, an ideograph, a flag or a word of a joining
script; so are combining marks that are too many for their base.
"""

import re
from functools import cache

from llamachat.system.marks import Marks, spelled

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

# Ranges, not properties: the standard library's `re` has none. None but the last holds an ignorable character.
_EMOJI = (
    "©®‼⁉™ℹ\u2194-\u2199↩↪⌚⌛⌨⏏\u23e9-\u23f3\u23f8-\u23faⓂ▪▫▶◀\u25fb-\u25fe\u2600-\u2604☎☑☔☕☘☝☠☢☣☦☪☮☯"
    "\u2638-\u263a♀♂\u2648-\u2653♟♠♣♥♦♨♻♾♿\u2692-\u2697⚙⚛⚜⚠⚡⚧⚪⚫⚰⚱⚽⚾⛄⛅⛈⛎⛏⛑⛓⛔⛩⛪\u26f0-\u26f5\u26f7-\u26fa⛽✂✅"
    "\u2708-\u270d✏✒✔✖✝✡✨✳✴❄❇❌❎\u2753-\u2755❗❣❤\u2795-\u2797➡➰➿⤴⤵\u2b05-\u2b07⬛⬜⭐⭕〰〽㊗㊙\U0001f000-\U0001faff"
)
_IDEOGRAPHS = "\u2e80-\u2fff\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_JOINING = (
    "\u0620-\u06dc\u06de-\u070e\u0710-\u088f\u0892-\u08e1\u08e3-\u109f\u1780-\u17b3\u17b6-\u17ff\u1820-\u18af\u1a20-\u1aaf"
    "\u1b00-\u1bff\u1cd0-\u1cff\ua800-\ua95f\ua980-\ua9ff\uaa60-\uaa7f\uaae0-\uaaff\uabc0-\uabff\U00010a00-\U00010a5f"
    "\U00010d00-\U00010d3f\U00011000-\U000110bc\U000110be-\U000110cc\U000110ce-\U00011fff\U0001e900-\U0001e95f"
)
_VIRAMA = (  # what kills a consonant's vowel; a joiner behind it says how that is written, at the end of a word too
    "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d3b\u0d3c\u0d4d\u0dca\u0f84\u1039\u103a\u17d2\u1a60\u1b44\u1baa\u1bab"
    "\ua806\ua8c4\ua953\ua9c0\uaaf6\uabed\U00010a3f\U00011046\U000110b9\U00011133\U000111c0\U00011235\U0001134d\U00011442"
    "\U000114c2\U000115bf\U0001163f\U000116b6\U00011839"
)
_JOINER = "\u200c\u200d"
_TAGS = "[\U000e0030-\U000e0039\U000e0061-\U000e007a]"  # digits and letters
_FLAG = "\U0001f3f4"  # a region's, where the region's code follows in tags

# Default_Ignorable_Code_Point and Cf, which hide, reorder or annotate other text; variation selectors come with `_VARIED`.
_HIDDEN = (
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_VARIED = (  # Unicode's emoji-variation-sequences.txt, StandardizedVariants.txt (by blocks) and ideographic variations
    rf"(?<=[{_EMOJI}0-9#*])[\ufe0e\ufe0f]"
    r"|(?<=[0\u1000-\u109f∅∩∪≨≩≲≳⊊⊋⊓⊔⊕⊗⊜⋚⋛⨼⨽⪝⪞⪬⪭⫋⫌\ua840-\ua877\uaa60-\uaa7f０\U00010ac0-\U00010aff])\ufe00"
    r"|(?<=[‘’“”、。！，．：；？\U0001d49c-\U0001d4b5])[\ufe00\ufe01]"
    rf"|(?<=[{_IDEOGRAPHS}\U00013000-\U0001342f\U00013460-\U000143ff])[\ufe00-\ufe06]"
    rf"|(?<=[{_IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
    r"|(?<=[\u1820-\u18aa])[\u180b-\u180d\u180f]"
)
_EXPOSED = (
    rf"(?=[{_HIDDEN}])(?:(?P<proper>{_VARIED}|(?:(?<=[{_EMOJI}])|(?<=[{_EMOJI}]\ufe0f))\u200d(?=[{_EMOJI}])"
    rf"|(?<=[{_JOINING}])[{_JOINER}](?=[{_JOINING}])|(?<=[{_VIRAMA}])[{_JOINER}]|(?<=\u0647)\u200d"  # of the Hijri year
    rf"|(?<={_FLAG}){_TAGS}{{3,6}}\U000e007f)|.)"
)
_WAITING = re.compile(rf"(?:[{_JOINER}]|(?<={_FLAG}){_TAGS}{{1,6}})\Z")  # whose meaning the next character decides
_LONGEST = 6  # characters that wait


@cache  # most texts need it not, and its compiling takes as long as a token
def _exposed() -> re.Pattern[str]:
    return re.compile(_EXPOSED)


class Sanitiser:
    """Filters a text that comes in pieces; however it is cut, the result is that of the whole."""

    def __init__(self) -> None:
        self._open = ""  # a sequence, or a CR, that may go on in the next piece
        self._marks = Marks()
        self._before = ""  # the last two characters: they decide what may follow
        self._waiting = ""  # characters that wait for their right-hand neighbour

    def feed(self, text: str) -> str:
        """What may be shown now."""
        return self._expose(self._marks.feed(self._strip(text)))

    def finish(self) -> str:
        """What was held back; the sanitiser is then as new."""
        shown = self._expose(self._marks.feed(self._strip("\0")), ends=True)  # what is open ends, and is itself dropped
        self._before, self._marks = "", Marks()
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
                return spelled(match[0])
            case "surrogate":
                return "\ufffd"
        return ""

    def _expose(self, text: str, ends: bool = False) -> str:
        """The text with what it hides, but for characters at its end whose neighbour is still to come."""
        whole, start = self._before + self._waiting + text, len(self._before)
        if whole.isascii():
            self._before, self._waiting = whole[-2:], ""
            return text
        waiting = None if ends else _WAITING.search(whole, max(start, len(whole) - _LONGEST))
        end = waiting.start() if waiting else len(whole)
        self._before, self._waiting = whole[:end][-2:], whole[end:]
        return _exposed().sub(lambda match: _shown(match, start), whole[:end])[start:]


def _shown(match: re.Match[str], start: int) -> str:
    return match[0] if match["proper"] or match.start() < start else spelled(match[0])


def sanitise(text: str) -> str:
    """A whole text, made safe to show."""
    sanitiser = Sanitiser()
    return sanitiser.feed(text) + sanitiser.finish()


def sanitise_line(text: str) -> str:
    """A text of one line, such as a name or an error: what would break the line becomes a space."""
    return " ".join(sanitise(text).split())
