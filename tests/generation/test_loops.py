"""loops.py: what says the same for ever ends, wherever it is answered; what only looks like it does not."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialogs import local_session
from hash_engine import HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from servers import TellingServer, remote

from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.errors import UsageError
from llamachat.events import Event, TextDelta, TurnDone
from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.generation.loops import PERIOD, REPEATED, TIMES, Loops
from llamachat.generation.until_loop import until_loop
from llamachat.remote.asking import Ended, Piece, Question

GREEDY = SamplingParams(temperature=0)
ROOT = Path(__file__).parents[2]
ENDLESS = 5 + REPEATED  # tokens of an answer that repeats five from its first one on


def found_at(symbols: Sequence[int]) -> int | None:
    """After how many symbols."""
    loops = Loops()
    return next((count for count, symbol in enumerate(symbols, 1) if loops.add(symbol)), None)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 900), st.integers(1, PERIOD))
def test_a_span_that_comes_again_and_again_is_found_once_it_has_come_often_enough(before: int, period: int) -> None:
    needed = period + max(REPEATED, TIMES * period)
    text = [*range(10_000, 10_000 + before), *[*range(period)] * (needed // period + 1)]
    assert found_at(text) == before + needed
    once_other = [*text[: before + needed - 2], -5, *text[before + needed - 1 :]]
    assert found_at(once_other[: before + needed + period]) is None


def words(text: str) -> list[int]:
    """About as many symbols as a tokenizer makes of it."""
    names: dict[str, int] = {}
    return [names.setdefault(word, len(names)) for word in re.findall(r" ?\w{1,6}|\s+|[^\w\s]", text)]


VERSE = "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\nLife is but a dream\n\n"
HONEST = {
    "numbers": ", ".join(map(str, range(1, 1500))),
    "table": "| a | b |\n|---|---|\n" + "".join(f"| {n} | {n % 3} |\n" for n in range(300)),
    "wide table": "|" + "---|" * 60 + "\n" + ("|" + " |" * 60 + "\n") * 2,
    "zeros": json.dumps([0] * 150),
    "matrix": json.dumps(np.eye(16, dtype=int).tolist()),
    "code": "".join(f"    check(values[{n}])\n    print()\n" for n in range(200)),
    "art": "+--------+\n" + "|        |\n" * 40 + "+--------+\n",
    "rounds": VERSE * 6,
    "song": "".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down.\n" for n in range(99, 0, -1)
    ),
    "rule": "=" * 400,
}
FILES = [ROOT / "README.md", ROOT / "models.toml", *sorted((ROOT / "llamachat/ui").glob("*.py"))[:4], ROOT / "LICENSE"]


@pytest.mark.parametrize("text", [*HONEST.values(), *FILES], ids=[*HONEST, *(file.name for file in FILES)])
def test_texts_that_people_mean_are_no_loops(text: str | Path) -> None:
    whole = text if isinstance(text, str) else text.read_text()[:40_000]
    assert found_at(words(whole)) is None


# ---- answers ----


@pytest.fixture(autouse=True)
def circling(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that says abcdeabcde…"""

    def row(self: HashEngine, tokens: Sequence[int]) -> NDArray[np.float32]:
        logits = np.zeros(self.config.vocab_size, np.float32)
        logits[97 + (tokens[-1] - 96) % 5 if 97 <= tokens[-1] < 102 else 97] = 1
        return logits

    monkeypatch.setattr(HashEngine, "row", row)


def chat(allow_loops: bool = False) -> Session:
    return local_session(hash_model(4096), Settings(GREEDY, 600, allow_loops=allow_loops))


def finish(events: Iterator[Event]) -> tuple[str, TurnDone]:
    *deltas, done = events
    assert isinstance(done, TurnDone)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), done


def test_an_answer_in_a_chat_ends_says_so_and_goes_on_for_as_long_again() -> None:
    session = chat()
    text, done = finish(session.ask("hi"))
    assert (text, done.reason, done.exact) == ("abcde" * (ENDLESS // 5), "repeat", True)
    more, done = finish(session.resume())
    assert (more, done.reason) == (text, "repeat")
    assert session.turns()[-1].text == text + more
    session.set_parameter("allow_loops", "on")
    assert finish(session.resume())[1].reason == "length"


def test_it_is_allowed_where_that_is_wanted() -> None:
    assert finish(chat(allow_loops=True).ask("hi"))[1].reason == "length"
    assert chat(allow_loops=True).parameters()["allow_loops"] is True
    with pytest.raises(UsageError, match="allow_loops cannot be 'perhaps'"):
        chat().set_parameter("allow_loops", "perhaps")


@pytest.mark.parametrize("allowed", [False, True])
def test_the_json_says_that_it_repeated_itself_alone_and_in_a_batch(allowed: bool) -> None:
    answering = AnswerSettings(GREEDY, frozenset({257, 258}), max_tokens=600, allow_loops=allowed)
    run = Completer(hash_model(2048), answering, None, True, False)
    alone = run.result("hi")
    ended = ("length", 600) if allowed else ("repeat", ENDLESS)
    assert (alone["finish_reason"], alone["usage"]["completion_tokens"]) == ended
    batch = run.answers(2, lambda idle: iter([run.request("hi", None)] * 2))
    assert [(reply.reason, len(reply.ids)) for reply, _ in batch] == [ended] * 2  # type: ignore[misc]


# ---- a server's ----


class Circling:
    """A server that says abcde… in pieces of so many characters, until it is told to stop."""

    def __init__(self, size: int, echo: str = "") -> None:
        self._text, self._size, self._echo = "abcde" * 4000, size, echo

    def ask(self, question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        if self._echo:
            yield Piece(self._echo)
        for start in range(0, len(self._text), self._size):
            if interrupted():
                yield Ended("interrupt", None, 0.1, 0.2)
                return
            yield Piece(self._text[start : start + self._size])
        yield Ended("length", None, 0.1, 0.2)


def heard(server: Any, question: Question, allowed: bool = False) -> tuple[int, str]:
    """Characters that came, and how it ended."""
    *pieces, ended = until_loop(server, question, lambda: False, allowed)
    assert isinstance(ended, Ended)
    return sum(len(piece.text) for piece in pieces), ended.reason


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_servers_answer_ends_too_in_whatever_pieces_it_comes(size: int) -> None:
    characters, reason = heard(Circling(size), Question(messages=[Message("user", "hi")]))
    assert reason == "repeat" and 0 <= characters - (4 * REPEATED + 5) < size
    assert heard(Circling(size), Question(), allowed=True) == (20_000, "length")


def test_a_prompt_that_is_repeated_before_the_answer_is_no_part_of_it() -> None:
    prompt = "abcde" * 1000
    question = Question(text=prompt, echo=True, top_logprobs=1)
    assert heard(Circling(1, prompt), question) == (len(prompt) + 4 * REPEATED + 5, "repeat")


def test_the_dialog_with_a_server_says_so() -> None:
    server = TellingServer(*[[Piece("abcde" * 10)] * 400])
    session = Session(remote(server, "one"), Settings(GREEDY))
    text, done = finish(session.ask("hi"))
    assert (done.reason, done.exact) == ("repeat", False)
    assert len(text) < 2200 and session.turns()[-1].text == text
