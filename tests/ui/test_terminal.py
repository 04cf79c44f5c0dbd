"""The chat in a real pseudo-terminal, its screen and scroll-back read through a terminal emulator."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fakes import FakeSession
from pty_chat import HERE, SCRIPT, Terminal

from llamachat.errors import LlamachatError
from llamachat.ui import theme
from llamachat.ui.commands.command import Context
from llamachat.ui.commands.typed import respond
from llamachat.ui.markdown import MarkdownStream, draw
from llamachat.ui.render import Screen

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

SIZES = [(80, 24), (120, 40)]
STATS = "2 tokens · 40.0 tok/s · first token 0.25 s · context <1% of 8192"
BANNER = "llamachat · Fake-1B · /help for commands, Ctrl-D to leave"
STOPPED = re.compile("stopped")
TOLD = ', theme="none", stats=True'
LONG = (
    """# A title that stands above it all

Here is a **first** paragraph that is long enough to wrap over several lines in a terminal of eighty columns, with
*emphasis that itself goes on beyond the end of its line*, `code`, and some 日本語のテキスト, which is wide.

1. First item of a list
2. Second item, which is rather longer than the first one and so it has to be wrapped somewhere around here
   - nested, with **strong words**
   - items

```python
def fib(n: int) -> int:
    \"\"\"Doc.\"\"\"
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a  # a comment that makes this line longer than eighty columns, so that it has to be cut somewhere
```

| name | value | what it means |
|---|---:|---|
| alpha | 1 | the first letter |
| beta | 22 | the second letter, about which there is more to say than fits in one line of a narrow terminal |

> A quote, with a line
> and another line.

