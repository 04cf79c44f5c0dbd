"""The chat in a real pseudo-terminal, its screen read back through a terminal emulator."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

HERE = Path(__file__).parent
SCRIPT = """
import sys, threading
sys.path[:0] = [{tests!r}, {root!r}]
from fakes import UNTIL_INTERRUPT, FakeSession
from llamachat.errors import ModelError
from llamachat.events import Evicted
from llamachat.ui.app import run
session = FakeSession()
def load():
    return session
{setup}
code = run(load, model="Fake-1B")
print("history:", session.history)
sys.exit(code)
"""
SIZES = [(80, 24), (120, 40)]
STATS = "2 tokens · 40.0 tok/s · first token 0.25 s · context <1% of 8192"
BANNER = "llamachat · Fake-1B · /help for commands, Ctrl-D to leave"
READY = "Fake-1B · context"


class Terminal:
    """A chat with FakeSession in a terminal of the given size; `setup` is code that scripts it."""

    def __init__(self, setup: str = "", size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None) -> None:
        columns, rows = size
        self.screen = pyte.Screen(columns, rows)
        self._modes = set(self.screen.mode)
        self.written = b""
        script = SCRIPT.format(tests=str(HERE), root=str(HERE.parent), setup=setup)
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", script],
            dimensions=(rows, columns),
            env={"PATH": "", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", **(env or {})},
        )
        self.screen.write_process_input = self.child.send  # answers to "where is the cursor?"
        self._stream = pyte.ByteStream(self.screen)

    def lines(self) -> list[str]:
        """The screen as text, without the blank end of lines and of itself."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def wait(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """Read what is written until the screen is as wanted."""
        end = time.monotonic() + 20
        while not wanted(self.lines()):
            assert time.monotonic() < end, "\n".join(["never came; the screen is:", *self.lines()])
            try:
                written = self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert wanted(self.lines()), "\n".join(["ended early; the screen is:", *self.lines()])
                break
            self.written += written
            self._stream.feed(written)
        return self.lines()

    def wait_for(self, text: str) -> list[str]:
        return self.wait(lambda lines: text in "\n".join(lines))

    def prompted(self) -> list[str]:
        """Wait for an empty prompt with a status line below."""
        return self.wait(lambda lines: "Fake-1B ·" in lines[-1] and self.line() == "❯")

    def line(self) -> str:
        """Where the cursor is."""
        return self.screen.display[self.screen.cursor.y].rstrip()

    def say(self, text: str) -> list[str]:
        """Type a text, send it, wait for the next prompt; returns the lines in between."""
        before = self.screen.cursor.y
        self.child.send(text)
        self.wait(lambda lines: self.screen.cursor.x > 2)
        self.child.send("\r")
        self.wait(lambda lines: self.line() == "❯" and self.screen.cursor.y > before)
        return self.prompted()[before + 1 : self.screen.cursor.y]

    def leave(self) -> int:
        """Ctrl-D; returns the exit code."""
        self.child.send("\x04")
        self.wait_for("history:")
        return self.ended()

    def ended(self) -> int:
        self.child.expect(pexpect.EOF, timeout=20)
        self.child.close()
        assert self.child.signalstatus is None
        return self.child.exitstatus

    def unharmed(self) -> bool:
        return (self.screen.title, self.screen.icon_name) == ("", "") and self.screen.mode == self._modes


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def begin(*args: object, **kwargs: object) -> Terminal:
        started.append(Terminal(*args, **kwargs))
        return started[-1]

    yield begin
    for terminal in started:
        terminal.child.close(force=True)


@pytest.mark.parametrize("size", SIZES)
def test_a_dialog_looks_tidy(start: Callable[..., Terminal], size: tuple[int, int]) -> None:
    terminal = start("session.enqueue('First line.\\n', 'Second.')", size)
    first = terminal.prompted()
    assert (first[:3], len(first)) == ([BANNER, "", "❯"], size[1])
    assert first[-1] == "Fake-1B · context ░░░░░░░░░░ 0% of 8192"
    terminal.say("hello")
    assert terminal.say("/nope") == [
        "error: unknown command /nope; /help lists the commands, //nope sends it as text"[: size[0]],
        "",
    ]
    lines = terminal.prompted()
    assert lines[:9] == [BANNER, "", "❯ hello", "First line.", "Second.", STATS, "", "❯ /nope", lines[8]]
    assert lines[-1] == "Fake-1B · 40.0 tok/s · context █░░░░░░░░░ <1% of 8192"
    assert terminal.leave() == 0


def test_lines_blocks_and_pastes_are_one_message_each(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    assert terminal.say("one\x1b\rtwo\nthree")[:4] == ["  two", "  three", "You said: one", "two"]
    terminal.child.send('"""\r/x\r')
    assert terminal.wait_for('in a block of lines: """')[-1].startswith("in a block of lines")
    terminal.say('y"""')
    terminal.say("\x1b[200~paste\r\nof\r\n/lines\x1b[201~")
    assert terminal.leave() == 0
    said = re.sub(r"\s", "", "".join(terminal.lines()).rpartition("history:")[2])
    assert said.startswith(r"[('user','one\ntwo\nthree')")
    assert r"('user','/x\ny')" in said
    assert r"('user','paste\nof\n/lines')" in said


