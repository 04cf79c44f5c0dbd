"""store.py: a dialog's file is whole lines whatever happens, its owner's only, and one chat's at a time."""

import json
import os
import resource
import signal
import stat
import sys
from pathlib import Path

import pytest

from llamachat.chat import store
from llamachat.chat.store import Archive, check_name
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
        patch.setattr(store.os, "write", full)
        journal = archive.reopen("a", lock)
        assert journal.append([RECORDS[0]]) is not None
        assert texts(archive, "a") == [*"012"]
    assert journal.append([RECORDS[1]]) is None
    journal.close()
    assert texts(archive, "a") == [*"01201"]


def test_a_line_beyond_all_bounds_is_an_error(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(archive)
    monkeypatch.setattr(store, "MAX_LINE", 100)
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
    for time, name in ((100, "old"), (200, "new")):
        journal = archive.create(name)
        message = {"type": "message", "id": 1, "parent": 0, "role": "user", "text": f"\nabout {name}\nmore"}
        journal.append([{"type": "model", "name": "m", "tokenizer": "t"}, message, {**message, "role": "assistant"}])
        journal.close()
        os.utime(journal.path, (time, time))
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
    assert {each.name for each in archive.saved()} == {"good", "odd"}
    assert archive.latest() in ("good", "odd", "folder") and archive.model_of("folder") is None


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