"""
    * 3
    + "The last paragraph, at last."
)


def drawn(text: str, columns: int) -> list[str]:
    """An answer that comes at once."""
    stream = MarkdownStream()
    return [line.rstrip() for line in draw([*stream.feed(text), *stream.finish()], columns, theme.load("none"))]


def words(lines: Sequence[str]) -> str:
    """Their text alone, however it is wrapped."""
    return re.sub(r"\W", "", "".join(lines))


@pytest.mark.parametrize("size", SIZES)
def test_a_dialog_looks_tidy(start: Callable[..., Terminal], size: tuple[int, int]) -> None:
    terminal = start("session.enqueue('First line.\\n', 'Second.')", size)
    assert terminal.prompted() == [BANNER, "", "❯", "Fake-1B int4 · context ░░░░░░░░░░ 0% of 8192 · 0.7 GB"]
    terminal.say("hello")
    lines = terminal.say("/nope")
    assert lines[0] == "❯ /nope"
    assert lines[1].startswith("error: unknown command /nope;")
    assert terminal.lines()[:7] == [BANNER, "", "❯ hello", "First line.", "Second.", "", "❯ /nope"]
    assert terminal.lines()[-3:-1] == ["", "❯"]
    first, meter = ("first token", "context █░░░░░░░░░") if size[0] > 80 else ("first", "█░░░░")
    assert terminal.lines()[-1] == f"Fake-1B int4 · 40.0 tok/s · {first} 0.25 s · {meter} <1% of 8192 · 0.7 GB"
    assert terminal.leave() == 0
    assert "closed" in terminal.lines()


SHOWING = (  # commands that only show or change something
    "/help", "/help edit", "/set", "/set temperature 0.5", "/set nothing 1", "/show", "/system", "/system Be kind.", "/stats",
    "/why", "/context", "/heat", "/alts 1", "/alts 99", "/branches", "/fork", "/switch 99", "/sessions", "/persona",
    "/save", "/read", "/export", "/read nowhere.txt", "/continue now", "/clear", "/heta",
)  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_every_command_shows_in_the_live_terminal_what_it_draws(
    start: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    terminal, session, paper = start("", size), FakeSession(), io.StringIO()
    screen = Screen(paper, paper, theme=theme.load("none"), width=lambda: size[0])
    screen.at_terminal = True
    context = Context(lambda: session, lambda: session, screen, send=lambda text: None)
    terminal.prompted()
    terminal.say("hello")
    list(session.ask("hello"))
    for typed in SHOWING:
        paper.seek(0), paper.truncate()
        try:
            assert respond(context, typed) is None
        except LlamachatError as error:
            screen.error(error)
        expected = [row.rstrip() for line in paper.getvalue().splitlines() for row in folded(line, size[0])]
        assert terminal.say(typed)[1 : len(expected) + 1] == expected, typed


def folded(line: str, columns: int) -> list[str]:
    """As a terminal wraps it."""
    return [line[at : at + columns] for at in range(0, max(len(line), 1), columns)]


@pytest.mark.parametrize("size", [*SIZES, (20, 10), (30, 3)])
@pytest.mark.parametrize("piece", [3, 200])
def test_a_long_answer_is_in_the_scroll_back_as_if_it_had_come_at_once(
    start: Callable[..., Terminal], size: tuple[int, int], piece: int
) -> None:
    terminal = start(f"session.enqueue(*pieces({LONG!r}, {piece}))", size)
    terminal.wait_for("❯")
    terminal.child.send("go\r")
    terminal.wait(lambda lines: terminal.line() == "❯" and "atlast" in words(terminal.all_lines()[-9:]))
    terminal.wait(lambda lines: lines[-3] == "")
    lines = terminal.all_lines()
    begin = lines.index("❯ go") + 1
    expected = drawn(LONG, size[0])
    assert lines[begin : begin + len(expected)] == expected
    assert lines[-3:-1] == ["", "❯"]
    assert terminal.leave() == 0


@pytest.mark.parametrize("size", [(80, 24), (50, 12)])
def test_typing_menus_and_searches_leave_the_answer_alone(
    start: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    slow = f"session.enqueue(*[step for piece in pieces({LONG!r}, 20) for step in (piece, lambda: time.sleep(0.01))])"
    terminal = start(slow, size)
    terminal.wait_for("❯")
    terminal.child.send("go\r")
    for keys in (
        "/s",
        "\t",
        "\t",
        "\x15",
        "one\ntwo\nthree\nfour\nfive",
        "\x12",
        "g",
        "\x07",
        "\x15",
        "queue\r",
        "x" * 300,
    ):
        terminal.child.send(keys)
        until = time.monotonic() + 0.15
        terminal.wait(lambda lines, until=until: time.monotonic() > until)  # type: ignore[misc]
    terminal.wait(lambda lines: "Yousaidonetwothreefourqueue" in words(terminal.all_lines()[-15:]))
    lines = terminal.all_lines()
    begin = lines.index("❯ go") + 1
    expected = drawn(LONG, size[0])
    assert lines[begin : begin + len(expected)] == expected
    assert [lines.count(line) for line in ("❯ one", "  four", "  queue", "You said: one")] == [1, 1, 1, 1]


def test_a_menu_that_comes_and_goes_while_nothing_streams_leaves_the_answer_alone(
    start: Callable[..., Terminal], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    table = "| a | b |\n|---|---|\n" + "".join(f"| {row} | {row}{row} |\n" for row in range(5))
    rest = "| wider | cell |\n\nend"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    terminal = start(f"def wait():\n    {wait}\nsession.enqueue({table!r}, wait, {rest!r})", (50, 10), options=TOLD)
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("4 │ 44")
    terminal.child.send("/s\t")
    terminal.wait_for("/set")
    terminal.child.send("\x15")
    terminal.wait(lambda lines: terminal.line() == "❯")
    go.touch()
    terminal.wait_for("first token")
    lines = terminal.all_lines()
    begin, expected = lines.index("❯ go") + 1, drawn(table + rest, 50)
    assert [words([line]) for line in lines[begin : begin + len(expected)]] == [words([line]) for line in expected]


def test_a_search_in_a_terminal_of_three_rows_leaves_the_answer_alone(start: Callable[..., Terminal]) -> None:
    text = "".join(f"line {number}\n\n" for number in range(40))
    slow = f"session.enqueue(*[step for piece in pieces({text!r}) for step in (piece, lambda: time.sleep(0.02))])"
    terminal = start(slow, (50, 3), options=TOLD)
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait(lambda lines: "line 1" in terminal.all_lines())
    terminal.child.send("\x12g")
    terminal.wait(lambda lines: "line 30" in terminal.all_lines())
    terminal.child.send("\x07")
    terminal.wait(lambda lines: terminal.line() == "❯" and any("first token" in line for line in terminal.all_lines()))
    lines = terminal.all_lines()
    begin, expected = lines.index("❯ go") + 1, drawn(text, 50)
    assert lines[begin : begin + len(expected)] == expected


def test_the_finished_answer_has_its_colours(start: Callable[..., Terminal]) -> None:
    terminal = start("session.enqueue(*pieces('some **strong words** and `code` here\\n\\nend', 2))", options="")
    terminal.prompted()
    terminal.say("go")
    row = next(row for row, line in enumerate(terminal.screen.display) if line.startswith("some"))
    cells = terminal.screen.buffer[row]
    assert [cells[x].bold for x in (0, 5, 16, 17, 18)] == [False, True, True, False, False]
    assert [cells[x].fg for x in (20, 22, 25, 27)] == ["default", "brightcyan", "brightcyan", "default"]


def test_lines_blocks_and_pastes_are_one_message_each(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    assert terminal.say("one\x1b\rtwo\nthree")[:5] == ["❯ one", "  two", "  three", "You said: one", "two"]
    terminal.child.send('"""\r/x\r')
    assert terminal.wait_for('in a block of lines: """')[-1].startswith("in a block of lines")
    terminal.say('y"""')
    terminal.say("\x1b[200~paste\r\nof\r\n/lines\x1b[201~")
    assert terminal.leave() == 0
    said = re.sub(r"\s", "", "".join(terminal.lines()).rpartition("history:")[2])
    assert said.startswith(r"[('user','one\ntwo\nthree')")
    assert r"('user','/x\ny')" in said
    assert r"('user','paste\nof\n/lines')" in said


