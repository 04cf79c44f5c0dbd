"""store.py: a dialog's file is whole lines whatever happens, its owner's only, and one chat's at a time."""

import json
import os
import resource
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory

from llamachat.chat import journal as journals
from llamachat.chat.store import Archive, check_name
from llamachat.chat.tree import path
from llamachat.errors import FormatError, UsageError

RECORDS = [{"type": "system", "text": str(number)} for number in range(3)]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "data" / "sessions")


def texts(archive: Archive, name: str) -> list[str]:
    return [json.loads(line)["text"] for _, line in archive.read(name)[0]]


def write(archive: Archive, name: str = "a") -> Path:
    journal = archive.create(name)
    assert journal.append(RECORDS, sync=True) is None
    journal.close()
    return journal.path


def test_lines_are_appended_and_read_again(archive: Archive) -> None:
    write(archive)
    lock = archive.hold("a")
    assert lock
    journal = archive.reopen("a", lock)
    journal.append([{"type": "system", "text": "x"}])
    journal.close()
    assert texts(archive, "a") == ["0", "1", "2", "x"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_only_the_owner_may_read_files_and_folder(archive: Archive) -> None:
    path = write(archive)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(archive.folder.stat().st_mode) == 0o700


def test_half_a_record_at_the_end_is_cut_off_and_a_whole_one_without_its_newline_stays(archive: Archive) -> None:
    path = write(archive)
    data = path.read_bytes()
    ends = [end for end, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data)):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        assert texts(archive, "a") == [*"012"[:whole]]
        lock = archive.hold("a")
        assert lock
        journal = archive.reopen("a", lock)
        assert journal.torn == size - min(size, ends[whole - 1] + 1 if whole else 0)
        journal.append([{"type": "system", "text": "x"}])
        journal.close()
        assert texts(archive, "a") == [*"012"[:whole], "x"]
        assert path.read_bytes().count(b"\n") == whole + 1


def test_a_record_without_its_newline_stays_while_the_disk_has_no_room_for_that(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(archive)
    path.write_bytes(path.read_bytes()[:-1])

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    lock = archive.hold("a")
    assert lock
    with monkeypatch.context() as patch:
        patch.setattr(journals.os, "write", full)
        journal = archive.reopen("a", lock)
        assert journal.append([RECORDS[0]]) is not None
        assert texts(archive, "a") == [*"012"]
    assert journal.append([RECORDS[1]]) is None
    journal.close()
    assert texts(archive, "a") == [*"01201"]


def test_a_line_beyond_all_bounds_is_an_error(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(archive)
    monkeypatch.setattr(journals, "MAX_LINE", 100)
    path.write_bytes(path.read_bytes() + b"x" * 101 + b"\n")
    with pytest.raises(FormatError, match=r"a\.jsonl, line 4, is too long"):
        list(archive.read("a")[0])


def test_a_second_holder_is_refused_until_the_first_lets_go(archive: Archive) -> None:
    journal = archive.create("a")
    assert archive.hold("a") is None
    journal.close()
    lock = archive.hold("a")
    assert lock
    lock.release()


def test_a_taken_name_is_refused_and_a_fresh_one_found(archive: Archive) -> None:
    write(archive)
    with pytest.raises(UsageError, match="already"):
        archive.create("a")
    assert archive.fresh("a") == "a-2" and archive.fresh("b") == "b"
    assert archive.hold("a"), "the refused one holds nothing"


def test_renaming_moves_file_and_lock(archive: Archive) -> None:
    write(archive)
    journal = archive.create("b")
    with pytest.raises(UsageError, match="already"):
        archive.rename(journal, "a")
    archive.rename(journal, "c")
    journal.append(RECORDS)
    assert archive.hold("c") is None and archive.hold("b")
    assert texts(archive, "c") == ["0", "1", "2"] and not archive.exists("b")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1b[2J",
        "\u202eb",
        " a",
        "a ",
        "x" * 81,
        "é" * 41,
        "a:b",
        "\ud800",
    ],
)
def test_a_name_that_could_leave_the_folder_or_drive_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "2026-11-22_10-00-00", "Über uns 2", "数学", "a.b", "x" * 80])
def test_a_harmless_name_will_do(name: str) -> None:
    check_name(name)


def test_a_list_shows_the_latest_first_with_title_and_model(archive: Archive) -> None:
    for moment, name in ((100, "old"), (200, "new")):
        journal = archive.create(name)
        message = {"type": "message", "id": 1, "parent": 0, "role": "user", "text": f"\nabout {name}\nmore"}
        journal.append([{"type": "model", "name": "m", "tokenizer": "t"}, message, {**message, "role": "assistant"}])
        journal.close()
        os.utime(journal.path, (moment, moment))
    (archive.folder / "broken.jsonl").write_bytes(b'{"type": "message", \xff\n{"type": "model"}\n[')
    os.utime(archive.folder / "broken.jsonl", (50, 50))
    found = [(each.name, each.modified, each.turns, each.title, each.model) for each in archive.saved()]
    assert found == [("new", 200, 1, "about new", "m"), ("old", 100, 1, "about old", "m"), ("broken", 50, 0, "", "")]
    assert archive.latest() == "new" and archive.model_of("old") == "m" and archive.model_of("none") is None


