"""private.py: for the owner only whatever the umask, whole or not there, and not trusted where others could write."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamachat.chat.store import Archive
from llamachat.cli.defaults import write
from llamachat.models.fetch.verified import lock
from llamachat.system import known, private
from llamachat.ui.typed_history import open_history

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
STRANGER = 12345


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture(autouse=True)
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("cache", "config", "data", "state"):
        monkeypatch.setattr(f"llamachat.paths.{kind}_dir", lambda kind=kind: tmp_path / "top" / kind)
    return tmp_path


def modes(top: Path) -> set[tuple[bool, int]]:
    """Whether it is a folder, and what who may do with it, of everything below."""
    return {(each.is_dir(), each.stat().st_mode & 0o777) for each in top.rglob("*")}


def test_whatever_the_umask_all_that_we_make_is_the_owners_alone(ours: Path, umask: int) -> None:
    file = private.folder(ours / "top" / "cache" / "a" / "b") / "file"
    with private.writing(file) as stream:
        stream.write(b"x")
    known.remember(file, "x")
    archive = Archive(ours / "top" / "data" / "sessions")
    archive.create("mine").close()
    open_history(ours / "top" / "state" / "history")
    write(ours / "top" / "config" / "config.toml", "top-k", 1)
    with lock(ours / "top" / "cache" / "locks" / "one"):
        pass
    assert modes(ours) == {(True, 0o700), (False, 0o600)}
    assert known.is_known(file, "x") and archive.exists("mine")


def test_a_new_file_takes_no_others_place_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(FileExistsError), private.writing(tmp_path / "old", new=True) as stream:
        stream.write(b"new")
    with pytest.raises(ZeroDivisionError), private.writing(tmp_path / "none", new=True):
        raise ZeroDivisionError
    with private.writing(tmp_path / "new", new=True) as stream:
        stream.write(b"new")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == {
        "old": b"old",
        "new": b"new",
    }


def test_folders_of_ours_that_were_open_to_others_are_closed_and_those_above_are_not(ours: Path) -> None:
    cache = ours / "top" / "cache"
    (cache / "packed").mkdir(parents=True)
    for each in (ours / "top", cache, cache / "packed"):
        each.chmod(0o775)
    private.folder(cache / "packed" / "deeper")
    assert (cache / "packed").stat().st_mode & 0o777 == cache.stat().st_mode & 0o777 == 0o700
    assert (ours / "top").stat().st_mode & 0o777 == 0o775


def test_what_is_being_written_is_not_there_before_it_is_whole_and_leaves_nothing_when_it_fails(ours: Path) -> None:
    file = ours / "file"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), private.writing(file) as stream:
        stream.write(b"new")
        assert file.read_text() == "old"
        raise ZeroDivisionError
    assert [each.name for each in ours.iterdir()] == ["file"] and file.read_text() == "old"


@pytest.mark.parametrize("which", ["file", "folder"])
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_may_write_is_not_trusted(ours: Path, which: str, mode: int) -> None:
    file = private.folder(ours / "folder") / "file"
    file.touch(0o600)
    assert private.trouble(file) is None
    (file if which == "file" else file.parent).chmod(mode | 0o100)
    assert "may be written by other users" in str(private.trouble(file))


@ROOT
@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_another_user_has_is_not_trusted(ours: Path, which: str) -> None:
    file = private.folder(ours / "folder") / "file"
    file.touch(0o600)
    os.chown(file if which == "file" else file.parent, STRANGER, STRANGER)
    assert "belongs to another user" in str(private.trouble(file))


def test_a_file_is_known_until_it_is_written_to_whatever_its_times_say(ours: Path) -> None:
    file = ours / "file"
    file.write_bytes(b"abc")
    known.remember(file, "d")
    assert known.is_known(file, "d") and not known.is_known(file, "e")
    times = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not known.is_known(file, "d")
    known.remember(file, "d")
    copy = file.rename(ours / "copy")
    assert not known.is_known(file, "d") and not known.is_known(copy, "d")


def test_a_note_that_others_could_have_written_is_none(ours: Path) -> None:
    file = ours / "file"
    file.touch()
    known.remember(file, "d")
    (ours / "top" / "cache" / "verified").chmod(0o770)
    assert not known.is_known(file, "d")


def test_use_is_noted_without_touching_the_file(ours: Path) -> None:
    file = ours / "file"
    file.touch()
    known.remember(file, "d")
    (stamp,) = (ours / "top" / "cache" / "verified").iterdir()
    os.utime(stamp, (1, 1))
    before = file.stat()
    assert known.last_use(file) == 1
    known.use(file)
    assert known.last_use(file) > 1 and file.stat() == before and known.is_known(file, "d")
    known.forget(file)
    assert not known.is_known(file, "d") and known.last_use(file) == before.st_mtime