def test_a_paste_of_a_megabyte_is_one_message(start: Callable[..., Terminal]) -> None:
    terminal = start("session.backend.context_size = 200_000\nsession.enqueue('ok')")
    terminal.prompted()
    terminal.child.send(b"\x1b[200~" + b"0123456789abcde\r" * 65536 + b"\x1b[201~")
    terminal.wait_for("❯ [pasted 1,048,576 characters]")
    assert terminal.say(" and more")[:2] == ["❯ [pasted 1,048,576 characters] and more", "ok"]
    assert terminal.leave() == 0
    assert "('user', 1048585)" in "\n".join(terminal.lines())


def test_ctrl_c_stops_at_any_point_and_keeps_what_came(start: Callable[..., Terminal]) -> None:
    size = len(LONG) // 3
    points = [round(size * tenth / 10) for tenth in range(1, 11)]
    stops = "".join(f"session.enqueue({LONG[:point]!r}, UNTIL_INTERRUPT, 'never')\n" for point in points)
    terminal = start(stops)
    terminal.prompted()
    for number, point in enumerate(points):
        terminal.child.send(f"go {number}\r")
        last = words(drawn(LONG[:point], 80))[-20:]
        terminal.wait(lambda lines, last=last: last in words(lines[:-1]))  # type: ignore[misc]
        for _ in range(1 + number % 3):
            terminal.child.sendintr()
        terminal.wait(lambda lines: terminal.line() == "❯" and bool(STOPPED.fullmatch(lines[-4])))
        terminal.wait(lambda lines: "answering" not in lines[-1])
        expected = drawn(LONG[:point], 80)
        lines = terminal.all_lines()
        begin = lines.index(f"❯ go {number}") + 1
        assert lines[begin : begin + len(expected)] == expected
        assert STOPPED.fullmatch(lines[begin + len(expected)])
        assert "never" not in lines
    terminal.child.send("\x04")
    assert terminal.ended() == 0


