"""Blocks do not depend on how an answer is cut, lose nothing, mean what CommonMark says, and fit the width."""

import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from llamachat.ui.markdown import Block, MarkdownStream, draw
from llamachat.ui.markdown.blocks import DEPTH, LIMIT, LINES, ROWS
from llamachat.ui.markdown.code import LANGUAGES, LONGEST, coloured
from llamachat.ui.theme import load

SGR = re.compile(r"\x1b\[[0-9;]*m")
WORDS = ["word ", "a longer few words ", "x" * 90, "日本語", "👩‍🚀", "❤️", "é", "שלום", "क्‍ष", "👨‍👩‍👧‍👦" * 9]
MARKS = ["**", "*", "_", "`", "~~", "[x](http://y.example/a)", "<b>", "&amp;", "\\", "\t", "|", "a|b"]
MATHS = [
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "\\begin{align}",
    "\\end{align}",
    "x_1",
    "\\frac{a}",
    "{",
    "}",
    "\\\\",
    "&",
]
STARTS = ["# ", "## h", "- ", "* ", "1. ", "  ", "    ", "> ", "- [ ] ", "|a|b|\n|-|:-:|\n", "---", "===", "-|-"]
CODE = ["```", "```py\n", "~~~", "def f():", '"""', "/* ", "*/"]
MARKDOWN = st.lists(st.sampled_from([*WORDS, *MARKS, *MATHS, *STARTS, *CODE, "\n", "\n", "\n\n"]), max_size=40).map(
    "".join
)
EXAMPLE = """# Title

Some **bold** text,
and *more*.

- one
  - two
    - three
- [ ] to do
- [x] done

1. first

   ```python
   x = 1
   ```
2. second

> quoted
> > twice
>
> once

| Left | Right | 日本 |
|:-----|------:|:---:|
| a | 1 | 語 |
| bb | 22 | x |

---
Sub
---
"""


def blocks(pieces: Sequence[str]) -> list[Block]:
    stream = MarkdownStream()
    return [block for piece in pieces for block in stream.feed(piece)] + stream.finish()


def drawn(text: str, width: int = 40, theme: str = "none") -> list[str]:
    return draw(blocks([text]), width, load(theme))


def plain(text: str, width: int = 40) -> list[str]:
    """As the dark theme draws it, without its styles."""
    return [SGR.sub("", line) for line in drawn(text, width, "dark")]


# ---- streaming ----


