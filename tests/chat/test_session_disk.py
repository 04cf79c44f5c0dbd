"""session.py with keeper.py: what was said is on disk as it is said, and goes on from there."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from dialogs import SETTINGS, local, local_session
from hash_engine import HashEngine, hash_model
from measure_kills import survive

from llamachat.chat.history import History, mend, message, replay
from llamachat.chat.keeper import Keeper
from llamachat.chat.session import Session
from llamachat.chat.store import Archive
from llamachat.core.cache import Integers
from llamachat.errors import FormatError, UsageError
from llamachat.events import TextDelta, TurnDone
from llamachat.generation import snapshot
from llamachat.models.load import LoadedModel


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "sessions")


def model(slots: int = 512) -> LoadedModel:
    return hash_model(slots)


def chat_on(archive: Archive | None, slots: int = 512, **options: object) -> Session:
    return local_session(model(slots), SETTINGS, "s", archive=archive, **options)  # type: ignore[arg-type]


def ask(chat: Session, text: str) -> TurnDone:
    done = list(chat.ask(text))[-1]
    assert isinstance(done, TurnDone)
    return done


def said(chat: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in chat.turns()]


def test_nothing_is_written_before_the_first_question(archive: Archive) -> None:
    chat = chat_on(archive)
    chat.set_system("other")
    chat.set_parameter("temperature", "1")
    chat.begin([("user", "a"), ("assistant", "b")])
    chat.close()
    chat.new()
    chat.new()
    chat.save("a name")
    chat.close()
    assert not archive.folder.exists() and chat.name == "a name"


def test_without_history_there_is_no_trace(archive: Archive, tmp_path: Path) -> None:
    chat = chat_on(None, snapshots=False)
    ask(chat, "hello")
    chat.close()
    assert chat.name is None and list(tmp_path.iterdir()) == []
    for act in (lambda: chat.save("x"), lambda: chat.load("x"), chat.saved):
        with pytest.raises(UsageError, match="no history"):
            act()


def test_an_opened_dialog_is_the_one_that_was_left(archive: Archive) -> None:
    chat = chat_on(archive)
    chat.begin([("user", "a"), ("assistant", "b")])
    ask(chat, "one")
    left = chat.fork()
    ask(chat, "two")
    chat.set_system("another")
    chat.set_parameter("top_k", "7")
    chat.switch(left)
    ask(chat, "three")
    list(chat.regenerate())
    list(chat.resume())
    chat.save("mine")
    chat.close()
    again = local_session(model(), replace(SETTINGS, max_tokens=3), archive=archive)
    again.load("mine")
    assert said(again) == said(chat) and again.branches() == chat.branches() and again.system == "another"
    assert again.parameters() == chat.parameters() and again.name == "mine"
    assert [n.ids for n in again.history.tree] == [n.ids for n in chat.history.tree]
    assert ask(again, "four").reason in ("stop", "length")


def test_a_file_holds_an_answer_while_it_streams(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.chat.recording.FLUSH_S", 0.0)
    chat = chat_on(archive)
    events = chat.ask("hello")
    text = "".join(event.text for event in (next(events) for _ in range(4)) if isinstance(event, TextDelta))
    assert chat.name
    copy = chat_on(archive)
    copy.load(chat.name)
    assert said(copy)[-1] == ("assistant", text) and copy.name == f"{chat.name}-copy"
    assert any("copy" in notice for notice in copy.notices())
    list(events)
    list(copy.resume())
    ids, whole = (each.history.tree.active.ids or () for each in (chat, copy))
    assert whole[: len(ids)] == ids and len(whole) > len(ids)


def test_a_copy_in_which_nothing_was_asked_leaves_nothing_behind(archive: Archive) -> None:
    first = chat_on(archive)
    ask(first, "one")
    assert first.name == "one"
    for _ in range(2):
        second = chat_on(archive, snapshots=True)
        second.load("one")
        second.set_parameter("top_k", "7")
        second.set_system("other")
        assert second.name == "one-copy" and said(second)[1:] == said(first)[1:]
        second.close()
    assert [each.name for each in archive.saved()] == ["one"]
    second.load("one")
    ask(second, "two")
    second.close()
    again = chat_on(archive)
    again.load("one-copy")
    assert said(again) == said(second) and again.history.uid != first.history.uid


def test_going_on_with_a_stopped_answer_makes_the_copy_a_file_at_once(archive: Archive) -> None:
    first = chat_on(archive)
    ask(first, "one")
    copy = chat_on(archive)
    copy.load("one")
    events = copy.resume()
    next(events)
    assert archive.exists("one-copy")
    list(events)


def test_a_new_dialog_has_a_file_of_its_own_and_the_manner_of_the_last(archive: Archive) -> None:
    chat = chat_on(archive, snapshots=True)
    chat.set_parameter("top_k", "7")
    ask(chat, "one")
    old, used = chat.history.uid, chat.context_used
    chat.new()
    assert (chat.exchanges(), chat.name, chat.last_stats) == ([], None, None) and chat.context_used < used
    ask(chat, "one")
    chat.close()
    assert {each.name: each.turns for each in archive.saved()} == {"one": 1, "one-2": 1}
    assert chat.history.uid != old and chat.parameters()["top_k"] == 7 and chat.system == "s"
    again = chat_on(archive, snapshots=True)
    again.load("one")
    assert again.history.uid == old and again.context_used > 0, "and its keys and values are kept"


def test_a_deleted_dialog_goes_with_its_keys_and_values(archive: Archive) -> None:
    left(archive)
    chat = chat_on(archive, snapshots=True)
    ask(chat, "here")
    assert chat.delete("a").snapshots > 0 and snapshot.store().entries() == [] and not archive.exists("a")
    for name in ("a", "../a"):
        with pytest.raises(UsageError):
            chat.delete(name)
    assert chat.name == "here"
    chat.delete("here")
    assert chat.exchanges() == [] and chat.name is None and archive.saved() == []
    with pytest.raises(UsageError, match="no dialog called here"):
        chat.delete("here")
    ask(chat, "here")
    chat.close()
    assert [each.name for each in archive.saved()] == ["here"] and len(snapshot.store().entries()) == 1


def test_what_another_chat_has_open_is_not_deleted(archive: Archive) -> None:
    first, second = chat_on(archive), chat_on(archive)
    ask(first, "one")
    second.load("one")
    with pytest.raises(UsageError, match="another chat has one open; nothing was deleted"):
        second.delete("one")
    assert archive.exists("one")


def test_exchanges_are_what_was_said_and_how_it_ended(archive: Archive) -> None:
    chat = chat_on(archive)
    chat.begin([("user", "Why?"), ("assistant", "<think>hm</think>So.")])
    ask(chat, "one")
    first, second = chat.exchanges()
    assert (first.number, first.question, first.thought, first.answer, first.reason) == (1, "Why?", "hm", "So.", "stop")
    assert (second.number, second.question, second.reason) == (2, "one", "length")


def test_two_chats_on_one_dialog_do_not_mix(archive: Archive) -> None:
    first = chat_on(archive)
    ask(first, "one")
    assert first.name
    second = chat_on(archive)
    second.load(first.name)
    ask(first, "only in the first")
    ask(second, "only in the second")
    first.close()
    second.close()
    again = chat_on(archive)
    again.load(first.name)
    assert said(again) == said(first)


def test_a_dialog_opened_in_one_thread_is_let_go_in_another(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    first = chat.name
    assert first
    chat.close()
    opener = Thread(target=chat.load, args=(first,))
    opener.start()
    opener.join()
    chat.close()
    lock = archive.hold(first)
    assert lock
    lock.release()


def test_a_name_that_another_chat_took_meanwhile_is_not_shared(archive: Archive) -> None:
    first, second = chat_on(archive), chat_on(archive)
    for chat in (first, second):
        chat.open("mine")
        chat.notices()
    for chat in (first, second):
        ask(chat, "one")
    assert (first.name, second.name) == ("mine", "mine-2")
    assert first.notices() == [] and len(second.notices()) == 1


def test_looking_for_a_dialog_that_is_not_there_makes_nothing(archive: Archive) -> None:
    with pytest.raises(UsageError):
        chat_on(archive).load("missing")
    assert not archive.folder.exists()


def test_a_damaged_file_is_an_error_and_stays_and_so_does_the_dialog(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    chat.save("damaged")
    chat.close()
    path = archive.folder / "damaged.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"{oops}\n", *lines[5:], b"torn"]))
    before = path.read_bytes()
    other = chat_on(archive)
    ask(other, "here")
    held = said(other)
    with pytest.raises(FormatError, match=r"damaged\.jsonl, line 6"):
        other.load("damaged")
    assert path.read_bytes() == before and said(other) == held
    ask(other, "still")
    with pytest.raises(UsageError, match="no dialog called"):
        other.load("missing")
    assert archive.hold("damaged"), "and it is not held"


def shape(history: History) -> list[object]:
    """What a dialog is, but for the parameters of answers that were never given."""
    nodes = [(node.id, node.role, node.text, node.ids, node.reason) for node in history.tree]
    return [nodes, history.tree.active.id, history.system, history.model, history.parameters]


def test_a_file_cut_anywhere_opens_with_every_whole_record_and_goes_on(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "zwei äöü 三\n")
    chat.set_parameter("temperature", "0.5")
    chat.save("cut")
    chat.close()
    path = archive.folder / "cut.jsonl"
    data, told = path.read_bytes(), list[str]()
    keeper = Keeper(archive, told.append)
    ends = [at for at, byte in enumerate(data) if byte == 10]
    near = {at + off for at in ends for off in range(-12, 13)}  # and any third byte elsewhere
    for size in (size for size in range(len(data)) if size % 3 == 0 or size in near):
        path.write_bytes(data[:size])
        whole = data[: size + 1].count(b"\n")  # a newline that alone is missing is no loss
        expected = replay(list(enumerate(data.splitlines(keepends=True)[:whole], 1)), "")
        mend(expected)
        opened = keeper.fetch("cut")
        assert shape(expected) == shape(opened.history) and (opened.history.uid == expected.uid or not whole)
        torn = data[size : size + 1] != b"\n" and data[:size][-1:] not in (b"", b"\n")
        assert bool(told) == torn and all("torn off in the middle of its last record" in line for line in told)
        told.clear()
        if (
            size % 5 and b"\n" not in data[size - 2 : size + 2]
        ):  # it goes on from every fifth, and from all near a record's end
            opened.journal.close()
            continue
        last = opened.history.tree.active
        opened.history.apply({"type": "message", "id": 10**6, "parent": last.id, "role": "user", "text": "on"})
        opened.journal.append([message(opened.history.tree.active)])
        opened.journal.close()
        again = keeper.fetch("cut")
        again.journal.close()
        mend(opened.history)
        assert shape(again.history) == shape(opened.history) and again.history.uid == opened.history.uid and not told


@pytest.mark.parametrize(("left", "torn"), [(1, 1), (-1, 0), (-9, 65)])
def test_a_chat_goes_on_with_a_dialog_that_was_torn(archive: Archive, left: int, torn: int) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    chat.save("torn")
    chat.close()
    path = archive.folder / "torn.jsonl"
    path.write_bytes(path.read_bytes()[:left])
    other = chat_on(archive)
    other.load("torn")
    assert [line for line in other.notices() if "torn off" in line] == [
        f"the dialog torn was torn off in the middle of its last record; the {torn} bytes of that are left out, all else is here"
    ] * bool(torn)
    ask(other, "two")
    held = said(other)
    other.close()
    third = chat_on(archive)
    third.load("torn")
    assert said(third) == held and not any("torn" in line for line in third.notices())


def test_impossible_parameters_in_a_file_are_refused(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    chat.save("a")
    chat.close()
    path = archive.folder / "a.jsonl"
    path.write_text(path.read_text().replace('"max_tokens": 12', '"max_tokens": -1'))
    with pytest.raises(UsageError, match="max_tokens"):
        chat_on(archive).load("a")
    assert archive.hold("a")


def test_saving_renames_and_a_bad_or_taken_name_changes_nothing(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    chat.save("kept")
    ask(chat, "two")
    assert [each.name for each in chat.saved()] == ["kept"] and chat.saved()[0].turns == 2
    other = chat_on(archive)
    for name in ("kept", "../x", "a\x1b"):
        with pytest.raises(UsageError):
            other.save(name)
    ask(other, "three")
    with pytest.raises(UsageError):
        other.save("kept")
    assert chat.name == "kept" and len(chat.saved()) == 2


def test_a_disk_that_cannot_be_written_is_told_once_and_the_chat_goes_on(archive: Archive) -> None:
    archive.folder.parent.mkdir(exist_ok=True)
    archive.folder.write_text("a file where the folder should be")
    chat = chat_on(archive)
    chat.notices()
    ask(chat, "one")
    ask(chat, "two")
    assert [notice for notice in chat.notices() if "cannot be saved" in notice] and chat.notices() == []
    archive.folder.unlink()
    ask(chat, "three")
    assert any("saved again" in notice for notice in chat.notices())
    assert chat.saved()[0].turns == 3, "nothing of it is missing"


@pytest.mark.parametrize("before", [0, 1])
def test_leaving_writes_what_found_no_room_before(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    chat = chat_on(archive)
    for number in range(before):
        ask(chat, f"number {number}")
    with monkeypatch.context() as full:
        full.setattr("os.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        ask(chat, "unsaved")
    chat.close()
    chat.close()
    (saved,) = archive.saved()
    again = chat_on(archive)
    again.load(saved.name)
    assert said(again) == said(chat)


def test_a_name_that_is_held_though_there_is_no_such_file_does_not_keep_anyone_from_asking(archive: Archive) -> None:
    held = archive.hold("mine")
    chat = chat_on(archive)
    chat.open("mine")
    ask(chat, "one")
    assert held and chat.name == "mine-2" and archive.saved()[0].turns == 1


def test_a_question_left_without_its_answer_does_not_spoil_the_file(archive: Archive) -> None:
    chat = chat_on(archive)
    ask(chat, "one")
    chat.save("a")
    chat.close()
    path = archive.folder / "a.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"role": "assistant"')])
    for _ in range(2):
        again = chat_on(archive)
        again.load("a")
        ask(again, "more")
        again.close()
    assert [role for role, _ in said(again)] == ["system", *["user", "assistant"] * 3]


def test_parameters_that_no_chat_sets_are_passed_over(archive: Archive) -> None:
    left(archive)
    path = archive.folder / "a.jsonl"
    path.write_text(path.read_text().replace('"values": {', '"values": {"logit_bias": 5, '))
    chat = chat_on(archive)
    chat.load("a")
    assert dict(chat.why()) and ask(chat, "on")


def test_what_cannot_be_answered_is_not_in_the_file(archive: Archive) -> None:
    chat = chat_on(archive, overflow="stop", slots=128)
    ask(chat, "one")
    path = archive.folder / f"{chat.name}.jsonl"
    before = path.read_bytes()
    with pytest.raises(Exception, match="not sent"):
        list(chat.ask("x" * 200))
    assert path.read_bytes() == before


def test_export_writes_markdown_or_json_and_never_over_a_file(archive: Archive, tmp_path: Path) -> None:
    chat = chat_on(archive)
    chat.begin([("user", "Why?\n\n- really"), ("assistant", "<think>hm</think>So.")])
    chat.export(tmp_path / "a.md")
    chat.export(tmp_path / "a.json")
    text = (tmp_path / "a.md").read_text()
    assert "# Why?" in text and "\nSo.\n" in text and "<think>" not in text and "## System\n\ns" in text
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Why?\n\n- really"},
        {"role": "assistant", "content": "So.", "thinking": "hm"},
    ]
    before = sorted(tmp_path.iterdir())
    for name in ("a.md", "missing/a.md", "a\0.md"):
        with pytest.raises(UsageError):
            chat.export(tmp_path / name)
    assert (tmp_path / "a.md").read_text() == text and sorted(tmp_path.iterdir()) == before


# ---- keys and values ----


def engine(chat: Session) -> HashEngine:
    assert isinstance(local(chat).model.engine, HashEngine)
    return local(chat).model.engine


def left(archive: Archive, slots: int = 512, turns: int = 3) -> Session:
    chat = chat_on(archive, slots, snapshots=True)
    for number in range(turns):
        ask(chat, f"number {number}")
    chat.save("a")
    chat.close()
    return chat


@pytest.mark.parametrize(("slots", "turns"), [(512, 3), (160, 12)])
def test_a_continued_dialog_runs_only_the_new_question(archive: Archive, slots: int, turns: int) -> None:
    old = left(archive, slots, turns)
    chat = chat_on(archive, slots, snapshots=True)
    chat.load("a")
    assert chat.context_used == old.context_used > 100 and engine(chat).forwarded == []
    assert [turn.seen for turn in chat.turns()] == [turn.seen for turn in old.turns()]
    done = ask(chat, "on")
    assert engine(chat).forwarded[0] < 40
    assert ask(old, "on").stats.reused_tokens == done.stats.reused_tokens
    assert said(old)[-1] == said(chat)[-1], "and it is answered as if it had never been left"


OWNERS = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) - 10
    if how in ("mode", "owner"):
        path.chmod(0o620) if how == "mode" else os.chown(path, 12345, 12345)
        return
    path.write_bytes(
        {
            "key": data.replace(b'"key": "', b'"key": "0', 1),
            "field": data.replace(b'{"key"', b'{"more": 1, "key"', 1),
            "no log": data.replace(b'["log"', b'["lag"', 1),
            "twice": data.replace(b'["tokens"', b'["log"', 1),
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:-1],
            "longer": data + b"\0",
            "empty": b"",
            "header": b"[" * 50_000,
            "numbers": data.replace(b'"pinned": ', b'"pinned": 9999', 1),
            "negative": data.replace(b'"evicted": ', b'"evicted": -1', 1),
            "about": data.replace(b'"opened": [2', b'"opened": [3', 1),
            "shapes": data.replace(b'"arrays": [[', b'"arrays": [["x", "int8", [1099511627775, 9]], [', 1),
        }[how]
    )


@pytest.mark.parametrize(
    "how",
    [
        "flipped",
        "cut",
        "longer",
        "empty",
        "header",
        "numbers",
        "negative",
        "about",
        "shapes",
        "key",
        "field",
        "no log",
        "twice",
        "mode",
        pytest.param("owner", marks=OWNERS),
    ],
)
def test_a_damaged_snapshot_is_made_anew_with_one_line(archive: Archive, how: str) -> None:
    left(archive)
    (path,) = snapshot.store().entries()
    spoil(path, how)
    chat = chat_on(archive, snapshots=True)
    chat.notices()
    chat.load("a")
    (line,) = chat.notices()
    assert chat.context_used == 0 and str(path) in line and line.endswith("; they are computed anew")
    ask(chat, "on")
    chat.close()
    assert chat_again_used(archive) > 0


def chat_again_used(archive: Archive) -> int:
    chat = chat_on(archive, snapshots=True)
    chat.load("a")
    used = chat.context_used
    chat.close()
    return used


def test_a_snapshot_of_another_model_window_or_dialog_is_not_taken(archive: Archive, tmp_path: Path) -> None:
    left(archive)
    for other in (model(256), model()):
        if other.engine.slots == 512:
            other.checkpoint.files = (tmp_path / "sessions" / "a.jsonl",)  # type: ignore[misc]
        chat = local_session(other, SETTINGS, archive=archive, snapshots=True)
        chat.load("a")
        assert chat.context_used == 0
        chat.close()


def test_a_model_whose_file_was_removed_meanwhile_goes_on_without_snapshots(archive: Archive, tmp_path: Path) -> None:
    left(archive)
    chat = chat_on(archive, snapshots=True)
    local(chat).model.checkpoint.files = (tmp_path / "gone",)  # type: ignore[misc]
    chat.load("a")
    ask(chat, "on")
    chat.close()
    assert len(chat.turns()) == 9


def test_a_stale_snapshot_is_not_taken(archive: Archive) -> None:
    left(archive)
    path = archive.folder / "a.jsonl"
    path.write_text(path.read_text().replace("number 1", "another"))
    assert chat_again_used(archive) == 0


def test_all_snapshots_together_stay_within_their_limit(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    left(archive)
    (first,) = snapshot.store().entries()
    monkeypatch.setattr(snapshot, "LIMIT", 2 * first.stat().st_size)
    os.utime(first, (1, 1))
    for _ in range(3):
        chat = chat_on(archive, snapshots=True)
        ask(chat, "another dialog")
        chat.close()
    assert first not in snapshot.store().entries()
    assert sum(path.stat().st_size for path in snapshot.store().entries()) <= snapshot.LIMIT
    assert snapshot.store().clear() > 0 and snapshot.store().entries() == []


@pytest.mark.parametrize(("name", "value"), [("LIMIT", 100), ("LIMIT", 400), ("SPARE", 1 << 60)])
def test_a_snapshot_that_has_no_room_in_any_case_makes_none(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    left(archive)
    held = snapshot.store().entries()
    monkeypatch.setattr(snapshot, name, value)
    chat, exported = chat_on(archive, snapshots=True), list[int]()
    save = engine(chat).save_kv

    def noted(slots: Integers) -> object:
        exported.append(len(slots))
        return save(slots)

    monkeypatch.setattr(engine(chat), "save_kv", noted)
    ask(chat, "another dialog")
    chat.close()
    assert held and snapshot.store().entries() == held
    assert max(exported) == (1 if value == 100 else len(local(chat).cache))


def test_half_a_file_that_a_kill_left_goes_and_one_that_is_being_written_stays(archive: Archive) -> None:
    snapshot.store().folder.mkdir(parents=True)
    torn, fresh = (snapshot.store().folder / name for name in ("torn.part", "fresh.part"))
    torn.touch()
    fresh.touch()
    os.utime(torn, (1, 1))
    left(archive)
    assert not torn.exists() and fresh.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_chat_has_all_that_it_showed_as_saved(tmp_path: Path) -> None:
    """A smaller measure_kills.py."""
    assert survive(tmp_path, kills=10, seed=1) > 5
