"""recall.py: answers of saved dialogs are known to a chat that keeps history, to no other, and as long as they are saved."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
from dialogs import SETTINGS, local, local_session
from hash_engine import hash_model

from llamachat.chat import glance, recall
from llamachat.chat.recall import Recall
from llamachat.chat.session import Session
from llamachat.chat.store import Archive
from llamachat.chat.tree import path
from llamachat.generation.suffixes import GAP


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recall, "PATIENCE", 0)
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "sessions")


def chat_on(archive: Archive | None) -> Session:
    return local_session(hash_model(), SETTINGS, "s", archive=archive)


def ask(chat: Session, text: str) -> list[int]:
    list(chat.ask(text))
    return list(path(chat.history.tree.active)[-1].ids or ())


def known(chat: Session) -> list[int]:
    return list(local(chat).recalled.guesses.earlier.ids)


def soon(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_another_chat_knows_what_was_answered_and_no_more_once_that_is_deleted(archive: Archive) -> None:
    chat = chat_on(archive)
    first, second = ask(chat, "one"), ask(chat, "two")
    chat.new()
    third = ask(chat, "three")
    name = chat.name
    assert name
    chat.close()
    again = chat_on(archive)
    soon(lambda: known(again) == [*third, GAP, *first, GAP, *second, GAP])
    again.delete(name)
    soon(lambda: known(again) == [*first, GAP, *second, GAP])


def test_what_was_said_here_is_forgotten_with_a_deleted_dialog(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    text = local(chat).recalled.guesses.text
    assert text.ids and chat.name
    chat.new()
    assert text.ids, "it is saved"
    chat.delete(archive.saved()[0].name)
    assert not text.ids


def test_a_chat_without_history_knows_nothing_saved_and_forgets_with_its_dialog(archive: Archive) -> None:
    ask(chat_on(archive), "one")
    chat = chat_on(None)
    guesses = local(chat).recalled.guesses
    ask(chat, "two")
    assert guesses.text.ids
    chat.new()
    assert not guesses.text.ids and not known(chat) and not local(chat).recalled.saved


def test_answers_of_another_tokenizer_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"type": "session", "version": 1, "uid": "u"}\n'
        '{"type": "model", "name": "m", "tokenizer": "theirs"}\n'
        '{"type": "piece", "id": 2, "text": "x", "ids": [1, 2]}\n'
        '{"type": "model", "name": "m", "tokenizer": "ours"}\n'
        '{"type": "piece", "id": 4, "text": "x", "ids": [3]}\n'
        '{"type": "piece", "id": 4, "text": "x", "ids": [4, 5]}\n'
        '{"type": "piece", "id": 6, "text": "x", "ids": ["6"]}\n'
        '{"type": "piece", "id": 8, "text": "x", "ids": 7}\n'
        '{"type": "piece", "id": [], "text": "x", "ids": [8]}\n'
        '{"type": "piece", "id": 10, "text": "x", "ids": [true]}\n'
        '{"type": "piece", "id"\n'
    )
    assert glance.answers(file, "ours") == [[3, 4, 5]]


def test_so_many_bytes_of_dialogs_are_read_and_so_many_tokens_kept(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chat_on(archive)
    made = ask(chat, "one")
    chat.close()
    size = sum(file.stat().st_size for file in archive.folder.glob("*.jsonl"))
    tokenizer = chat.backend.tokenizer
    assert list(archive.answers(tokenizer)) == [made]
    monkeypatch.setattr("llamachat.chat.store.READ", size - 1)
    assert list(archive.answers(tokenizer)) == []
    monkeypatch.setattr(recall, "MOST", 5)
    own = Recall()
    own.begin([[1, 2, 3], [4, 5, 6], [7]], 50)
    soon(lambda: list(own.guesses.earlier.ids) == [1, 2, 3, GAP, 4, 5, GAP])


def test_an_answer_with_ids_that_the_model_lacks_is_left_out() -> None:
    own = Recall()
    own.begin([[1, 50], [-1, 2], [], [3, 4]], 50)
    soon(lambda: list(own.guesses.earlier.ids) == [3, 4, GAP])


def test_nothing_is_read_while_something_is_answered() -> None:
    own, asked = Recall(), Event()

    def answers() -> Iterator[Sequence[int]]:
        asked.set()
        yield [1]

    with own.paused():
        own.begin(answers(), 50)
        assert asked.wait(60)
        assert not own.guesses.earlier.ids
    soon(lambda: list(own.guesses.earlier.ids) == [1, GAP])