def test_what_is_sent_during_an_answer_waits_its_turn(start: Callable[..., Terminal], tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    terminal = start(f"def wait():\n    {wait}\nsession.enqueue('An answer', wait)")
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("An answer")
    terminal.child.send("one\rtwo\rand")
    lines = terminal.wait_for("2 waiting: one · Up takes the last back")
    assert lines[2:5] == ["❯ go", "An answer", "❯ and"]
    go.touch()
    lines = terminal.wait(lambda lines: "You said: two" in lines and lines[-1].startswith("Fake-1B int4 · 40"))
    assert lines[2:-1] == [
        *["❯ go", "An answer", "", "❯ one", "You said: one", "", "❯ two", "You said: two", "", "❯ and"],
    ]


def test_ctrl_c_clears_the_input_and_never_leaves(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    terminal.child.send("half a questi")
    terminal.wait_for("❯ half a questi")
    terminal.child.send("\x03\x03\x03")
    lines = terminal.wait_for("Ctrl-D or /exit to leave")
    assert lines[2:] == ["❯", "Ctrl-D or /exit to leave"]
    terminal.child.send("x")
    terminal.wait_for("Fake-1B int4")
    terminal.child.send("\x03")
    assert terminal.leave() == 0


def test_ctrl_l_clears_the_screen_but_not_the_answer_under_way(start: Callable[..., Terminal]) -> None:
    terminal = start("session.enqueue('done\\n\\nhalf ', UNTIL_INTERRUPT)")
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("half")
    terminal.child.send("typed\x0c")
    lines = terminal.wait(lambda lines: lines[:3] == ["", "half", "❯ typed"])
    assert len(lines) == 4
    terminal.child.sendintr()
    terminal.wait_for("stopped")


def test_hostile_output_cannot_drive_the_terminal(start: Callable[..., Terminal]) -> None:
    terminal = start(
        "session.enqueue('safe\\x1b', ']0;owned\\x07', '\\x1b[', '?1049h', '\\x1b[2', 'J', '\\x9b31m',"
        " '\\x1b]52;c;eA==', '\\x1b', '\\\\', ' and sound\\r', 'over\\b\\b\\b\\b\\u202e', 'end', '\\x1b[')"
    )
    terminal.prompted()
    assert terminal.say("attack \x1b[200~\x1b]0;x\x07\x1b[201~")[1:3] == ["safe and sound", "over⟨U+202E⟩end⟨U+001B⟩["]
    assert {terminal.screen.buffer[3][x].fg for x in range(14)} == {"default"}
    assert b"owned" not in terminal.written and b"eA==" not in terminal.written and b"\x1b]0;" not in terminal.written
    assert terminal.leave() == 0


def test_tab_completes_commands_and_parameters(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    terminal.child.send("/cl\t")
    terminal.wait_for("❯ /clear")
    terminal.child.send("\x03/set te\t")
    terminal.wait_for("❯ /set temperature")
    terminal.child.send("\x03/s\t")
    assert len(terminal.wait_for("show or change how answers are made and shown")) > 6
    terminal.child.send("\x03")
    terminal.wait(lambda lines: lines[2:] == ["❯", "Ctrl-D or /exit to leave"])
    assert terminal.leave() == 0


@pytest.mark.parametrize("typed", ["half a tho", "hello\r"])
def test_a_model_that_does_not_load_ends_the_chat_with_one_line(
    start: Callable[..., Terminal], typed: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    terminal = start(
        f"def load():\n    while not os.path.exists({str(go)!r}):\n        time.sleep(0.05)\n"
        "    raise ModelError('it is truncated', '', 'fetch it again')\n"
    )
    terminal.wait_for("loading Fake-1B …")
    terminal.child.send(typed)
    terminal.wait_for(f"❯ {typed.strip()}")
    go.touch()
    lines = terminal.wait_for("history:")
    assert "error: it is truncated; fetch it again" in lines
    assert terminal.ended() == 3


def test_one_may_leave_while_the_model_loads(start: Callable[..., Terminal]) -> None:
    terminal = start("def load(): threading.Event().wait()")
    terminal.wait(lambda lines: lines[:3] == [BANNER, "", "❯"] and "loading Fake-1B …" in lines[-1])
    terminal.child.send("/exit\r")
    assert terminal.ended() == 0
    assert "history:" not in "\n".join(terminal.lines())  # the process did not linger


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal_and_closes_the_session(
    start: Callable[..., Terminal], number: signal.Signals
) -> None:
    terminal = start("session.enqueue('half an answer ', UNTIL_INTERRUPT)")
    terminal.prompted()
    terminal.child.send("go\rtyped")
    terminal.wait_for("half an answer")
    terminal.child.kill(number)
    terminal.wait_for("('assistant', 'half an answer ')")
    assert "closed" in terminal.lines()
    assert terminal.ended() == 128 + number


def test_the_session_is_closed_when_the_terminal_goes_away(start: Callable[..., Terminal], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    terminal = start(
        "session.enqueue(*[step for _ in range(1000) for step in ('half ', lambda: time.sleep(0.01))])\n"
        f"FakeSession.close = lambda self: open({str(closed)!r}, 'w').close()"
    )
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("half")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), terminal.child.child_fd)
    end = time.monotonic() + 60
    while not closed.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_bug_restores_the_terminal_and_closes_the_session(start: Callable[..., Terminal]) -> None:
    terminal = start("session.enqueue('half', ZeroDivisionError('ours'))")
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("ZeroDivisionError: ours")
    assert terminal.ended() == 1
    assert "closed" in terminal.all_lines()


def test_a_wider_screen_in_the_midst_of_an_answer(start: Callable[..., Terminal]) -> None:
    text = "word and another word " * 30
    terminal = start(f"session.enqueue(*pieces({text!r}), until(100), *pieces({text!r}))", (60, 24), options=TOLD)
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait(lambda lines: words([text]) in words(lines))
    terminal.resize(100, 30)
    terminal.wait(lambda lines: STATS[10:30] in "".join(lines) and terminal.line() == "❯")
    lines = terminal.all_lines()
    assert lines[3 : 3 + len(drawn(text * 2, 100))] == drawn(text * 2, 100)


def test_a_narrower_screen_in_the_midst_of_an_answer_in_tmux(tmp_path: Path) -> None:
    """A terminal that wraps anew what it has."""
    tmux = shutil.which("tmux")
    if tmux is None:
        pytest.skip("tmux is not installed")
    text = "".join(f"word{number} " for number in range(150))
    setup = f"session.enqueue(*pieces({text[:500]!r}), until(50), *pieces({text[500:]!r}))"
    script = tmp_path / "script.py"
    options = TOLD
    script.write_text(SCRIPT.format(tests=str(HERE), root=str(HERE.parent), setup=setup, options=options))
    server = [tmux, "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def do(*command: str) -> str:
        return subprocess.run([*server, *command], check=True, capture_output=True, text=True, timeout=60).stdout

    def until(wanted: str) -> str:
        end = time.monotonic() + 60
        while wanted not in words([shown := do("capture-pane", "-p", "-S", "-")]):
            assert time.monotonic() < end, shown
            time.sleep(0.05)
        return shown

    do("new-session", "-d", "-x", "90", "-y", "24", f"{sys.executable} {script}; cat")
    try:
        until("Fake1Bint4")
        do("send-keys", "go", "Enter")
        until(words([text[:500]])[-20:])
        do("resize-window", "-x", "50", "-y", "24")
        shown = until("firsttoken")
    finally:
        do("kill-server")
    assert words([text]) in words([shown])
    assert shown.count("word5 ") == shown.count("❯ go") == 1


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_colour_where_none_is_wanted(start: Callable[..., Terminal], env: dict[str, str]) -> None:
    terminal = start(env=env, options=", stats=True")
    terminal.wait_for("❯" if "NO_COLOR" in env else ">")
    terminal.child.send("hello\r")
    terminal.wait_for(STATS)
    terminal.child.send("\x04")
    terminal.wait_for("history:")
    assert terminal.ended() == 0
    assert set(re.findall(rb"\x1b\[([0-9;]*)m", terminal.written)) <= {b"", b"0", b"1", b"2", b"0;1", b"0;2"}
