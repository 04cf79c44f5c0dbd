"""exchange.py and saved_list.py: what a person sees who comes back to a dialog, at every width."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
from pty_chat import Terminal

from llamachat.events import Exchange, Found, SavedDialog
from llamachat.ui.cells import cells
from llamachat.ui.render import Screen
from llamachat.ui.saved_list import ago
from llamachat.ui.theme import load

WIDTHS = (30, 60, 80, 120)
ANSWER = "\n".join(
    ["# Moons", "", "**Io** and `Europa` are moons of the planet that we call Jupiter.", "", "- one", "- two"]
)
SAID = Exchange(1, "Name two moons of the largest planet, please, and say it in a list", (), "", ANSWER, "stop")
DIALOG = SavedDialog("name-two-moons", time.time() - 7300, 3, "Name two moons", "/models/Smol-1B.gguf")


def shown(width: int, act: Callable[[Screen], None], **options: object) -> list[str]:
    out = StringIO()
    options = {"kind": "markdown", "sign": "❯ ", **options}
    act(Screen(out, out, theme=load("dark"), width=lambda: width, **options))  # type: ignore[arg-type]
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    assert all(cells(line) <= width for line in lines), lines
    return lines


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dialog_that_goes_on_is_one_line_and_its_last_exchange(width: int) -> None:
    other = replace(SAID, question="an earlier one", answer="earlier")
    lines = shown(width, lambda screen: screen.returned(DIALOG, [other, SAID]))
    whole = "name-two-moons · 3 questions · 2 h ago · Smol-1B.gguf"
    assert lines[0] == (whole if width > 53 else "name-two-moons · 3 questions")
    assert lines[1].startswith("❯ Name two moons") and not any("earlier" in line for line in lines)
    text = " ".join(lines[1:])
    assert "**" not in text and "• one" in text and re.search(r"Io and Europa +are +moons", text)


def test_a_long_question_and_a_long_answer_are_shortened_where_a_dialog_goes_on() -> None:
    long = replace(SAID, question="q\n" * 40 + "q", answer="\n\n".join(f"line {number}" for number in range(100)))
    lines = shown(60, lambda screen: screen.returned(DIALOG, [long]))
    assert lines[12:14] == ["  … 30 more lines", "… 179 more lines; /history shows all"]
    assert (lines[-1], len(lines)) == ("line 99", 1 + 12 + 1 + 20)
    assert len(shown(60, lambda screen: screen.exchanges([long]))) == 12 + 199


def test_how_it_ended_what_was_attached_and_that_it_was_thought_about_is_told() -> None:
    said = Exchange(1, "Why?", ("notes.md (3 lines)",), "Let me *think*.", "Because", "interrupt")
    folded = ["❯ Why?", "+ notes.md (3 lines)", "thought first · 3 words", "Because", "stopped"]
    assert shown(60, lambda screen: screen.exchanges([said])) == folded
    open_ = ["❯ Why?", "+ notes.md (3 lines)", "┊ Let me *think*.", "Because", "stopped"]
    assert shown(60, lambda screen: screen.exchanges([said]), think=True) == open_
    cut = shown(60, lambda screen: screen.exchanges([replace(said, reason="length", answer="")]))
    assert cut[-1] == "cut off at the token limit"


def test_plain_it_is_the_text_as_it_is() -> None:
    lines = shown(10**9, lambda screen: screen.exchanges([SAID]), kind="plain", sign="> ")
    assert lines == ["> " + SAID.question, *ANSWER.split("\n")]


def test_what_is_looked_back_at_cannot_drive_the_terminal() -> None:
    hostile = "a\x1b]0;x\x07b\x1b[2J\u202e"
    dialog = replace(DIALOG, name=hostile, title=hostile, model=hostile)
    said = Exchange(1, hostile, (hostile,), hostile, hostile, "stop")
    for act in (
        lambda screen: screen.returned(dialog, [said]),
        lambda screen: screen.dialogs([dialog], hostile),
        lambda screen: screen.found(Found(hostile, "user", hostile), "b", True),
    ):
        assert "".join(shown(120, act, think=True)).isprintable()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_fits_and_marks_the_current_one(width: int) -> None:
    names = ("short", "name-the-largest-moon-of-jupiter", "数学" * 13, "x" * 80)
    saved = [SavedDialog(name, time.time() - 90, 12, "What of it? " * 9, "Smol-1B") for name in names]
    lines = shown(width, lambda screen: screen.dialogs(saved, "short"))
    assert len(lines) == 1 + len(names), "nothing wraps"
    assert lines[1].startswith("● short") and sum("●" in line for line in lines) == 1
    assert lines[0].split("  ")[1] == "name"
    for header, from_width in (("asked", 60), ("first question", 80), ("model", 120)):
        assert (header in lines[0]) == (width >= from_width), lines[0]
    assert width < 80 or lines[2].split()[0] == names[1], "a name of ours is whole"


def test_a_line_that_was_found_has_what_was_searched_in_it() -> None:
    found = Found("a dialog", "assistant", "word " * 30 + "NEEDLE" + " word" * 30)
    for width in WIDTHS:
        name, line = shown(width, lambda screen: screen.found(found, "needle", True))
        assert name == "a dialog" and "NEEDLE" in line
    assert shown(80, lambda screen: screen.found(Found("a", "user", "x"), "y", False)) == ["  x"]


def test_times_are_short() -> None:
    now = time.time()
    told = [ago(now - seconds, now) for seconds in (-5, 5, 65, 7300, 90_000, 200_000)]
    assert told == ["just now", "just now", "1 min ago", "2 h ago", "1 day ago", "2 days ago"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", ago(now - 40 * 86400, now))


SETUP = """
import tempfile
from pathlib import Path
from llamachat.chat.store import Archive
archive = Archive(Path(tempfile.mkdtemp()) / "sessions")
FakeSession.close = FakeSession.__mro__[1].close
session = FakeSession(("**Paris**, of course.",), archive=archive)
list(session.ask("What is the capital of France?"))
session.close()
(about,) = archive.saved()
left = session.exchanges()
session = FakeSession(archive=archive)
session.open(about.name)
"""


def test_a_chat_that_goes_on_in_a_terminal(start: Callable[..., Terminal]) -> None:
    terminal = start(SETUP, options=', theme="none", returned=(about, left)', size=(60, 30))
    lines = terminal.prompted()
    at = lines.index("❯ What is the capital of France?")
    assert lines[at - 1 : at + 2] == [
        "what-is-the-capital-of-france · 1 question · just now",
        "❯ What is the capital of France?",
        "**Paris**, of course.",
    ]
    assert terminal.say("/history 1")[-3:-1] == ["❯ What is the capital of France?", "**Paris**, of course."]
    terminal.child.send("/delete\r")
    terminal.wait_for("y or n, then Enter")
    terminal.child.send("y\r")
    terminal.wait_for("deleted what-is-the-capital-of-france; a new dialog begins")
    terminal.prompted()
    assert terminal.say("/sessions")[-3:-1] == ["no saved dialogs", "this dialog is saved with its next question"]
    assert terminal.leave() == 0
