"""What the live terminal costs, on a pty: bytes written per byte of answer, key press to echo, the UI's share of time.

    python tools/measure_terminal.py             # a scripted answer at 60 tokens a second
    python tools/measure_terminal.py --real      # the default model, greedy

Figures depend on the machine and on what else it does, so no test asserts them.
"""

import argparse
import os
import re
import statistics
import sys
import threading
import time
from pathlib import Path

import pexpect

HERE = Path(__file__).parents[1] / "tests"
KEYS = "ąćęłńóśźżďťňřůž"  # letters that no answer has
QUESTION = "Explain in detail how a sailing boat can sail against the wind."
SCRIPTED = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from fakes import FakeSession
from llamachat.ui.app import run
text = ("A **paragraph** of an answer that goes on for a while, with `code` and some *emphasis* in it. " * 3 + "\\n\\n"
        "- an item of a list\\n- another item, which is longer\\n\\n```python\\ndef f(x):\\n    return x + 1\\n```\\n\\n") * 4
def steps():
    for start in range(0, len(text), 4):
        yield text[start:start + 4]
        yield lambda: time.sleep(1 / 60)
session = FakeSession(*(steps() for _ in range({runs})))
sys.exit(run(lambda: session, model="Fake-1B"))
"""


class Chat:
    """A child in a pty, whose output a thread collects with the time of each piece."""

    def __init__(self, command: str, arguments: list[str], columns: int, rows: int) -> None:
        env = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        self.child = pexpect.spawn(command, arguments, dimensions=(rows, columns), env=env, timeout=None)
        self.child.delaybeforesend = None
        self.pieces: list[tuple[float, bytes]] = []
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        while True:
            try:
                piece = os.read(self.child.child_fd, 65536)
            except OSError:
                return
            self.pieces.append((time.perf_counter(), piece))

    def wait(self, wanted: str, start: int = 0, seconds: float = 120) -> float:
        """When the wanted text had come in a piece from `start` on."""
        end = time.perf_counter() + seconds
        seen, at = b"", start
        while time.perf_counter() < end:
            while at < len(self.pieces):
                moment, piece = self.pieces[at]
                seen, at = seen[-100:] + piece, at + 1
                if wanted.encode() in seen:
                    return moment
            time.sleep(0.0005)
        raise TimeoutError(wanted)

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time: of the UI's thread, of the whole process."""
        ticks = os.sysconf("SC_CLK_TCK")
        pid = self.child.pid
        stats = (Path(f"/proc/{pid}/task/{pid}/stat"), Path(f"/proc/{pid}/stat"))
        spent = [sum(map(int, path.read_text().rpartition(")")[2].split()[11:13])) / ticks for path in stats]
        return spent[0], spent[1]


def measure(chat: Chat, typing: bool) -> int:
    """Prints what it cost; returns the bytes written."""
    start, cpu, begin = len(chat.pieces), chat.cpu(), time.perf_counter()
    chat.child.send(QUESTION + "\r")
    time.sleep(0.7)
    echoes: list[float] = []
    for number in range(40 if typing else 0):
        time.sleep(0.07)
        if b"first token" in b"".join(piece for _, piece in chat.pieces[start:]):
            break
        before, key = len(chat.pieces), KEYS[number % len(KEYS)]
        pressed = time.perf_counter()
        chat.child.send(key)
        echoes.append(chat.wait(key, before, 5) - pressed)
    chat.wait("first token", start)
    time.sleep(0.3)
    wall, after = time.perf_counter() - begin, chat.cpu()
    written = b"".join(piece for _, piece in chat.pieces[start:])
    report(written, echoes, wall, after[0] - cpu[0], after[1] - cpu[1])
    chat.child.send("\x15")
    return len(written)


def report(written: bytes, echoes: list[float], wall: float, ui: float, process: float) -> None:
    tokens = re.search(rb"(\d+) tokens", written)
    print(f"{tokens[1].decode() if tokens else '?'} tokens in {wall:.1f} s, {len(written):,} bytes written")
    print(f"  the UI's thread took {ui:.2f} s: {100 * ui / wall:.1f}% of one core, {100 * ui / process:.1f}% of all")
    if echoes:
        worst = sorted(echoes)[int(len(echoes) * 0.95)] * 1000
        print(f"  echo of {len(echoes)} keys: median {statistics.median(echoes) * 1000:.1f} ms, p95 {worst:.1f} ms")


def lengths(chat: Chat, out: Path) -> list[int]:
    """Bytes of the answers."""
    chat.child.send(f"/export {out}\r")
    chat.wait("written to")
    answers = re.split(r"\n## Model\n\n|\*\*assistant\*\*: ", out.read_text())[1:]
    out.unlink()
    return [len(re.split(r"\n## You\n|\*\*user\*\*", answer)[0].strip().encode()) for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--runs", type=int, default=2)
    given = parser.parse_args()
    if given.real:
        arguments = ["-m", "llamachat", "chat", "--no-history", "--temp", "0", "-n", "300"]
    else:
        arguments = ["-c", SCRIPTED.format(tests=str(HERE), root=str(HERE.parent), runs=2 * given.runs)]
    chat = Chat(sys.executable, arguments, given.columns, given.rows)
    chat.wait("0% of")
    written = []
    for run in range(2 * given.runs):
        print("typing during the answer" if run % 2 else "no typing")
        written.append(measure(chat, typing=bool(run % 2)))
    for run, (bytes, size) in enumerate(
        zip(written, lengths(chat, Path(f"/tmp/measure-{os.getpid()}.md")), strict=True)
    ):
        print(f"answer {run + 1}: {size:,} bytes, {bytes / size:.2f} times that written")
    chat.child.send("/exit\r")
    chat.child.wait()


if __name__ == "__main__":
    main()
