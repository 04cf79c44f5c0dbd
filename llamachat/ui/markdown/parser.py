"""The block structure of Markdown, line by line: CommonMark's, with GitHub's tables and tasks.

It has what models write in mind: sloppy indents of nested lists nest, code in a list may lose its indent, a table ends at
the first line without a bar.
"""

import re
from dataclasses import dataclass
from typing import Any

from llamachat.ui.markdown.blocks import DEPTH, LIMIT, LINES, ROWS, Align, Block, Container, Kind, Table

_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r" {0,3}([-*+]|\d{1,9}[.)])([ \t]+|$)")
_TASK = re.compile(r"\[([ xX])\] ")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,}) *([^\s`]*)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?: |$)")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+) *$")
_DELIMITERS = re.compile(r" *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$")
_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class _Open:
    """A container that goes on. Columns are counted from the innermost quote's content."""

    sign: str
    mark: int = 0  # column of the item's sign
    column: int = 0  # column of its content


@dataclass(frozen=True)
class _Paragraph:
    body: str
    raw: str
    last: int = 0  # where the last line begins in body
    last_raw: int = 0
    lines: int = 1
    formula: str = ""  # what closes the displayed one that it is in: no line in there is anything else


@dataclass(frozen=True)
class _Fence:
    sign: str
    column: int
    language: str


@dataclass(frozen=True)
class _TableOpen:
    rows: tuple[tuple[str, ...], ...]
    align: tuple[Align, ...]
    raw: str
    settled: tuple[tuple[str, ...], ...] = ()  # rows that set the widths, once some are out


class Parser:
    """The state between two lines. All but `blocks` is immutable, so that a shallow copy can look ahead."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._stack: tuple[_Open, ...] = ()
        self._fresh = 0  # how many of the innermost containers have shown nothing yet
        self._leaf: _Paragraph | _Fence | _TableOpen | None = None
        self._blank = ""  # lines since the last block
        self._gap: int | None = None  # whether there were any, and in how many containers
        self._begun = False
        self._before = ""  # see Block.before

    def take(self) -> list[Block]:
        blocks, self.blocks = self.blocks, []
        return blocks

    def line(self, text: str, end: str, starts: bool) -> None:
        """A line, or as much of an endless one as may wait; `starts`: not the rest of such a one."""
        raw = text + end
        if not starts:
            self._go_on(text, raw)
            return
        depth, rest, base = self._descend(_spaced(text))
        if isinstance(self._leaf, _Fence):
            if all(open.sign != ">" for open in self._stack[depth:]):
                self._code(self._leaf, rest, raw)
                return
            self._close()
        if not rest.strip():
            self._skip(raw, depth)
        elif self._in_formula(depth):
            self._text(rest[base:].lstrip(), raw, True)
        elif self._lazy(rest[base:], depth):
            self._text(rest[base:], raw, True)
        else:
            self._unfold(depth)
            self._place(self._enter(rest, base), raw)

    def finish(self) -> None:
        self._close()
        self._tell_blank()

    # ---- containers ----

    def _descend(self, rest: str) -> tuple[int, str, int]:
        """How many containers the line goes on in, the line from the last quote on, the column where content begins."""
        base = 0
        for depth, open in enumerate(self._stack):
            lead = _lead(rest)
            if open.sign == ">":
                quote = _QUOTE.match(rest, base)
                if not quote:
                    return depth, rest, base
                rest, base = rest[quote.end() :], 0
            elif lead >= open.column or lead == len(rest):
                base = open.column
            elif lead >= open.mark + 2 and _ITEM.match(rest, lead):
                base = lead
            else:
                return depth, rest, base
        return len(self._stack), rest, base

    def _in_formula(self, depth: int) -> bool:
        """Whether the line is of a displayed formula, which may lose its indent in a list."""
        inside = isinstance(self._leaf, _Paragraph) and self._leaf.formula
        return bool(inside) and all(open.sign != ">" for open in self._stack[depth:])

    def _lazy(self, content: str, depth: int) -> bool:
        """Whether the line only goes on with the paragraph of a container that it does not name."""
        missing = depth < len(self._stack) and isinstance(self._leaf, _Paragraph)
        return missing and not any(p.match(content) for p in (_QUOTE, _ITEM, _FENCE, _HEADING, _RULE))

    def _unfold(self, depth: int) -> None:
        if depth < len(self._stack):
            self._close()
            self._stack = self._stack[:depth]

    def _enter(self, rest: str, base: int) -> str:
        """Open the containers that begin in a line; returns their content."""
        while len(self._stack) < DEPTH:
            if quote := _QUOTE.match(rest, base):
                self._push(_Open(">"))
                rest, base = rest[quote.end() :], 0
            elif (item := _ITEM.match(rest, base)) and self._may_begin(item, rest, base):
                mark, spaces = item.start(1), len(item[2])
                base = item.end(1) + (spaces if 1 <= spaces <= 4 else 1)
                rest = " " * base + rest[base:]
                sign = item[1]
                if task := _TASK.match(rest, base):
                    sign, rest = "[ ]" if task[1] == " " else "[x]", " " * base + rest[task.end() :]
                self._push(_Open(sign, mark, base))
            else:
                break
        return rest[base:]

    def _may_begin(self, item: re.Match[str], rest: str, base: int) -> bool:
        """A rule is no item, and a number inside a paragraph mostly neither."""
        if _RULE.match(rest, base):
            return False
        begins = item[1] in ("1.", "1)", "-", "*", "+") and item.end() < len(rest)
        return begins or not isinstance(self._leaf, _Paragraph)

    def _push(self, container: _Open) -> None:
        self._close()
        self._stack += (container,)
        self._fresh += 1

    # ---- leaves ----

    def _place(self, content: str, raw: str) -> None:
        if self._underlined(content, raw) or self._in_table(content, raw):
            return
        if fence := _FENCE.match(content):
            self._close()
            self._emit("fence", raw, content.strip())
            self._leaf, self._before = _Fence(fence[1], _lead(content), fence[2].lower()), ""
        elif heading := _HEADING.match(content):
            self._close()
            self._emit("heading", raw, _without_closing(content[heading.end() :]), level=len(heading[1]))
        elif _RULE.match(content):
            self._close()
            self._emit("rule", raw, content.strip())
        elif _lead(content) >= 4 and not isinstance(self._leaf, _Paragraph):
            self._emit("code", raw, content[4:])
        elif content.strip() or self._fresh:
            self._text(content, raw, True)
            if not content.strip():
                self._close()

    def _underlined(self, content: str, raw: str) -> bool:
        """Whether this makes a heading of the paragraph above."""
        if not isinstance(self._leaf, _Paragraph) or not _UNDERLINE.match(content):
            return False
        paragraph, self._leaf = self._leaf, None
        self._emit("heading", paragraph.raw + raw, paragraph.body, level=1 if "=" in content else 2)
        return True

    def _text(self, content: str, raw: str, starts: bool) -> None:
        """A paragraph's line, its first or a further one, or the rest of an endless line."""
        leaf = self._leaf
        sign = leaf.formula if isinstance(leaf, _Paragraph) else ""
        left = _open_display(sign, content) if sign or "$$" in content or "\\" in content else ""
        if isinstance(leaf, _Paragraph) and leaf.lines < LINES and len(leaf.raw) + len(raw) <= LIMIT:
            body = leaf.body + "\n" if starts else leaf.body
            last = (len(body), len(leaf.raw)) if starts else (leaf.last, leaf.last_raw)
            self._leaf = _Paragraph(body + content, leaf.raw + raw, *last, leaf.lines + 1, left)
        else:
            self._close()
            begins = _opening(sign) + "\n" if sign else ""  # the rest of one that was cut
            self._leaf = _Paragraph(begins + (content.lstrip() if starts else content), raw, formula=left)

    def _go_on(self, text: str, raw: str) -> None:
        if isinstance(self._leaf, _Fence):
            self._code(self._leaf, text, raw)
        else:
            if not isinstance(self._leaf, _Paragraph):
                self._close()
            self._text(text, raw, False)

    def _code(self, fence: _Fence, rest: str, raw: str) -> None:
        column = self._stack[-1].column if self._stack else 0
        content = rest[min(_lead(rest), column + fence.column) :]
        text = content.strip()
        if len(text) >= len(fence.sign) and set(text) == {fence.sign[0]} and _lead(content) <= 3:
            self._leaf = None
            self._emit("fence", raw, text)
        else:
            self._emit("code", raw, content, language=fence.language, before=self._before)
            from llamachat.ui.markdown.code import carried  # pygments is loaded with the first code

            self._before = carried(fence.language, self._before, content)

    def _skip(self, raw: str, depth: int) -> None:
        """A blank line."""
        self._close()
        self._stack = self._stack[:depth]
        self._gap = depth if self._gap is None else min(self._gap, depth)
        self._blank += raw
        if len(self._blank) > LIMIT:
            self._tell_blank()

    def _tell_blank(self) -> None:
        if self._blank:
            self.blocks.append(Block("blank", self._blank))
            self._blank = ""

    def _in_table(self, content: str, raw: str) -> bool:
        """Whether the line begins a table or goes on with one."""
        if isinstance(self._leaf, _Paragraph):
            return self._begin_table(self._leaf, content, raw)
        if not isinstance(self._leaf, _TableOpen):
            return False
        if not _BAR.search(content):
            self._close()
            return False
        table = self._leaf
        row = (_row(content) + ("",) * len(table.align))[: len(table.align)]
        self._leaf = _TableOpen((*table.rows, row), table.align, table.raw + raw, table.settled)
        if table.settled or len(table.rows) >= ROWS or len(table.raw) + len(raw) > LIMIT:
            self._close()
            self._leaf = _TableOpen((), table.align, "", table.settled or (*table.rows, row))
        return True

    def _begin_table(self, paragraph: _Paragraph, content: str, raw: str) -> bool:
        head = paragraph.body[paragraph.last :]
        if not (_BAR.search(head) and _DELIMITERS.match(content)):
            return False
        cells, align = _row(head), tuple(_align(cell) for cell in _row(content))
        if len(cells) != len(align):
            return False
        self._leaf = None
        if paragraph.last:
            self._emit("text", paragraph.raw[: paragraph.last_raw], paragraph.body[: paragraph.last - 1])
        self._leaf = _TableOpen((cells,), align, paragraph.raw[paragraph.last_raw :] + raw)
        return True

    def _close(self) -> None:
        """The leaf under way is finished."""
        leaf, self._leaf = self._leaf, None
        match leaf:
            case _Paragraph():
                self._emit("text", leaf.raw, leaf.body)
            case _TableOpen() if leaf.rows:
                table = Table(leaf.rows, leaf.align, not leaf.settled, leaf.settled or leaf.rows)
                self._emit("table", leaf.raw, table=table)

    def _emit(self, kind: Kind, raw: str, body: str = "", **fields: Any) -> None:
        old = len(self._stack) - self._fresh
        inside = tuple(Container(open.sign, depth >= old) for depth, open in enumerate(self._stack))
        gap = min(self._gap, old) if self._gap is not None and self._begun else None
        self.blocks.append(Block(kind, self._blank + raw, body, inside, gap, **fields))
        self._blank, self._gap, self._fresh, self._begun = "", None, 0, True


def _open_display(sign: str, line: str) -> str:
    from llamachat.ui.markdown.formulas import open_display  # with the first sign of one

    return open_display(sign, line)


def _opening(sign: str) -> str:
    from llamachat.ui.markdown.formulas import opening

    return opening(sign)


def _spaced(text: str) -> str:
    """A line whose indent is spaces only."""
    content = text.lstrip(" \t")
    return text[: len(text) - len(content)].expandtabs(4) + content


def _lead(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _without_closing(heading: str) -> str:
    """A heading's text without the number signs that may end it."""
    text = heading.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1] == " " else text


def _row(line: str) -> tuple[str, ...]:
    line = line.strip().removeprefix("|")
    parts = _BAR.split(line)
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return tuple(part.strip().replace("\\|", "|") for part in parts)


def _align(delimiter: str) -> Align:
    left, right = delimiter.startswith(":"), delimiter.endswith(":")
    return "center" if left and right else "right" if right else "left"
