"""LaTeX's formulas in Unicode, as far as a line of text can show them; what it cannot stays as it was written.

Written here since what libraries there are lose what they do not know (pylatexenc) or break it (unicodeit makes ≤ft of
\\left); nothing is lost here but signs that say how a thing looks. Bounded: one pass, nested DEPTH times at most.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping

from llamachat.ui.markdown.symbols import (
    ACCENTS,
    ALPHABETS,
    MATRICES,
    NAMES,
    PLAIN,
    ROWS,
    SILENT,
    SPACES,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    SYMBOLS,
    TEXTS,
)

DEPTH = 20
_TOKEN = re.compile(r"\\(?:[A-Za-z]+\*?|.)|\s+|.", re.DOTALL)
_ROW_SPACE = re.compile(r"\[\s*-?[\d.]+\s*(?:pt|em|ex|cm|mm|in)\s*\]")  # behind the end of a row
_ENVIRONMENT = re.compile(r"\{(\w+\*?)\}")
_FACTOR = re.compile(r"-?(?:\w|[.′∞°!∂∇])+(?:\([^()]*\))?|\([^()]*\)|√\w")  # what a fraction's bar may follow
_DIVISOR = re.compile(r"[\d.]+|∂?[^\W\d]+\w?|\([^()]*\)|√\w|∞")  # and what may follow it
_BEHIND = frozenset(")]}+-=,.;:<>&|/*!?'")  # what may follow a fraction without making it unclear


def shown(source: str) -> str:
    """A formula without its signs; lines stay lines."""
    try:
        text = _Formula(source).run()
    except RecursionError:
        return source
    return "\n".join(" ".join(line.split()) for line in text.strip().split("\n"))


class _Formula:
    """Reads tokens from left to right."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = list(_TOKEN.finditer(source))
        self._next = self._depth = 0
        self._environments: list[str] = []

    def run(self, closing: str = "") -> str:
        """What there is up to a closing sign, or to the end."""
        self._depth += 1
        if self._depth > DEPTH:
            raise RecursionError
        out = ""
        while self._next < len(self._tokens):
            token = self._take()
            if token == closing:
                break
            out = self._joined(out, token)
        self._depth -= 1
        return out

    # ---- tokens ----

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][0]

    def _skip_space(self) -> None:
        while self._peek().isspace():
            self._next += 1

    def _written(self, start: int) -> str:
        """The source from that token on."""
        end = self._tokens[self._next - 1].end() if self._next > start else self._tokens[start].start()
        return self._source[self._tokens[start].start() : end]

    # ---- what a token adds ----

    def _joined(self, out: str, token: str) -> str:
        if len(token) > 1 and token[0] == "\\":
            return self._command(out, token[1:])
        match token:
            case "{":
                return out + self.run("}")
            case "^" | "_":
                return out + self._script(token)
            case "&" if self._environments:
                return self._column(out)
            case "'":
                return out + "′"
            case "~":
                return out + " "
        return out + token

    def _command(self, out: str, name: str) -> str:
        start = self._next - 1
        if name in NAMES:
            return self._upright(out, name)
        if name in SYMBOLS:
            return out + self._symbol(out, SYMBOLS[name])
        if name in SPACES:
            return out + SPACES[name]
        if name in SILENT:
            self._next += self._peek() == "." and name in ("left", "right")
            return out
        if name in ("\\", "cr", "newline"):
            return out.rstrip(" ") + self._row()
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return self._fraction(out, start)
        if name in ("binom", "dbinom", "tbinom"):
            return out + self._binomial(start)
        if not name[0].isalpha():
            return out + (name if name in "{}%$#&_|" else "\\" + name)
        return out + self._with_argument(name, start)

    def _symbol(self, out: str, symbol: str) -> str:
        """Without the space that only ends a command's name: 2\\pi r, x\\le y."""
        if self._peek().isspace() and "\n" not in self._peek():
            behind = self._tokens[self._next + 1][0] if self._next + 1 < len(self._tokens) else ""
            touches = behind.isalnum() or SYMBOLS.get(behind[1:], "-").isalpha()
            if touches if _is_letter(symbol) else out and not out[-1].isspace():
                self._skip_space()
        return symbol

    def _column(self, out: str) -> str:
        """What stands for an alignment sign."""
        kind = self._environments[-1]
        if kind == "cases":
            return out.rstrip(" ,") + ", "
        return out + " " * (kind in MATRICES)

    def _upright(self, out: str, name: str) -> str:
        """A function's name; no letter touches it."""
        before = " " if out[-1:].isalnum() else ""
        behind = " " if self._peek()[:1].isalnum() or (self._peek()[:1] == "\\" and self._peek()[1:2].isalpha()) else ""
        return out + before + name + behind * (self._peek() not in ("\\left", "\\limits", "\\big", "\\Big"))

    def _row(self) -> str:
        here = self._tokens[self._next].start() if self._peek() == "[" else len(self._source)
        if space := _ROW_SPACE.match(self._source, here):
            while self._next < len(self._tokens) and self._tokens[self._next].start() < space.end():
                self._next += 1
        if self._environments and self._environments[-1] in MATRICES:
            self._skip_space()
            return "; "
        return "" if self._peek()[:1] == "\n" else "\n"

    def _argument(self) -> str | None:
        """A group, or one token; None where there is none."""
        self._skip_space()
        token = self._peek()
        if token in ("", "}", "^", "_", "&", "\\\\", "\\right", "\\end"):
            return None
        self._take()
        if token == "{":
            return self.run("}").strip()
        self._depth += 1
        if self._depth > DEPTH:
            raise RecursionError
        argument = self._joined("", token)
        self._depth -= 1
        return argument

    def _script(self, sign: str) -> str:
        script = self._argument()
        if script is None:
            return sign
        table, bare = (SUPERSCRIPTS if sign == "^" else SUBSCRIPTS), script.replace(" ", "")
        if all(character in table for character in bare):
            return "".join(table[character] for character in bare)
        return sign + (script if _is_whole(script) else f"({script})")

    def _fraction(self, out: str, start: int) -> str:
        above = self._argument()
        below = None if above is None else self._argument()
        if above is None or below is None:
            return out + self._written(start)
        above, below = _bracketed(above, _FACTOR), _bracketed(below, _DIVISOR)
        left = (self._tokens[place][0] for place in range(self._next, len(self._tokens)))
        behind = next((token for token in left if not token.isspace()), "")
        if behind and behind[0] not in _BEHIND and not _ends(behind):
            return f"{out}({above}/{below})"
        return f"{out}{' ' * out[-1:].isalnum()}{above}/{below}"

    def _binomial(self, start: int) -> str:
        above = self._argument()
        below = None if above is None else self._argument()
        return self._written(start) if below is None else f"({above} choose {below})"

    def _with_argument(self, name: str, start: int) -> str:
        """A command that is given something."""
        if name in TEXTS:
            return self._raw_group() if self._peek() == "{" else self._written(start)
        if name in ("begin", "end"):
            return self._environment(name, start)
        if name == "sqrt":
            return self._root(start)
        make = _MAKERS.get(name)
        if make is None:
            return self._unknown(start)
        argument = self._argument()
        made = None if argument is None else make(argument)
        return self._written(start) if made is None else made

    def _unknown(self, start: int) -> str:
        """As it is written, but for what it is given."""
        text = self._written(start)
        while self._peek() == "{":
            self._take()
            text += "{" + self.run("}") + "}"
        return text

    def _raw_group(self) -> str:
        """What is in a group of words."""
        self._take()
        start, depth = self._next, 1
        while self._next < len(self._tokens):
            depth += {"{": 1, "}": -1}.get(self._take(), 0)
            if not depth:
                return self._source[self._tokens[start].start() : self._tokens[self._next - 1].start()]
        return self._written(start) if start < len(self._tokens) else ""

    def _root(self, start: int) -> str:
        degree = ""
        if self._peek() == "[":
            self._take()
            degree = self.run("]")
        argument = self._argument()
        if argument is None:
            return self._written(start)
        signs = {"": "√", "2": "√", "3": "∛", "4": "∜"}
        sign = signs.get(degree) or "".join(SUPERSCRIPTS.get(each, "?") for each in degree) + "√"
        if "?" in sign:
            return self._written(start)
        return sign + (argument if re.fullmatch(r"\w|[\d.]+", argument) else f"({argument})")

    def _environment(self, name: str, start: int) -> str:
        found = _ENVIRONMENT.match(self._source, self._tokens[self._next].start()) if self._peek() == "{" else None
        if not found or (found[1] not in MATRICES and found[1] not in ROWS):
            return self._unknown(start)
        while self._tokens[self._next].end() < found.end():
            self._next += 1
        self._next += 1
        if name == "end":
            if self._environments:
                self._environments.pop()
            return ""
        if self._peek() == "{" and found[1] in ("array", "alignat", "alignat*", "alignedat"):
            self._raw_group()
        return self._body(found[1]) if found[1] in MATRICES else self._rows(found[1])

    def _rows(self, kind: str) -> str:
        self._environments.append(kind)
        self._skip_space()
        return ""

    def _body(self, kind: str) -> str:
        """A matrix in one line, its rows parted by semicolons."""
        before = len(self._environments)
        self._environments.append(kind)
        out, closed = "", False
        while self._next < len(self._tokens) and not closed:
            out = self._joined(out, self._take())
            closed = len(self._environments) == before
        del self._environments[before:]
        inside = re.sub(r"\s*\n\s*", " ", out).strip().removesuffix(";").strip()
        return MATRICES[kind][0] + inside + MATRICES[kind][1]