@given(MARKDOWN, st.data())
def test_cuts_never_matter_and_nothing_is_lost(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    whole = blocks([text])
    assert blocks([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole
    assert blocks(list(text)) == whole
    assert "".join(block.raw for block in whole) == text


LONG_PARTS = ["a", "b ", "*", "$$\n", "\\[\n", "`", "|", "> ", "-", "1.", "日", "👩‍🚀", "a\n", "\n"]
LONG = st.tuples(st.sampled_from(LONG_PARTS), st.integers(1, LIMIT))


@given(st.lists(LONG.map(lambda part: part[0] * part[1]), max_size=5).map("".join), st.integers(7, 2 * LIMIT))
def test_long_texts_are_cut_alike_however_they_come(text: str, step: int) -> None:
    whole = blocks([text])
    assert blocks([text[start : start + step] for start in range(0, len(text), step)]) == whole
    assert "".join(block.raw for block in whole) == text


@given(MARKDOWN, st.data())
def test_looking_at_the_tail_changes_nothing(text: str, data: st.DataObject) -> None:
    stream, found = MarkdownStream(), []
    for character in text:
        found += stream.feed(character)
        draw(stream.tail, 20, load("none"))
    assert found + stream.finish() == blocks([text])


def test_a_finished_stream_is_as_new() -> None:
    stream = MarkdownStream()
    stream.feed("- a\n\n```py\n")
    stream.finish()
    assert stream.feed("> b\n\n") == blocks(["> b\n\n"])[:1]


@pytest.mark.parametrize(
    "unit", ["*", "[", ">", "> ", "- ", "a\n", "a ", "日", "| a | b |\n", "```py\nx\n", "1. a\n", " "]
)
def test_what_is_unfinished_stays_small(unit: str) -> None:
    stream = MarkdownStream()
    stream.feed("| a | b |\n|---|---|\n" if unit.startswith("|") else "")
    stream.feed(unit * (20_000 // len(unit)))
    assert sum(len(block.raw) for block in stream.tail) <= 2 * LIMIT
    assert len(draw(stream.tail, 80, load("none"))) <= 2 * (LIMIT * 2 // 80 + LINES)


def test_lines_of_code_items_and_late_rows_are_finished_one_by_one() -> None:
    def finished(start: str, line: str) -> list[int]:
        stream = MarkdownStream()
        stream.feed(start)
        return [len(stream.feed(line)) for _ in range(3)]

    assert finished("```\n", "x\n") == [1, 1, 1]
    assert finished("- a\n", "- b\n") == [1, 1, 1]
    assert finished("|a|\n|-|\n" + "|b|\n" * ROWS, "|c|\n") == [1, 1, 1]


def test_a_tail_is_drawn_as_it_will_be_when_it_is_finished() -> None:
    for end in range(1, len(EXAMPLE) + 1):
        stream = MarkdownStream()
        done = stream.feed(EXAMPLE[:end])
        tail, rest = stream.tail, stream.finish()
        if not re.search(r"(?:^|\n)[^\w\n]*\d?[^\w\n]*$|[*`~_|][^\n]*$", EXAMPLE[:end]):  # not amid some markup
            assert draw(done + tail, 40, load("dark")) == draw(done + rest, 40, load("dark"))


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a **bold", "a \x1b[1mbold\x1b[0m"),
        ("a **bold*", "a \x1b[1mbold\x1b[0m"),
        ("a `co", "a \x1b[96mco\x1b[0m"),
        ("*a **b", "\x1b[3ma \x1b[0m\x1b[1;3mb\x1b[0m"),
        ("2 * 3", "2 * 3"),
        ("a_b and **", "a_b and"),
    ],
)
def test_open_emphasis_looks_at_once_as_it_is_going_to(source: str, shown: str) -> None:
    stream = MarkdownStream()
    stream.feed(source)
    assert draw(stream.tail, 40, load("dark")) == [shown]


@pytest.mark.parametrize(
    "start", ["#", "##", "-", "*", "**", "$", "$$", "\\[", "1", "1.", "`", "``", "|", "|--", "> ", "---"]
)
def test_a_start_that_says_nothing_yet_is_not_shown(start: str) -> None:
    stream = MarkdownStream()
    stream.feed(start)
    assert stream.tail == []
    assert draw(stream.finish(), 40, load("none")) != []


# ---- structure, against markdown-it's own ----

Found = tuple[str, str, str]  # kind, containers, text


def ours(text: str) -> Iterator[Found]:
    code = ""
    for block in blocks([text]):
        inside = "".join(">" if container.sign == ">" else "-" for container in block.inside)
        if block.kind == "code":
            code += block.body + "\n"
        elif block.kind == "fence" and set(block.body) == {"`"}:
            yield "code", inside, code
            code = ""
        elif block.kind == "table" and block.table:
            yield from (("cell", inside, cell) for row in block.table.rows for cell in row)
        elif block.kind == "rule":
            yield "rule", inside, "---"
        elif block.kind not in ("fence", "blank"):
            yield block.kind + str(block.level or ""), inside, block.body


def reference(text: str) -> Iterator[Found]:
    inside, kind = "", ""
    for token in MarkdownIt("commonmark", {"html": False}).enable("table").parse(text):
        match token.type:
            case "blockquote_open":
                inside += ">"
            case "list_item_open":
                inside += "-"
            case "blockquote_close" | "list_item_close":
                inside = inside[:-1]
            case "heading_open":
                kind = "heading" + token.tag[1]
            case "paragraph_open":
                kind = "text"
            case "th_open" | "td_open":
                kind = "cell"
            case "inline":
                yield kind, inside, token.content
            case "fence":
                yield "code", inside, token.content
            case "hr":
                yield "rule", inside, "---"


LEAVES = st.sampled_from(
    [
        "word",
        "two words",
        "# Head",
        "### Deep head ##",
        "***",
        "a **b** `c`",
        "```py\nx = 1\n\n  y\n```",
        "Sub\n===",
        "l1\nl2",
    ]
)
TABLE = "| a | b\\|c |\n|:--|--:|\n| 1 | 2 |\n| 3 | `4` |"


def indented(text: str, first: str, rest: str) -> str:
    return "\n".join((rest if number else first) + line for number, line in enumerate(text.split("\n")))


def contained(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    documents = st.lists(inner, min_size=1, max_size=3).map("\n\n".join)
    quotes = documents.map(lambda text: indented(text, "> ", "> "))
    items = documents.map(lambda text: indented(text, "- ", "  ")) | documents.map(
        lambda text: indented(text, "7. ", "   ")
    )
    return quotes | items


DOCUMENT = st.lists(st.recursive(LEAVES, contained, max_leaves=6) | st.just(TABLE), min_size=1, max_size=4).map(
    "\n\n".join
)


@given(DOCUMENT)
def test_well_formed_documents_have_the_structure_that_markdown_it_finds(text: str) -> None:
    assert list(ours(text)) == list(reference(text))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("1. a\n  - b\n    - c\n2. d", ["1. a", "   • b", "     ◦ c", "2. d"]),
        ("- a\n  1. b\n- c", ["• a", "  1. b", "• c"]),
        ("1. a\n   ```\nx\n   ```\n2. b", ["1. a", "   ```", "   x", "   ```", "2. b"]),
        ("|a|b|\n|-|-|\n|1|2|\nafter", ["a │ b", "──┼──", "1 │ 2", "after"]),
        ("It was\n1986. A year", ["It was", "1986. A year"]),
        ("> a\nlazy", ["│ a", "│ lazy"]),
        ("* * *", ["─" * 40]),
        ("-\n- a", ["•", "• a"]),
        ("```\nnever closed", ["```", "never closed"]),
        ("a\n\n\n\nb\n\n", ["a", "", "b"]),
        ("<b>bold</b> <!-- x -->", ["<b>bold</b> <!-- x -->"]),
        ("    code *as* it is", ["code *as* it is"]),
        (">" * (DEPTH + 1) + "x", ["│ " * 10 + ">x"]),
    ],
)
def test_what_models_write_is_drawn_as_they_mean_it(source: str, lines: list[str]) -> None:
    assert plain(source) == lines


# ---- drawing ----


@given(MARKDOWN, st.integers(8, 100), st.sampled_from(["dark", "light", "none"]))
def test_no_line_is_wider_than_the_screen_or_moves_its_cursor(text: str, width: int, theme: str) -> None:
    for line in drawn(text, width, theme):
        bare = SGR.sub("", line)
        assert cell_len(bare) <= width
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", bare)


def test_an_example_is_drawn_without_colours() -> None:
    assert drawn(EXAMPLE, 24) == [
        "# Title",
        "",
        "Some **bold** text,",
        "and *more*.",
        "",
        "• one",
        "  ◦ two",
        "    ▪ three",
        "☐ to do",
        "☑ done",
        "",
        "1. first",
        "",
        "   ```python",
        "   x = 1",
        "   ```",
        "2. second",
        "",
        "> quoted",
        "> > twice",
        ">",
        "> once",
        "",
        "Left │ Right │ 日本",
        "─────┼───────┼─────",
        "a    │     1 │  語",
        "bb   │    22 │  x",
        "",
        "─" * 24,
        "## Sub",
    ]


def test_themes_differ_in_styles_only() -> None:
    shown = {theme: drawn(EXAMPLE, 60, theme) for theme in ("dark", "light")}
    assert shown["dark"] != shown["light"]
    assert [SGR.sub("", line) for line in shown["dark"]] == [SGR.sub("", line) for line in shown["light"]]
    assert not SGR.search("".join(drawn(EXAMPLE)))


def test_words_wrap_at_their_ends_and_ideographs_anywhere_but_before_a_stop() -> None:
    assert plain("one two three four", 9) == ["one two", "three", "four"]
    assert plain("x" * 20, 8) == ["x" * 8, "x" * 8, "x" * 4]
    assert plain("abc 日本語日本語。", 10) == ["abc 日本語", "日本語。"]
    assert plain("日本語日本。語", 10) == ["日本語日", "本。語"]


def test_a_table_that_is_too_wide_wraps_its_cells_and_one_of_too_many_columns_stacks_them() -> None:
    assert plain("|name|text|\n|-|-|\n|a|some longer words|", 16) == [
        "name │ text",
        "─────┼──────────",
        "a    │ some",
        "     │ longer",
        "     │ words",
    ]
    rule = "─" * 16
    stacked = ["first · second ·", "third", rule, "first: some", "longer words", "third: c", rule]
    assert plain("|first|second|third|\n|-|-|-|\n|some longer words||c|", 16) == stacked


def test_late_rows_keep_the_widths_of_a_table_and_widen_only_themselves() -> None:
    lines = plain("|a|b|\n|-|-|\n" + "|xx|y|\n" * ROWS + "|z|much longer|\n|zzz|y|\n|z|y|\n", 20)
    assert lines[-3:] == ["z  │ much longer", "zzz │ y", "z  │ y"]
    lines = plain("|a|b|\n|-|-|\n" + "|xx|some words|\n" * ROWS + "|z|many more words than that|\n", 16)
    assert lines[-4:] == ["xx │ some words", "z  │ many more", "   │ words than", "   │ that"]


def test_a_link_shows_where_it_leads() -> None:
    assert plain("[my bank](http://evil.example/x) <http://a.example> <me@b.example>", 90) == [
        "my bank (http://evil.example/x) http://a.example me@b.example"
    ]
    assert plain("![picture](p.png) [x](javascript:alert(1))", 90) == ["picture (p.png) [x](javascript:alert(1))"]


@pytest.mark.parametrize(
    "source", ["&#x1b;[2J", "&#27;c", "&#x9b;m", "&#x202e;", "<http://a/%1b[2J>", "[a](<x%07\t>)", "&#13;"]
)
def test_what_markdown_decodes_cannot_drive_the_terminal(source: str) -> None:
    shown = "\n".join(drawn(source + " **x**", 80, "dark"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", SGR.sub("", shown))
    assert SGR.findall(shown)[-2:] == ["\x1b[1m", "\x1b[0m"]


@pytest.mark.parametrize(
    ("language", "lines"),
    [
        ("python", ['"""open', "still a string", 'closed"""', "x = 1"]),
        ("c", ["/* open", "int still_a_comment;", "closed */", "x = 1"]),
        ("javascript", ["/* open", "let still_a_comment;", "closed */", "x = 1"]),
        ("js", ["`open", "let still_a_string;", "closed`", "x = 1"]),
    ],
)
def test_strings_and_comments_are_coloured_across_lines(language: str, lines: list[str]) -> None:
    found = drawn("\n".join([f"```{language}", *lines, "```"]), 40, "dark")[1:-1]
    styles = [set(SGR.findall(line)) - {"\x1b[0m"} for line in found]
    assert styles[0] == styles[1] == styles[2]
    assert len(styles[0]) == 1
    assert styles[3].isdisjoint(styles[0])


def test_code_of_no_known_language_and_of_endless_lines_is_shown_plain() -> None:
    for fence, line in [("nonsense-lang", "x = 1"), ("python", "x = 1; " * 150)]:
        assert not SGR.search("".join(drawn(f"```{fence}\n{line}\n```", 80, "dark")[1:-1]))


def test_code_keeps_its_spaces_and_every_character() -> None:
    line = "if  x:    " + "y" * 50
    assert "".join(drawn(f"```\n{line}\n```", 20)[1:-1]) == line


def test_no_line_keeps_a_lexer_busy() -> None:
    """Some of pygments' lexers would take hours over one of these; ours take milliseconds and lose nothing."""
    units = ["a", " ", "\t", "!", "(", "<a ", '"\\', "'", "a.", "a-", "=", "/*", "{{", "${", "0x", "a="]
    for language in LANGUAGES:
        for unit in units:
            line = (unit * LONGEST)[:LONGEST]
            assert "".join(part for part, _ in coloured(language, "", line)) == line