def test_ctrl_c_stops_an_answer_and_keeps_what_came(start: Callable[..., Terminal]) -> None:
    terminal = start("session.enqueue('Half an answer', UNTIL_INTERRUPT, ' never')")
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("Half an answer")
    for _ in range(5):
        terminal.child.sendintr()
    lines = terminal.wait_for("stopped ·")
    assert lines[2:5] == ["❯ go", "Half an answer", "stopped · 1 token · first token 0.25 s · context <1% of 8192"]
    assert terminal.leave() == 0
    assert "('assistant', 'Half an answer')" in "\n".join(terminal.lines())


def test_what_is_typed_during_an_answer_waits_for_the_prompt(start: Callable[..., Terminal]) -> None:
    terminal = start("session.enqueue('Half an answer', UNTIL_INTERRUPT)")
    terminal.prompted()
    terminal.child.send("go\r")
    terminal.wait_for("Half an answer")
    terminal.child.send("typed ahead\rand")
    terminal.child.sendintr()
    lines = terminal.wait(lambda lines: terminal.line() == "❯ and")
    assert [line for line in lines[:11] if line != STATS] == [
        *[BANNER, "", "❯ go", "Half an answer", "stopped · 1 token · first token 0.25 s · context <1% of 8192", ""],
        *["❯ typed ahead", "You said: typed ahead", "", "❯ and"],
    ]


def test_ctrl_c_clears_the_input_and_never_leaves(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    terminal.child.send("half a questi")
    terminal.wait_for("❯ half a questi")
    terminal.child.send("\x03\x03\x03")
    lines = terminal.wait_for("Ctrl-D or /exit to leave")
    assert (lines[2], lines[-1]) == ("❯", "Ctrl-D or /exit to leave")
    terminal.child.send("x")
    terminal.wait_for(READY)
    terminal.child.send("\x03")
    assert terminal.leave() == 0


def test_hostile_output_cannot_drive_the_terminal(start: Callable[..., Terminal]) -> None:
    terminal = start(
        "session.enqueue('safe\\x1b', ']0;owned\\x07', '\\x1b[', '?1049h', '\\x1b[2', 'J', '\\x9b31m',"
        " '\\x1b]52;c;eA==', '\\x1b', '\\\\', ' and sound\\r', 'over\\b\\b\\b\\b\\u202e', 'end', '\\x1b[')"
    )
    terminal.prompted()
    assert terminal.say("attack")[:2] == ["safe and sound", "over⟨U+202E⟩end⟨U+001B⟩["]
    assert {terminal.screen.buffer[3][x].fg for x in range(14)} == {"default"}
    assert b"owned" not in terminal.written and b"eA==" not in terminal.written
    assert terminal.leave() == 0
    assert terminal.unharmed()


def test_tab_completes_commands_and_parameters(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    terminal.child.send("/cl\t")
    terminal.wait_for("❯ /clear")
    terminal.child.send("\x03/set te\t")
    terminal.wait_for("❯ /set temperature")
    terminal.child.send("\x03/s\t")
    menu = terminal.wait_for("show or change how answers are sampled")
    assert [line.split()[0] for line in menu[3:6]] == ["/system", "/set", "/stats"]
    terminal.child.send("\x03")
    assert terminal.leave() == 0


@pytest.mark.parametrize("typed", ["half a tho", "hello\r"])
def test_a_model_that_does_not_load_ends_the_chat_with_one_line(start: Callable[..., Terminal], typed: str) -> None:
    terminal = start(
        "go = threading.Event()\n"
        "def load():\n    go.wait()\n    raise ModelError('it is truncated', '', 'fetch it again')\n"
        "threading.Timer(0.5, go.set).start()"
    )
    terminal.wait_for("loading Fake-1B …")
    terminal.child.send(typed)
    lines = terminal.wait_for("history:")
    assert lines[2:4] == ["❯ " + typed.strip(), "error: it is truncated; fetch it again"]
    assert terminal.ended() == 3


def test_one_may_leave_while_the_model_loads(start: Callable[..., Terminal]) -> None:
    terminal = start("def load(): threading.Event().wait()")
    lines = terminal.wait_for("loading Fake-1B …")
    assert lines[:3] == [BANNER, "", "❯"]
    terminal.child.send("/exit\r")
    assert terminal.ended() == 0
    assert b"history:" not in terminal.child.before  # the process did not linger


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_colour_where_none_is_wanted(start: Callable[..., Terminal], env: dict[str, str]) -> None:
    terminal = start(env=env)
    terminal.wait_for("❯")
    terminal.child.send("hello\r")
    terminal.wait_for(STATS)
    terminal.child.send("\x04")
    terminal.wait_for("history:")
    assert terminal.ended() == 0
    assert set(re.findall(rb"\x1b\[([0-9;]*)m", terminal.written)) <= {b"", b"0", b"1", b"2", b"0;1", b"0;2"}
