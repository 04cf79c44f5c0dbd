"""Every way known to us in which text has driven a terminal or hidden in one, by what it would do there; and who would notice."""

import re

import pyte

COMPLETE = {
    "colour": "\x1b[1;31m",
    "colour with colons": "\x1b[38:2::255:0:0m",
    "clear screen": "\x1b[2J",
    "cursor": "\x1b[1;1H",
    "alternate screen": "\x1b[?1049h",
    "bracketed paste off": "\x1b[?2004l",
    "mouse reports": "\x1b[?1003;1006h",
    "hidden cursor": "\x1b[?25l",
    "Tektronix mode": "\x1b[?38h",
    "resize the window": "\x1b[8;5;5t",
    "report the title as typed text": "\x1b[21t",
    "device attributes": "\x1b[>c",
    "cursor position report": "\x1b[6n",
    "printer": "\x1b[5i",
    "repeat a character": "\x1b[99999b",
    "scroll margins": "\x1b[3;4r",
    "cursor shape, with an intermediate": "\x1b[2 q",
    "soft reset": "\x1b[!p",
    "keyboard protocol": "\x1b[>4;2m",
    "title ended by BEL": "\x1b]0;owned\x07",
    "title ended by ST": "\x1b]2;owned\x1b\\",
    "palette": "\x1b]4;1;rgb:ff/00/00\x07",
    "background colour": "\x1b]11;#000000\x1b\\",
    "working folder": "\x1b]7;file://x/y\x07",
    "notification": "\x1b]777;notify;a;b\x07",
    "font": "\x1b]50;#1\x07",
    "clipboard": "\x1b]52;c;bHM=\x07",
    "hyperlink": "\x1b]8;;http://x.example\x1b\\",
    "file transfer (iTerm2)": "\x1b]1337;File=name=eA==:eA==\x07",
    "shell marks": "\x1b]133;C\x07",
    "request a setting": "\x1bP$q\x22p\x1b\\",
    "terminfo query": "\x1bP+q544e\x1b\\",
    "user-defined keys": "\x1bP1;1|17/6c730d\x1b\\",
    "sixel picture": "\x1bPq#0;2;0;0;0~\x1b\\",
    "SOS": "\x1bXabc\x1b\\",
    "PM": "\x1b^abc\x1b\\",
    "picture (kitty)": "\x1b_Gi=1;AAAA\x1b\\",
    "reset": "\x1bc",
    "index up": "\x1bM",
    "charset": "\x1b(0",
    "single shift": "\x1bN",
    "UTF-8 off": "\x1b%@",
    "alignment test": "\x1b#8",
    "application keypad": "\x1b=",
    "8-bit CSI": "\x9b31m",
    "8-bit OSC": "\x9d0;owned\x9c",
    "8-bit OSC ended by BEL": "\x9d0;owned\x07",
    "8-bit DCS": "\x90q\x9c",
    "8-bit APC": "\x9fGa\x9c",
    "8-bit index, next line": "\x84\x8d",
    "bell": "\x07",
    "answerback": "\x05",
    "backspaces": "\b\b\b",
    "NUL, DEL, shift out": "\0\x7f\x0e",
    "lone string terminator": "\x9c",
}
"""Vanish with what they carry."""

SPELLED = {
    "\x1b]0;open\nnext": "⟨U+001B⟩]0;open\nnext",
    "\x1bPnever closed": "⟨U+001B⟩Pnever closed",
    "\x1b[3": "⟨U+001B⟩[3",
    "\x1b[3é": "⟨U+001B⟩[3é",
    "\x1b": "⟨U+001B⟩",
    "\x1b\x1b[mx": "⟨U+001B⟩x",
    "\x1b\x1b[m[31mx": "⟨U+001B⟩[31mx",
    "\x1b]0;a\x1b[31mb": "⟨U+001B⟩]0;ab",
    "\x1b[3\b1mx": "⟨U+001B⟩[31mx",  # terminals obey the backspace inside
    "\x1b[31\x18mx": "⟨U+001B⟩[31mx",  # and CAN ends it
    "\x1bktitle\x1b\\x": "titlex",  # of screen and tmux
    "\x1bPtmux;\x1b\x1b[2J\x1b\\x": "⟨U+001B⟩Ptmux;⟨U+001B⟩x",  # tmux hands it on
    "\x9d8;;x": "⟨U+009D⟩8;;x",
    "one\rtwo": "one\ntwo",
    "one\r\ntwo\r": "one\ntwo\n",
    "a\vb\fc\x85d\u2028e\u2029f": "a\nb\nc\nd\ne\nf",
    "a\ud800b": "a\ufffdb",
    "user\u202egnp.exe": "user⟨U+202E⟩gnp.exe",
    "\u2066x\u2069\u200e\u200f\u061c": "⟨U+2066⟩x⟨U+2069⟩⟨U+200E⟩⟨U+200F⟩⟨U+061C⟩",
    "in\u200bvi\u2060si\ufeffble": "in⟨U+200B⟩vi⟨U+2060⟩si⟨U+FEFF⟩ble",
    "\U000e0041\U000e007f": "⟨U+E0041⟩⟨U+E007F⟩",
    "a\u200db": "a⟨U+200D⟩b",
    "🚀\u200d": "🚀⟨U+200D⟩",
    "a\ufe0f": "a⟨U+FE0F⟩",
    "❤\ufe0f\ufe0f": "❤\ufe0f⟨U+FE0F⟩",
    "\ufe0f\u200d🚀": "⟨U+FE0F⟩⟨U+200D⟩🚀",
    "字\U000e0100\U000e0101": "字\U000e0100⟨U+E0101⟩",
}
"""Broken, or hiding other text: shown so that a person sees that something is there."""

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\u200e\u200f\ud800-\udfff]")
"""What must never be written: controls, bidi overrides, what is invisible."""


class Spy:
    """A pyte listener that only notes what it is told to do."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __getattr__(self, event: str) -> object:
        if event not in pyte.Stream.events:
            raise AttributeError(event)
        return lambda *_, **__: self.told.add(event)


def told(text: str) -> set[str]:
    """What a terminal emulator would do."""
    spy = Spy()
    pyte.Stream(spy).feed(text)
    return spy.told
