"""Only readable text files are attached, framed so that nothing in them ends the frame; the rest of a message is left alone."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.titles import title
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import TextSize
from llamachat.system.enclosed import own_words, parted
from llamachat.ui import attach, gather
from llamachat.ui.attach import Attachment, Found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two files in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("some text")
    (tmp_path / "a file").write_text("more")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "café"),
        (b"a\r\nb\rc\n", "a\nb\rc\n"),
        (b"x" * attach.LIMIT, "x" * attach.LIMIT),
    ],
)
def test_a_text_file_is_read_whole(here: Path, content: bytes, text: str) -> None:
    (here / "f").write_bytes(content)
    assert attach.read(here / "f") == Attachment("f", text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9", "f is not UTF-8 text; it was not attached; convert it"),
        (b"\x7fELF\0\0", "f is not text"),
        (b"x" * (attach.LIMIT + 1), "f is larger than 1 MB; it was not attached; attach a part of it"),
    ],
)
def test_what_is_no_small_text_is_refused(here: Path, content: bytes, says: str) -> None:
    (here / "f").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        attach.read(here / "f")


def test_what_is_no_file_is_refused_at_once(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to("/proc/self/environ")
    cases = {".": "it is a folder", "missing": "is not there", "pipe": "it is no file", "/dev/zero": "it is a device"}
    cases |= {"link": "something of the system's", "/proc/version": "something of the system's"}
    for name, says in {**cases, "x" * 5000: "cannot be read", "a\0b": "cannot be read|is not there"}.items():
        with pytest.raises(UsageError, match=says):
            attach.read(Path(name))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(here: Path) -> None:
    (here / "notes.md").chmod(0)
    with pytest.raises(UsageError, match="cannot be read"):
        attach.read(here / "notes.md")


def test_a_hostile_name_is_shown_safely(here: Path) -> None:
    path = here / "a\x1b]0;x\x07\n\u202eb"
    path.write_text("")
    assert attach.read(path).name == "a ⟨U+202E⟩b"


@pytest.mark.parametrize(
    ("text", "sent", "names"),
    [
        ("see @notes.md", "see notes.md", ["notes.md"]),
        ("(see @notes.md).", "(see notes.md).", ["notes.md"]),
        ('@"a file" and @notes.md, and @./notes.md', "a file and notes.md, and notes.md", ["a file", "notes.md"]),
        ("```\nx\n```\n@notes.md", "```\nx\n```\nnotes.md", ["notes.md"]),
    ],
)
def test_a_message_names_files(text: str, sent: str, names: list[str]) -> None:
    found = attach.Mentions(text)
    assert (found.text, [each.name for each in found.found], found.notes) == (sent, names, [])
    assert attach.Mentions(attach.to_message(sent, found.attachments)).found == [], "once is enough"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("me@notes.md, a/@notes.md, @@notes.md, `@notes.md`", 0),
        ("```py\n@notes.md\n```\n~~~\n@notes.md", 0),
        ("hello @bob! @ @, @property @3", 0),
        ("@missing.md, and @src/main.c", 2),
        ("@. @.. @/ @~", 0),
        (" ".join(f"@types/{n}" for n in range(50)), 4),
        ("@" + "x/" * 9999, 1),
        ("@a\0b.md", 1),
    ],
)
def test_the_rest_of_a_message_is_left_alone(text: str, notes: int) -> None:
    found = attach.Mentions(text)
    assert (found.text, found.found, len(found.notes)) == (text, [], notes)
    assert all(len(note) < 120 for note in found.notes)


def test_what_is_named_but_cannot_be_attached_is_an_error(here: Path) -> None:
    (here / "data.bin").write_bytes(b"\xff\0")
    with pytest.raises(UsageError, match=r"data\.bin is not UTF-8"):
        attach.Mentions("see @data.bin")
    for name in "abc":
        (here / f"{name}.txt").write_text("x" * 400_000)
    with pytest.raises(UsageError, match="larger than 1 MB together; nothing was sent"):
        attach.Mentions("see @a.txt @b.txt @c.txt")


def test_without_a_home_a_tilde_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert attach.as_path("~/x") == Path("~/x")
    assert attach.Mentions("@~/x.md").notes == ["@~/x.md names no file: sent as it is"]


def test_quotes_around_a_path_are_taken_off() -> None:
    assert attach.as_path('"a file"') == attach.as_path("'a file'") == Path("a file")


def test_files_go_before_the_text_by_name() -> None:
    sent = attach.to_message("compare", [Attachment("a.py", "x = 1\n"), Attachment("a b", "`y`")])
    assert sent == "a.py:\n```\nx = 1\n```\n\n./a b:\n```\n`y`\n```\n\ncompare"
    assert parted(sent) == ("compare", ("a.py (1 line)", "a b (1 line)")) and title(sent) == "compare"
    assert own_words("Fix this:\n```\nx\n```") == "Fix this:\n```\nx\n```"
    assert attach.to_message("alone", []) == own_words("alone") == "alone"


@given(st.text(alphabet="`~a\n ", max_size=60))
def test_nothing_in_a_file_closes_its_fence(text: str) -> None:
    sent = attach.to_message("", [Attachment("f", text)])
    fence = sent.removeprefix("./f:\n").split("\n")[0]
    assert re.fullmatch("`{3,}", fence)
    assert sent.count(fence) == 2 and sent == f"./f:\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"
    assert own_words(attach.to_message("and this?", [Attachment("f", text)] * 2)) == "and this?"


@pytest.fixture
def tree(here: Path) -> Path:
    for name in (
        "docs/b.md",
        "docs/a.txt",
        "docs/deep/c.md",
        "docs/.git/config",
        "docs/.secret",
        "src/x.py",
        "src/y.py",
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / "docs/picture").write_bytes(b"\x89PNG\0\xff")
    (here / "docs/link").symlink_to(here / "notes.md")
    (here / "docs/up").symlink_to(here)
    return here


@pytest.mark.parametrize(
    ("typed", "names", "left_out"),
    [
        ("docs/", ["docs/a.txt", "docs/b.md", "docs/deep/c.md"], "4 hidden or a link, 1 binary"),
        ("docs/*.md", ["docs/b.md"], ""),
        ("docs/**/*.md", ["docs/b.md", "docs/deep/c.md"], ""),
        ("docs/**/**", ["docs/a.txt", "docs/b.md", "docs/deep/c.md"], "1 binary"),
        ("*/[xy].p?", ["src/x.py", "src/y.py"], ""),
        ("./docs/.s*", ["docs/.secret"], ""),
    ],
)
def test_a_folder_or_a_pattern_stands_for_several_files(
    tree: Path, typed: str, names: list[str], left_out: str
) -> None:
    (found,) = attach.read_all(typed)
    assert ([each.name for each in found.files], found.left_out) == (names, left_out)
    assert [each.text for each in found.files] == names
    mentions = attach.Mentions(f"sum up @{typed}, please")
    assert (mentions.attachments, mentions.text) == ([*found.files], f"sum up {typed}, please")


def test_read_takes_several_names(tree: Path) -> None:
    def names(argument: str) -> list[str]:
        return [each.name for found in attach.read_all(argument) for each in found.files]

    assert names("notes.md \"a file\" 'notes.md' src/*.py") == [
        "notes.md",
        "a file",
        "notes.md",
        "src/x.py",
        "src/y.py",
    ]
    assert names("a file") == ["a file"]
    assert names("src") == ["src/x.py", "src/y.py"]
    assert names(".") == ["a file", "docs/a.txt", "docs/b.md", "docs/deep/c.md", "notes.md", *names("./src")]
    for argument, says in {"notes.md nowhere": "nowhere is not there", "*.c": r"\*\.c has no file to attach"}.items():
        with pytest.raises(UsageError, match=says):
            attach.read_all(argument)


def test_a_folder_is_not_meant_without_its_slash_and_nor_is_a_pattern_that_names_nothing(tree: Path) -> None:
    found = attach.Mentions("ask @docs about @*.c and @** and @src/*.c")
    assert (found.found, found.notes) == (
        [],
        ["@src/*.c names no file: sent as it is"],
    )


def test_folders_are_bounded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = here / "deep"
    for name in range(4):
        (deep / "d" / str(name)).mkdir(parents=True)
        (deep / "d" / str(name) / "f").write_text("x" * 300_000)
    for limit, value, says in (("MOST", 3, "more than 3 files"), ("LOOKED_AT", 5, "too many files to look through")):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match=says):
            patch.setattr(gather, limit, value)
            attach.read_all("deep")
    with pytest.raises(UsageError, match="larger than 1 MB together"):
        attach.Mentions("@deep/")
    with monkeypatch.context() as patch:
        patch.setattr(gather, "DEPTH", 1)
        assert gather.gathered("deep/") == ([], 0)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (None, "attached f (4,096 characters)"),
        (TextSize(1234, True, 8000), "attached f (1,234 tokens, 15% of the context)"),
        (TextSize(1, False), "attached f (about 1 token, <1% of the context)"),
    ],
)
def test_what_is_attached_is_told_with_its_size(size: TextSize | None, says: str) -> None:
    assert attach.told(Found("f", (Attachment("f", "x" * 4096),)), lambda text: size, 8192) == says


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        (TextSize(9000, True, 8100, 131072), "attach a part of it, or start with --ctx-size 12288"),
        (TextSize(9000, True, 8100, 10000), "attach a part of it"),
        (TextSize(300_000, False, 8100), "attach a part of it"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(size: TextSize, remedy: str) -> None:
    about = f"{'' if size.counted else 'about '}{size.tokens:,} tokens"
    with pytest.raises(DoesNotFitError) as refused:
        attach.require_room("f", "text", lambda text: size, 8192, "attached", "attach a part of it")
    assert str(refused.value) == f"f: {about}, and the context holds 8,192; it was not attached; {remedy}"
    attach.require_room("f", "text", lambda text: None, 8192, "attached", "attach a part of it")
    attach.require_room("f", "text", lambda text: TextSize(8100, True, 8100), 8192, "attached", "attach a part of it")
