"""What is inside a paragraph, by markdown-it: emphasis, code, links."""

import re
from functools import cache
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from llamachat.system.sanitise import sanitise
from llamachat.ui.theme import Theme

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_MARKUP = re.compile(r"[*_`\[\]!<>~\\&$]")
TAB = 4


def inline(source: str, theme: Theme) -> Text:
    """Inline Markdown as styled text; line breaks stay. As it is where nothing can be styled, or markup is all there is."""
    source = source.expandtabs(TAB)
    marks = len(_MARKUP.findall(_outside(source)))
    if (
        theme.plain or not _MARKUP.search(source) or marks > 80 + len(source) // 8
    ):  # some of markdown-it's searches are quadratic
        return Text(source)
    text = _Styled(theme)
    for token in _markdown().parseInline(source)[0].children or ():
        text.add(token)
    return text.text


class _Styled:
    """A text that grows by markdown-it's tokens."""

    def __init__(self, theme: Theme) -> None:
        self.text = Text()
        self._theme = theme
        self._styles = [Style.null()]
        self._links: list[tuple[int, str]] = []  # where each open one began, and its address

    def add(self, token: "Token") -> None:
        match token.type:
            case "link_open":
                self._begin_link(str(token.attrs["href"]))
            case "link_close":
                self._end_link()
            case "image":
                self._begin_link(str(token.attrs["src"]))
                self._append(token.content)
                self._end_link()
            case "code_inline":
                self._append(token.content, "code")
            case "maths":
                self._append_lines(token.content)
            case "softbreak" | "hardbreak":
                self.text.append("\n")
            case kind if role := _ROLES.get(kind.removesuffix("_open")):
                self._styles.append(self._styles[-1] + self._theme.style(role))
            case kind if kind.endswith("_close"):
                self._styles.pop()
            case _:
                self._append(token.content)

    def _append_lines(self, text: str) -> None:
        for number, line in enumerate(text.split("\n")):
            if number:
                self.text.append("\n")
            self._append(line)

    def _begin_link(self, address: str) -> None:
        self._links.append((len(self.text), address))
        self._styles.append(self._styles[-1] + self._theme.style("link"))

    def _end_link(self) -> None:
        """The address follows its text, so that nobody is sent where they do not mean to go."""
        start, address = self._links.pop()
        self._styles.pop()
        if address.removeprefix("mailto:") != self.text.plain[start:]:
            self._append(f" ({address})", "mark")

    def _append(self, text: str, role: str = "") -> None:
        # Character references and addresses decode to anything: what markdown-it hands out is filtered once more.
        self.text.append(sanitise(text).expandtabs(TAB).replace("\n", " "), self._styles[-1] + self._theme.style(role))


_ROLES = {"strong": "strong", "em": "emphasis", "s": "struck"}
_MARK = re.compile(r"\\.|`+|\*\*|__|~~|[*_]")


def completed(source: str) -> str:
    """An unfinished paragraph with its open emphasis, code and formula closed, so that it looks at once as it is going to."""
    source = source.rstrip()
    inside = _formulas(source)
    if inside and inside[-1][1] == len(source):
        return source
    if "$" in source and _ends_in_dollars(source):
        return source + "$"
    source = source.rstrip("*_~`")
    open_marks: list[str] = []
    for match in _MARK.finditer(source):
        mark, (start, end) = match[0], match.span()
        if any(begin <= start < stop for begin, stop in inside):
            continue
        if open_marks and open_marks[-1][0] == "`":
            if mark == open_marks[-1]:
                open_marks.pop()
        elif mark in open_marks and not source[start - 1].isspace():
            del open_marks[open_marks.index(mark) :]
        elif mark[0] == "`" or (mark[0] != "\\" and _opens(source, start, end)):
            open_marks.append(mark)
    return source + "".join(reversed(open_marks))


def _opens(source: str, start: int, end: int) -> bool:
    """Whether a mark there may begin an emphasis."""
    return not source[end : end + 1].isspace() and not source[max(0, start - 1) : start].isalnum()


def _formulas(source: str) -> list[tuple[int, int]]:
    """Where they are."""
    if "$" not in source and "\\" not in source:
        return []
    from llamachat.ui.markdown.formulas import formulas  # with the first sign of one

    return formulas(source)


def _ends_in_dollars(source: str) -> bool:
    from llamachat.ui.markdown.formulas import open_dollar

    return open_dollar(source)


def _outside(source: str) -> str:
    """A text without its formulas."""
    parts, start = list[str](), 0
    for begin, stop in _formulas(source):
        parts.append(source[start:begin])
        start = stop
    return "".join([*parts, source[start:]])


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # loaded when the first answer needs it, not before the prompt

    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
    parser.inline.ruler.before("escape", "maths", _maths)
    return parser


def _maths(state: "StateInline", silent: bool) -> bool:
    """markdown-it's rule for a formula."""
    if state.src[state.pos] not in "$\\":
        return False
    from llamachat.ui.markdown.formulas import formula

    found = formula(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        from llamachat.ui.markdown.maths import shown  # with the first formula

        state.push("maths", "", 0).content = shown(found.source)
    state.pos = found.end
    return True
