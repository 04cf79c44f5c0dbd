"""Kills a chatting process at random moments and opens what it left: `python tools/measure_kills.py [KILLS] [SEED]`.

The child says on stdout what it has saved; nothing of that may be missing, and the dialog must go on.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dialogs import quick_session

from llamachat.chat import recording as module
from llamachat.chat.session import Session
from llamachat.chat.store import Archive
from llamachat.chat.tree import path
from llamachat.events import TurnDone

NAME = "victim"


def chat_on(folder: Path) -> Session:
    chat = quick_session(300, "Be brief.", "roll", archive=Archive(folder))
    chat.open(NAME)
    return chat


def child(folder: Path, seed: str) -> None:
    """Chat for ever, and tell after each turn what is safe: the texts of the active branch."""
    module.FLUSH_S = 0.001
    chance = random.Random(seed)
    chat = chat_on(folder)
    chat.set_parameter("max_tokens", "40")
    for number in range(10**9):
        asked = len(path(chat.history.tree.active)) // 2
        act = chance.randrange(8) if asked else 7
        if act == 0:
            chat.undo()
        events = {
            1: chat.regenerate,
            2: lambda: chat.edit(chance.randint(1, asked), f"edited {number}"),  # noqa: B023 - called at once
        }.get(act, lambda: chat.ask(f"question {number} " + "words " * chance.randint(0, 200)))()  # noqa: B023
        for event in events:
            if isinstance(event, TurnDone):
                nodes = path(chat.history.tree.active)
                sys.stdout.write(json.dumps([[node.id, node.text] for node in nodes[-6:]]) + "\n")
                sys.stdout.flush()


def kill_one(folder: Path, seed: str, after: float) -> list[list[object]] | None:
    """The last that a child said was saved before it was killed."""
    command = [sys.executable, __file__, "child", str(folder), seed]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # it chats
        time.sleep(after)
        process.kill()
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1]) if whole else None


def survive(folder: Path, kills: int, seed: int) -> int:
    """Kill so many, one after the other on one dialog; returns how many had saved something."""
    chance, saved = random.Random(seed), 0
    for number in range(kills):
        said = kill_one(folder, f"{seed} {number}", chance.random() * 0.05)
        chat = chat_on(folder)
        assert chat.name == NAME, "the dead process holds nothing"
        for id, text in said or []:
            node = chat.history.tree.node(int(str(id)))
            assert node is not None and node.text == text, f"kill {number}: message {id} is missing"
        saved += bool(said)
        list(chat.ask("still there?"))
        chat.close()
    return saved


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), sys.argv[3])
    else:
        kills, seed = (int(word) for word in [*sys.argv[1:], *("300", "0")[len(sys.argv) - 1 :]])
        with tempfile.TemporaryDirectory() as folder:
            print(f"{survive(Path(folder), kills, seed)} of {kills} killed after saving; every dialog opened whole")