def _ends(token: str) -> bool:
    """Whether a command ends what a fraction belongs to, or is an operator."""
    name = token[1:]
    if token[0] != "\\":
        return False
    operator = not _is_letter(SYMBOLS.get(name, "a"))
    return operator or name in SPACES or name in ("right", "\\", "end", "}", "text", "tag")


def _is_letter(symbol: str) -> bool:
    return symbol.isalpha() or symbol in "∂∇∀∃¬"


def _is_whole(text: str) -> bool:
    return len(text) == 1 or bool(re.fullmatch(r"\w+|\([^()]*\)", text))


def _bracketed(text: str, whole: re.Pattern[str]) -> str:
    return text if whole.fullmatch(text) else f"({text})"


def _accented(mark: str) -> Callable[[str], str | None]:
    lines = mark in ("\u0305", "\u0332")

    def make(text: str) -> str | None:
        if not (text.isalnum() and (lines or len(text) == 1)):
            return None
        return unicodedata.normalize("NFC", "".join(character + mark for character in text))

    return make


def _styled(alphabet: Mapping[str, str]) -> Callable[[str], str]:
    return lambda text: "".join(alphabet.get(character, character) for character in text)


_MAKERS: Mapping[str, Callable[[str], str | None]] = {
    **{name: _accented(mark) for name, mark in ACCENTS.items()},
    **{name: _styled(alphabet) for name, alphabet in ALPHABETS.items()},
    **dict.fromkeys(PLAIN, lambda text: text),
    "pmod": lambda text: f"(mod {text})",
    "tag": lambda text: f"  ({text})",
    "not": lambda text: unicodedata.normalize("NFC", text + "\u0338") if len(text) == 1 else None,
}