def test_what_cannot_be_read_is_passed_over(archive: Archive) -> None:
    write(archive, "good")
    (archive.folder / "folder.jsonl").mkdir()
    (archive.folder / "gone.jsonl").symlink_to(archive.folder / "nowhere")
    (archive.folder / "odd.jsonl").write_text('{"type": "message", "role": "user", "text": 5}\n')
    for name in ("a:b", "\x1b[31m", "-x", "x" * 81):  # not ours: no dialog can have such a name
        (archive.folder / f"{name}.jsonl").write_bytes((archive.folder / "good.jsonl").read_bytes())
    assert {each.name for each in archive.saved()} == {"good", "odd"}
    assert archive.latest() in ("good", "odd") and archive.model_of("folder") is None
    assert list(archive.search("0")) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_is_no_dialog_and_nobody_waits_for_it(archive: Archive) -> None:
    write(archive, "good")
    os.mkfifo(archive.folder / "pipe.jsonl")
    assert [each.name for each in archive.saved()] == ["good"] and archive.latest() == "good"
    with pytest.raises(UsageError, match="there is no dialog called pipe"):
        archive.look("pipe")


def test_a_time_that_no_calendar_has_is_told_as_one(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.stat_result((*write(archive).stat()[:8], 10**17, 10**17))
    monkeypatch.setattr(Path, "stat", lambda self, **given: status)
    assert time.localtime(archive.about("a").modified).tm_year == 9892


@pytest.mark.parametrize("name", ["con", "NUL", "com1", "LPT9.a", "aux .b"])
def test_no_dialog_gets_the_name_of_a_device_but_one_of_it_can_be_opened(archive: Archive, name: str) -> None:
    write(archive, "a")
    for act in (lambda: archive.create(name), lambda: archive.move("a", name)):
        with pytest.raises(UsageError, match="is the name of a device on Windows; no dialog gets it"):
            act()
    assert archive.create_fresh("con").name == "con-2"
    (archive.folder / f"{name}.jsonl").write_bytes((archive.folder / "a.jsonl").read_bytes())
    assert archive.about(name).name == name


def test_a_name_held_without_a_file_or_too_long_for_a_number_gets_one_all_the_same(archive: Archive) -> None:
    held = archive.hold("a")
    assert held and archive.create_fresh("a").name == "a-2"
    write(archive, "é" * 40)
    assert archive.create_fresh("é" * 40).name == "é" * 39 + "-2"
    with pytest.raises(UsageError, match="cannot be the name"):
        archive.create_fresh("../x")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file size")
def test_a_full_disk_leaves_whole_lines_and_what_is_missing_comes_later(archive: Archive) -> None:
    journal = archive.create("a")
    before, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        journal.append(RECORDS[:1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 5, before[1]))
        for record in RECORDS[1:]:
            assert journal.append([record], sync=True) is not None
            assert texts(archive, "a") == ["0"] and journal.path.read_bytes().endswith(b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignore)
    assert journal.append([{"type": "system", "text": "3"}]) is None
    assert texts(archive, "a") == ["0", "1", "2", "3"]


# ---- looking, searching, renaming, deleting ----


def say(id: int, parent: int, text: str, *pieces: str) -> list[dict[str, object]]:
    """A question and its answer."""
    message = {"type": "message", "id": id, "parent": parent, "role": "user", "text": text}
    answer = {"type": "message", "id": id + 1, "parent": id, "role": "assistant", "text": ""}
    return [message, answer, *({"type": "piece", "id": id + 1, "text": each, "ids": [1]} for each in pieces)]


def write_dialog(archive: Archive, name: str, *records: dict[str, object]) -> Path:
    journal = archive.create(name)
    head = {"type": "session", "version": 1, "uid": f"u-{name}"}
    assert journal.append([head, {"type": "model", "name": "m", "tokenizer": "t"}, *records], sync=True) is None
    journal.close()
    return journal.path


def test_a_list_counts_the_questions_of_the_branch_that_goes_on(archive: Archive) -> None:
    lines = [*say(1, 0, "one", "a"), *say(3, 2, "two", "b"), *say(5, 2, "other two", "c")]
    write_dialog(archive, "a", *lines)
    assert archive.about("a").turns == 2
    write_dialog(archive, "b", *lines, {"type": "active", "id": 2})
    assert archive.about("b").turns == 1
    write_dialog(archive, "c", *lines, {"type": "drop", "id": 5}, {"type": "active", "id": 4})
    assert archive.about("c").turns == 2
    cleared = [*lines, {"type": "active", "id": 0}]
    write_dialog(archive, "d", *cleared)
    assert (archive.about("d").turns, archive.about("d").title) == (0, "one")
    write_dialog(archive, "e", *cleared, *say(7, 0, "a new start", "d"))
    assert (archive.about("e").turns, archive.about("e").title) == (1, "a new start")
    for name in "abcde":
        about, history = archive.look(name)
        assert len(path(history.tree.active)) == 2 * about.turns


def test_a_changed_file_is_looked_at_again(archive: Archive) -> None:
    file = write_dialog(archive, "a", *say(1, 0, "one", "a"))
    assert archive.saved()[0].turns == 1
    with file.open("a") as more:
        more.writelines(json.dumps(each) + "\n" for each in say(3, 2, "two", "b"))
    assert archive.saved()[0].turns == 2


def test_a_search_finds_lines_of_questions_and_answers_in_any_case_and_no_thoughts(archive: Archive) -> None:
    write_dialog(archive, "a", *say(1, 0, "STRASSE?\nno", "<think>die straße", " hm</think>An der Stra", "ße.\nEnde"))
    dropped = [*say(3, 2, "straße", "gone"), {"type": "drop", "id": 3}]
    write_dialog(archive, "b", *say(1, 0, "other", "x"), *dropped)
    (archive.folder / "odd.jsonl").write_text('{"type": "message", "id": [], "text": 5}\n{"type": "piece"}\n[]\n')
    found = [(each.name, each.role, each.line) for each in archive.search("straSSe")]
    assert found == [("a", "user", "STRASSE?"), ("a", "assistant", "An der Straße.")]
    assert list(archive.search("nowhere")) == []


def test_a_search_holds_only_so_much_at_once(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.chat.glance.HELD", 10)
    write_dialog(archive, "a", *say(1, 0, "a needle here", "first"), *say(3, 2, "another needle", "last needle"))
    assert [each.line for each in archive.search("NEEDLE")] == ["a needle here", "another needle", "last needle"]


def test_a_dialog_is_renamed_and_deleted_unless_another_chat_has_it(archive: Archive) -> None:
    write_dialog(archive, "a", *say(1, 0, "one", "a"))
    write_dialog(archive, "taken", *say(1, 0, "one", "a"))
    held = archive.hold("a")
    assert held
    for act in (lambda: archive.move("a", "b"), lambda: archive.remove("a"), lambda: archive.require_free("a")):
        with pytest.raises(UsageError, match="another chat has a open"):
            act()
    held.release()
    with pytest.raises(UsageError, match="there is a dialog called taken already"):
        archive.move("a", "taken")
    with pytest.raises(UsageError, match=r"did you mean taken\?"):
        archive.remove("takn")
    archive.move("a", "b")
    assert archive.remove("b").name == "b" and not archive.exists("a")
    archive.remove("taken")
    left = [path.name for path in archive.folder.rglob("*") if path.is_file()]
    assert left == [], "nor a lock that tells the name"


def test_deleting_takes_a_dialogs_questions_from_the_input_history(archive: Archive, tmp_path: Path) -> None:
    typed = tmp_path / "history"
    file = FileHistory(str(typed))
    edits = ("/edit 2 two\nlines", '/edit """quo\nted"""', "/edit 1", "/edit 1 one more")
    for text in ("one", "/help", "two\nlines", "one", '"""quo\nted"""', "@a.md sum up", *edits, "one more"):
        file.store_string(text)
    holder = Archive(archive.folder, typed)
    attached = "a.md sum up\n\na.md:\n```\nsecret\n```"
    asked = [*say(1, 0, "one", "a"), *say(3, 2, "two\nlines", "b"), *say(5, 2, "quo\nted", "c"), *say(7, 2, attached)]
    write_dialog(archive, "a", *asked)
    assert holder.remove("a").typed == 6
    left = ["/help", "@a.md sum up", "/edit 1", "/edit 1 one more", "one more"]
    assert [*FileHistory(str(typed)).load_history_strings()][::-1] == left
    assert stat.S_IMODE(typed.stat().st_mode) == 0o600
    write_dialog(archive, "b", *say(1, 0, "nobody typed this", "a"))
    before = typed.stat().st_mtime_ns
    assert holder.remove("b").typed == 0 and typed.stat().st_mtime_ns == before


def test_keys_and_values_that_cannot_be_deleted_keep_the_dialog_so_that_it_can_be_tried_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dialog(archive, "a", {"type": "session", "version": 1, "uid": "u"}, *say(1, 0, "one", "a"))

    def refuse(what: str) -> int:
        raise PermissionError(13, "Permission denied", what)

    with monkeypatch.context() as patch:
        patch.setattr("llamachat.generation.kept.forget", refuse)
        with pytest.raises(PermissionError, match="dialog u"):
            archive.remove("a")
    assert archive.exists("a") and archive.remove("a").name == "a" and not archive.exists("a")
