"""One dialog by script in a pseudo-terminal, over any backend: ask, stop, undo, edit, fork, look inside, kill -9, go on.

    python tools/scripted_dialog.py -- -m smollm2-135m
    python tools/scripted_dialog.py --columns 120 -- -m smollm2-135m -- --server URL -- -m NAME --tensor-parallel 2

What follows each `--` goes to `llamachat chat`. All screens are printed; what must be on them, and on disk afterwards, is
checked, and that the dialog's tree is of the same shape over each backend. Folders for dialogs and settings are temporary.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte

from llamachat.chat.history import History, mend, replay
from llamachat.chat.store import Archive
from llamachat.chat.tree import path

NAME = "scripted"
SECONDS = 180.0  # that a step may take
ANSWERING = ("/regen", "/edit", "/continue")  # commands that answer
ENDED = r"first (token|piece) |error: |stopped"  # what stands below an answer
SETTLED = 0.5  # seconds without anything new, after which a command is done
FLUSHED = 1.5  # seconds after which what came of an answer is on disk
LONG = "Tell a long story about a sailing boat, with many details."
LINE = r"error: [^;]+;\s[^;]+"  # what is lacking, and what to do


class Terminal:
    """`llamachat chat` in a terminal."""

    def __init__(self, arguments: Sequence[str], home: Path, columns: int, rows: int) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.001)
        self._stream, self._shown, self._came = pyte.ByteStream(self.screen), 0, 0.0
        folders = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("DATA", "STATE", "CONFIG")}
        env = {**os.environ, **folders, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        command = ["-m", "llamachat", "chat", *arguments]
        self.child = pexpect.spawn(sys.executable, command, dimensions=(rows, columns), env=env, timeout=None)  # type: ignore[arg-type]
        self.child.delaybeforesend = None

    def lines(self) -> list[str]:
        """The scroll-back, then the screen."""
        above = ["".join(row[at].data for at in range(self.screen.columns)) for row in self.screen.history.top]
        below = "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")
        return [*map(str.rstrip, above), *below]

    def wait(self, wanted: Callable[[], bool], what: str) -> None:
        """Read what is written until the screen is as wanted."""
        end = time.monotonic() + SECONDS
        while not wanted():
            if time.monotonic() > end or not self._read():
                raise SystemExit("\n".join([f"FAILED: {what} never came; the screen is:", *self.lines()[-40:]]))

    def _read(self) -> bool:
        try:
            self._stream.feed(self.child.read_nonblocking(65536, timeout=0.1))
            self._came = time.monotonic()
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True

    @property
    def idle(self) -> bool:
        """An empty prompt, and a status line without a spinner."""
        prompt = self.screen.display[self.screen.cursor.y].rstrip() == "❯"
        status = self.lines()[-1]
        return prompt and not re.match("[❯⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", status)

    def begun(self, text: str) -> None:
        """Type a text and send it."""
        self.child.send(text)
        self.wait(lambda: self.screen.cursor.x > 2, "the typed text")
        self.child.send("\r")
        self.wait(lambda: self._echoed(text), "the sent text")

    def fresh(self) -> str:
        """What has come above the prompt since this was last called; it is printed."""
        lines = self.lines()[:-2]
        new, self._shown = lines[self._shown :], len(lines)
        print("\n".join(["│ " + line for line in new if line]), flush=True)
        return "\n".join(new)

    def say(self, text: str) -> str:
        """Send a text, wait for the next prompt, and return what came."""
        self.begun(text) if not text.startswith("/") else self.child.send(text + "\r")
        ended = ENDED if not text.startswith("/") or text.startswith(ANSWERING) else ""
        self.wait(lambda: self.idle and self._echoed(text, ended) and self._still(), f"the end of {text!r}")
        return self.fresh()

    def _still(self) -> bool:
        """Whether nothing has come for a while."""
        return time.monotonic() - self._came > SETTLED

    def _echoed(self, text: str, ended: str = "") -> bool:
        """Whether a sent text stands above the prompt, and behind it what an answer ends with."""
        new = self.lines()[self._shown : -2]
        at = next((at for at, line in enumerate(new) if text[:30] in line), None)
        return at is not None and bool(re.search(ended, "\n".join(new[at + 1 :])))

    def status(self) -> str:
        print("│ …\n│ " + self.lines()[-1])
        return self.lines()[-1]

    def leave(self) -> int | None:
        self.child.send("\x04")
        while self._read():
            pass
        self.child.close()
        return self.child.exitstatus


def check(fine: object, what: str) -> None:
    print(f"  {'ok' if fine else 'FAILED'}: {what}", flush=True)
    if not fine:
        raise SystemExit(1)


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n== {title}")
    begin = time.monotonic()
    yield
    print(f"  {time.monotonic() - begin:.1f} s")


def first_chat(chat: Terminal) -> None:
    """Until it is killed in the middle of an answer."""
    with step("start"):
        chat.wait(lambda: chat.idle, "the prompt")
        check("llamachat" in chat.fresh(), "the banner")
        chat.status()
    with step("ask"):
        chat.say("Name a fruit.")
        check("tok/s" in (status := chat.status()) or "pieces/s" in status, "the speed is in the status line")
    with step("stop an answer with Ctrl-C"):
        chat.begun(LONG)
        chat.wait(lambda: len("".join(chat.lines()[chat._shown :])) > 250, "the answer")
        begin = time.monotonic()
        chat.child.send("\x03")
        chat.wait(lambda: chat.idle, "the end of the answer")
        stopped = time.monotonic() - begin
        chat.fresh()
        check(stopped < 2, f"it stopped after {stopped:.2f} s, and what came stays")
    with step("undo"):
        check("went back 1 question" in chat.say("/undo"), "it went back")
    with step("edit, fork, switch"):
        chat.say("/edit 1 Name a vegetable.")
        check("a new branch from here" in chat.say("/fork"), "a fork")
        chat.say("Name a colour.")
        chat.say("/undo")
        chat.say("Name a river.")
        listed = chat.say("/branches")
        check(len(re.findall("[●○] +[0-9]+", listed)) == 4, "four branches")
        check("Name a fruit." in chat.say("/switch 2"), "it switched to the first answer")
    with step("look inside"):
        if "/regen" in (heat := chat.say("/heat")):  # a server tells of answers only for which it was asked to
            chat.say("/regen")
            heat = chat.say("/heat")
        else:
            chat.say("/regen")
        check(re.search(r"\d+ tokens, perplexity \d|" + LINE, heat), "a heat map, or what is lacking")
        check(re.search(r"token 1: .*\n.*1 +█.*%|" + LINE, chat.say("/alts 1")), "alternatives, or what is lacking")
        check(re.search(r"of \d+ tokens|" + LINE, chat.say("/context")), "the context, or what is lacking")
        check(re.search(r"no adapters|" + LINE, chat.say("/lora")), "adapters, or what is lacking")
        chat.say("/show model")
    with step("kill -9 in the middle of an answer"):
        chat.begun(LONG)
        chat.wait(lambda: len("".join(chat.lines()[chat._shown :])) > 250, "the answer")
        end = time.monotonic() + FLUSHED
        chat.wait(lambda: time.monotonic() > end, "more of it")
        chat.fresh()
        os.kill(chat.child.pid, signal.SIGKILL)
        chat.child.close(force=True)


def second_chat(chat: Terminal) -> None:
    with step("--continue"):
        chat.wait(lambda: chat.idle, "the prompt")
        chat.fresh()
        going_on = chat.say("/continue")
        check(re.search(r"/s · first|" + LINE, going_on), "it goes on with the answer, or says what is lacking")
        chat.say("/regen")
        chat.say("Name a fruit once more.")
        chat.say("/branches")
        chat.status()
    with step("leave"):
        check(chat.leave() == 0, "exit code 0")


def opened(home: Path) -> History:
    lines, where = Archive(home / "DATA" / "llamachat" / "sessions").read(NAME)
    history = replay(lines, where)
    mend(history)
    return history


def shape(history: History) -> list[tuple[int, int, str, str]]:
    """Every message: its id, what it follows, who says it, and what, of a question."""
    return [
        (node.id, node.parent.id if node.parent else 0, node.role, node.text if node.role == "user" else "")
        for node in history.tree
    ]


def play(arguments: Sequence[str], columns: int, rows: int, tokens: int) -> list[tuple[int, int, str, str]]:
    """The whole dialog over one backend; the shape of its tree."""
    with tempfile.TemporaryDirectory() as folder:
        home, fixed = Path(folder), ["--temp", "0", "--seed", "1", "-n", str(tokens), "--system", "You help."]
        first_chat(Terminal([*arguments, *fixed, "--session", NAME], home, columns, rows))
        half = path(opened(home).tree.active)[-1]
        check(len(half.text) > 100 and half.reason == "interrupt", f"{len(half.text)} characters of it are on disk")
        second_chat(Terminal([*arguments, *fixed, "--continue"], home, columns, rows))
        history = opened(home)
        check(half.text in {node.text[: len(half.text)] for node in history.tree}, "what was killed is still there")
        for node in history.tree:
            said = node.text if node.role == "user" else f"({node.reason}, {len(node.text)} characters)"
            print(f"  {node.id:>3} behind {node.parent.id if node.parent else 0:>2}  {node.role:9}  {said}")
        return shape(history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=400, help="of an answer: fewer for what is slow")
    own, *backends = _split(sys.argv[1:])
    given = parser.parse_args(own)
    if not backends:
        parser.error("no backend is given: -- -m NAME")
    shapes = []
    for arguments in backends:
        print(f"\n######## {' '.join(arguments)} ({given.columns} columns)")
        shapes.append(play(arguments, given.columns, given.rows, given.tokens))
    if len(shapes) > 1:
        print()
        check(all(each == shapes[0] for each in shapes), "the tree has the same shape over each backend")


def _split(arguments: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for each in arguments:
        if each == "--":
            parts.append([])
        else:
            parts[-1].append(each)
    return parts


if __name__ == "__main__":
    main()
