"""No sequence of bytes ends the chat or loses what was typed."""

import asyncio
import random
import select
from collections.abc import Callable, Iterator, Sequence

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import DummyOutput
from pty_chat import Terminal

from llamachat.ui.keyboard import PASTED, Keyboard
from llamachat.ui.prompt import Prompt

DRAFT = "a question that took some time to write"
FEW = 5
ENOUGH = 7  # an exit code that nothing else gives
BEGIN, END = "\x1b[200~", "\x1b[201~"


class Listener:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.left: list[str] = []  # what there was in the line then
        self.mistakes: list[Exception] = []
        self.prompt: Prompt

    def send(self, text: str, shown: str) -> None:
        self.sent.append(text)

    def stop(self) -> bool:
        return False

    def leave(self) -> None:
        self.left.append(self.prompt.text)

    def status(self) -> Sequence[str]:
        return ["status"]

    def hidden(self) -> None: ...

    def cleared(self) -> None: ...

    def mistake(self, error: Exception) -> None:
        self.mistakes.append(error)


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def sequences(number: int, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    return [token(dice) for _ in range(number)]


def token(dice: random.Random) -> bytes:
    digits = b";".join(b"%d" % dice.choice((0, 1, 31, 99999)) for _ in range(dice.randint(0, 3)))
    match dice.randrange(12):
        case 0 | 1:
            return b"\x1b[" + dice.choice((b"", b"<", b"?", b">")) + digits + bytes([dice.randrange(0x40, 0x7F)])
        case 2:
            return b"\x1b" + bytes([dice.randrange(256)])
        case 3:
            return b"\x1bO" + bytes([dice.randrange(0x40, 0x7F)])
        case 4:
            start = dice.choice((b"\x1b]11;rgb:", b"\x1bP1$r", b"\x1b_", b"\x1b^"))
            return start + digits + dice.choice((b"\x07", b"\x1b\\", b""))
        case 5:
            return b"\x1b[M" + dice.randbytes(dice.randint(0, 3))
        case 6:
            return dice.choice((b"\x1b[200~", *[b"\x1b[201~"] * 4)) + dice.randbytes(1)
        case 7:
            return dice.choice((b"\x1b", b"")) + b"9" * dice.choice((1, 3, 9)) + bytes([dice.randrange(32, 127)])
        case 8:
            return dice.choice(("é", "日", "👩‍👧", "\u202e", "\u0301", "/", "//", "@")).encode()
        case 9 | 10:
            return bytes([dice.randrange(32)])
    return dice.randbytes(1)


async def press(prompt: Prompt, keyboard: PipeInput, listener: Listener, all_keys: Sequence[bytes]) -> list[bytes]:
    """Type these after a draft, a few at a time and as fast as they are taken; returns those that cost it."""
    buffer, lost = prompt.app.current_buffer, []
    for start in range(0, len(all_keys), FEW):
        keys = b"".join(all_keys[start : start + FEW])
        buffer.reset(Document(DRAFT))
        buffer.save_to_undo_stack()
        sent = len(listener.sent)
        keyboard.send_bytes(keys)
        while select.select([keyboard.fileno()], [], [], 0)[0] or prompt.hidden:
            await asyncio.sleep(0)
        for _ in range(3):  # what has begun with a key
            await asyncio.sleep(0)
        if len(listener.sent) == sent and not found(prompt, buffer):
            lost.append(keys)
    return lost


def found(prompt: Prompt, buffer: Buffer) -> bool:
    """Whether the draft is there, or to be had: from the history, by yanking, going forward or undoing."""
    kept = [buffer.text, *buffer.history.get_strings()[-3:], prompt.app.clipboard.get_data().text]
    if any(DRAFT in text for text in kept):
        return True
    buffer.history_forward(10**6)
    before = ""
    while DRAFT not in buffer.text and buffer.text != before:
        before = buffer.text
        buffer.undo()
    return DRAFT in buffer.text


@pytest.mark.parametrize("vi", [False, True])
def test_ten_thousand_random_sequences(keyboard: PipeInput, vi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five thousand in each mode; editors and job control are stood in for."""
    monkeypatch.setattr("llamachat.ui.prompt.edited", lambda text: text)
    monkeypatch.setattr("os.kill", lambda *args: None)
    listener, troubles, lost = Listener(), list[object](), list[bytes]()
    prompt = listener.prompt = Prompt(listener, vi=vi)
    prompt.app.ttimeoutlen, prompt.app.timeoutlen, prompt.app.min_redraw_interval = 0, 0.01, 0.2

    async def press_all() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: troubles.append(told))
        lost.extend(await press(prompt, keyboard, listener, sequences(5000, seed=17)))
        prompt.app.exit(result=ENOUGH)

    def begin() -> None:
        prompt.app.create_background_task(press_all())

    assert prompt.app.run(pre_run=begin, set_exception_handler=False) == ENOUGH
    assert (lost, listener.mistakes, troubles) == ([], [], [])
    assert set(listener.left) <= {""}  # Ctrl-D leaves only where nothing is typed
    assert len(listener.sent) > 10


def test_bytes_that_nobody_types_end_no_chat_and_change_no_draft(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.prompted()
    terminal.child.send(DRAFT)
    terminal.wait_for(DRAFT)
    for keys in (
        b"\x1b[31m",
        b"\x1b[<0;999999999999;1M\x1b[M\xff\xff\xff\x1b[96;14;13M",
        b"\x1b[999;999R\x1b[0;0R\x1b[I\x1b[O",
        b"\x1b]11;rgb:ffff/ffff/ffff\x07\x1b]11;rgb:0/0/0\x1b\\\x1b[?62;4c\x1bP1$r0m\x1b\\",
        b"\x1b[1;2;3;4;5;6;7q\x1b[?2026;2$y\x1b[>0;276;0c",
    ):
        terminal.child.send(keys)
    terminal.child.send(b"\x1b" + b"9" * 5000 + b"\x1b[D" + b"\x05" + b"\xff\x00" + b"\x1c" + b"!")
    lines = terminal.wait_for(DRAFT + "?!")
    assert lines[2:3] == [f"❯ {DRAFT}?!"]
    terminal.child.send("\x03")
    assert terminal.leave() == 0


# ---- what is taken for keys ----


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pressed(*reads: str | float) -> list[tuple[str, str]]:
    """The keys that these reads give, with so many seconds between them."""
    keys, clock = list[tuple[str, str]](), Clock()
    reader = Keyboard(lambda press: keys.append((getattr(press.key, "value", press.key), press.data)), clock)
    for read in reads:
        if isinstance(read, float):
            reader.flush()
            clock.now += read
        else:
            reader.feed(read)
    reader.flush()
    return keys


def typed(*reads: str | float) -> str:
    """The text alone."""
    return "".join(data for key, data in pressed(*reads) if len(key) == 1 or key == Keys.BracketedPaste)


@pytest.mark.parametrize(
    "reads",
    [
        ("ab\x1b]11;rgb:ffff/ffff/ffff\x07c",),
        ("ab\x1b]11;rgb:ff", "ff/ffff/ffff\x1b", "\\c"),
        ("ab\x1b]11;rgb:ff", 0.1, "ff/ffff/ffff\x1b\\c"),
        ("ab\x1b]11;rgb:ff", 5.0, "c"),
        ("ab\x1b[?6", "2c\x1b[3;4Rc"),
        ("ab\x1b[31m\x1b[<1;2;3Mc",),
        ("ab\x1b_Gi=1;OK\x1b\\\x1bP>|term\x1b\\c",),
    ],
)
def test_what_is_no_key_is_dropped_however_it_is_cut(reads: tuple[str | float, ...]) -> None:
    assert typed(*reads) == "abc"


def test_keys_are_keys() -> None:
    assert [key for key, _ in pressed("\x1b[A\x1bOB\x1b[1;5C\x1b[[A\x1b[3~")] == [
        "up",
        "down",
        "c-right",
        "f1",
        "delete",
    ]
    assert pressed("\x1b", 0.1, "[31m") == [("escape", "\x1b"), *((key, key) for key in "[31m")]
    assert [key for key, _ in pressed("\x1b\r\x1b]x\x1b\x1b[A")] == [
        "escape",
        "c-m",
        "escape",
        "]",
        "x",
        "escape",
        "up",
    ]


@pytest.mark.parametrize(
    ("reads", "keys"),
    [
        ((f"{BEGIN}a\x1b[A\x03b{END}c",), [("<bracketed-paste>", "a\x1b[A\x03b"), ("c", "c")]),
        ((f"{BEGIN}a\x1b[20", "1", "~c"), [("<bracketed-paste>", "a"), ("c", "c")]),
        ((BEGIN + "a", 0.5, "b", 0.5, END), [("<bracketed-paste>", "ab")]),
        ((BEGIN + "half", 2.0, "\x03"), [("<bracketed-paste>", "half"), ("c-c", "\x03")]),
        ((BEGIN + "half", 2.0, "\r", "x"), [("<bracketed-paste>", "half"), ("x", "x")]),
        ((BEGIN + "half", 2.0, "the rest of it, late" + END), [("<bracketed-paste>", "halfthe rest of it, late")]),
    ],
)
def test_a_paste_ends_where_it_ends_or_where_somebody_types_again(
    reads: tuple[str | float, ...], keys: list[tuple[str, str]]
) -> None:
    assert pressed(*reads) == keys


def test_a_paste_is_bounded() -> None:
    assert len(typed(BEGIN, "x" * PASTED, "y" * PASTED, END)) == PASTED


# ---- keys that fail ----


def run(prompt: Prompt, keyboard: PipeInput, keys: str, until: Callable[[], bool]) -> None:
    prompt.app.after_render += lambda app: until() and not app.is_done and app.exit(result=0)
    keyboard.send_text(keys)
    prompt.app.run()


def test_a_key_that_fails_costs_neither_the_text_nor_the_keys_after_it(keyboard: PipeInput) -> None:
    listener = Listener()
    prompt = listener.prompt = Prompt(listener)

    def fail(event: KeyPressEvent) -> None:
        event.current_buffer.reset()
        raise ZeroDivisionError

    assert isinstance(prompt.app.key_bindings, KeyBindings)
    prompt.app.key_bindings.add("f5")(fail)
    run(prompt, keyboard, "before\x1b[15~\x1b[15~ and after", lambda: prompt.text == "before and after")
    assert [type(error) for error in listener.mistakes] == [ZeroDivisionError] * 2


def test_a_draft_comes_back_after_an_older_text_was_sent_in_its_place(keyboard: PipeInput) -> None:
    listener = Listener()
    prompt = listener.prompt = Prompt(listener)
    keys = iter(["draft", "\x1b[A", "\r"])
    prompt.app.after_render += lambda app: keyboard.send_text(next(keys, ""))
    run(prompt, keyboard, "older\r", lambda: len(listener.sent) == 2)
    assert (listener.sent, prompt.text) == (["older", "older"], "draft")
