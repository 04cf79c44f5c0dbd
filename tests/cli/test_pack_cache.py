"""The cache of packed weights from the command line: its size, what is in it, and what happens where it cannot be had."""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from test_cli import TINY, Run, compiled, run, tiny

from llamachat.engines.native import packed_file
from llamachat.engines.native.build import compiler
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.models import packed_copy
from llamachat.models.disk_cache import DiskCache
from llamachat.models.packed_weights import STALE
from llamachat.system import known

__all__ = ["compiled", "run", "tiny"]
pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
OWNERS = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
ANSWER = ("complete", "the quick", *TINY)
BAD = [
    "",
    " ",
    "5",
    "5 apples",
    "-1GB",
    "GB",
    "1e9B",
    "nanGB",
    "5GBs",
    "5,5GB",
    "0x5GB",
    "1" * 5000 + "GB",
    "\x1b[2JGB",
    "no",
]


@pytest.fixture(autouse=True)
def every_copy_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_copy, "PAYS", 0)
    for name in [name for name in os.environ if name.startswith("LLAMACHAT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "CACHE/llamachat/packed"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arena"))


# ---- its size ----


@pytest.mark.parametrize("size", ["5GB", "1.5 gb", "500MB", "1TB", "999999999B", "off", "OFF", " off "])
def test_a_size_is_kept_and_holds(run: Run, folder: Path, size: str, tmp_path: Path) -> None:
    assert run("config", "set", "pack-cache", size) == (0, "", "")
    assert (tmp_path / "CONFIG/llamachat/config.toml").read_text() == f'pack-cache = "{size}"\n'
    code, out, err = run(*ANSWER)
    assert (code, err) == (0, "") and out
    assert len(names(folder)) == ("off" not in size.lower())
    assert run("config", "unset", "pack-cache") == (0, "", "")


@pytest.mark.parametrize("size", BAD)
@pytest.mark.parametrize("how", ["config set", "flag", "environment", "file"])
def test_what_is_no_size_is_one_line_that_says_its_words_once(
    run: Run, folder: Path, size: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "CONFIG/llamachat/config.toml"
    if how == "environment":
        monkeypatch.setenv("LLAMACHAT_PACK_CACHE", size)
        if not size:  # which is as if it were not set
            return
    elif how == "file":
        file.parent.mkdir(parents=True)
        file.write_text(f"pack-cache = '{size}'\n" if size.isprintable() else 'pack-cache = "\\u001b[2JGB"\n')
    given = ("config", "set", "pack-cache", "--", size) if how == "config set" else ANSWER
    code, out, err = run(*given, *(["--pack-cache", size] if how == "flag" else []))
    assert (code, out) == (3 if how == "file" else 2, "")
    wrong = err.partition("correct it")[0]  # before the remedy, which names the key
    assert err.count("\n") == 1 and wrong.count("pack-cache") == 1 and "\x1b" not in err and len(err) < 400
    assert "allowed is a size such as 5GB or 500MB, or off" in err
    assert f"in {file}" in err or how != "file"
    assert names(folder) == [] and (how == "file" or not file.exists())


def test_a_flag_goes_before_the_environment_before_the_file(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("config", "set", "pack-cache", "1GB")
    monkeypatch.setenv("LLAMACHAT_PACK_CACHE", "off")
    assert run(*ANSWER)[0] == 0 and names(folder) == []
    assert "of packed weights, and no more are kept" in run("models", "cache")[1]
    assert run(*ANSWER, "--pack-cache", "1MB")[0] == 0 and len(copies(folder)) == 1


def test_a_smaller_size_deletes_what_was_unused_the_longest_at_once(run: Run, folder: Path, tmp_path: Path) -> None:
    run(*ANSWER)
    (copy,) = copies(folder)
    for age, name in enumerate(("old", "older")):
        other = copy.with_stem(name)
        other.write_bytes(copy.read_bytes())
        os.utime(other, (1000 - age,) * 2)
    room = 2 * copy.stat().st_size
    code, out, err = run("config", "set", "pack-cache", f"{room}B")
    assert (code, out) == (0, "") and err.endswith("kB of packed weights deleted; a start packs them anew\n")
    assert set(copies(folder)) == {copy, copy.with_stem("old")}
    assert run("config", "set", "pack-cache", f"{room}B") == (0, "", ""), "it is said when something was deleted"
    assert run("config", "set", "pack-cache", "off")[0] == 0 and copies(folder) == []


# ---- what is in it ----


def test_a_copy_is_listed_used_and_deleted(run: Run, folder: Path, tiny: str) -> None:
    code, out, _ = run("models", "cache")
    assert code == 0 and out.splitlines()[0].startswith("    0 kB  of packed weights, of at most ")
    first = run(*ANSWER)
    (copy,) = copies(folder)
    assert copy.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    written = copy.stat().st_mtime_ns
    assert run(*ANSWER) == first and copy.stat().st_mtime_ns == written
    line, *totals = run("models", "cache")[1].splitlines()
    assert line.split() == [f"{copy.stat().st_size / 1e3:.0f}", "kB", "used", "today", tiny]
    assert [total[10:].split(",")[0] for total in totals] == [
        "of packed weights",
        "of keys and values of dialogs and prefixes",
    ]
    assert run("models", "cache", tiny)[1].splitlines() == [line], "of this one alone"
    assert run("models", "cache", copy.stem)[1].splitlines() == [line]
    code, out, err = run("models", "cache", tiny, "--clear")
    assert (code, err) == (0, "") and out.endswith(" kB freed\n") and names(folder) == []
    assert run(*ANSWER) == first and len(copies(folder)) == 1, "the next start makes it anew"


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_the_list_goes_on_below_where_a_terminal_is_too_narrow(
    run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    run(*ANSWER)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("models", "cache")[1].splitlines()
    assert all(len(line) <= columns for line in lines)
    starts = [line[:10] for line in lines if line[:10].strip()]
    assert len(starts) == 3 and all(start.endswith(" kB  ") for start in starts), "all else is beside the sizes"
    assert tiny in "".join(line[10:] for line in lines)


def test_a_model_that_nothing_is_kept_of_is_one_line(run: Run, folder: Path) -> None:
    run(*ANSWER)
    for rest in ((), ("--clear",)):
        code, out, err = run("models", "cache", "nope\x1b[2J", *rest)
        assert (code, out, err.count("\n")) == (2, "", 1) and "\x1b" not in err
        assert err.startswith("error: nothing is kept of 'nope") and "`llamachat models cache` lists what is" in err
    assert len(copies(folder)) == 1


def test_clear_deletes_all_of_ours_and_nothing_else(run: Run, folder: Path) -> None:
    run(*ANSWER)
    (folder / ".x.arena.1.part").write_bytes(b"half")
    for name in ("notes.txt", "arena"):
        (folder / name).write_text("mine")
    (folder / "folder.arena").mkdir()
    assert run("models", "cache", "--clear")[0] == 0
    assert names(folder) == ["arena", "folder.arena", "notes.txt"]


@OWNERS
def test_what_another_user_has_is_left_alone(run: Run, folder: Path) -> None:
    run(*ANSWER)
    theirs = folder / "theirs.arena"
    theirs.write_bytes(b"theirs")
    os.chown(theirs, 12345, 12345)
    assert "theirs" not in run("models", "cache")[1]
    assert run("models", "cache", "--clear")[0] == run("config", "set", "pack-cache", "off")[0] == 0
    assert names(folder) == ["theirs.arena"] and theirs.read_bytes() == b"theirs"


def in_another_layout(copy: Path) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[: -len(packed_file.MAGIC)] + packed_file.MAGIC[:-1] + b"0")


@pytest.mark.parametrize("command", [("models", "cache"), ("models", "cache", "--clear"), ANSWER])
def test_a_copy_in_an_old_layout_goes(run: Run, folder: Path, command: tuple[str, ...]) -> None:
    run(*ANSWER)
    (copy,) = copies(folder)
    old = copy.rename(copy.with_stem("0" * 32))
    in_another_layout(old)
    nbytes = old.stat().st_size
    code, out, err = run(*command)
    assert (code, err) == (0, "") and not old.exists()
    assert "--clear" not in command or out == f"{nbytes / 1e3:.0f} kB freed\n"


def test_a_copy_in_an_old_layout_at_the_very_place_is_made_anew(run: Run, folder: Path) -> None:
    first = run(*ANSWER)
    (copy,) = copies(folder)
    in_another_layout(copy)
    assert run(*ANSWER)[:2] == first[:2]
    assert PackedWeights.open(copy, copy.stem).tensors


def test_what_another_version_packed_and_nobody_used_for_a_week_goes(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*ANSWER)
    (copy,) = copies(folder)
    monkeypatch.setattr("llamachat.models.packed_weights.code", lambda: "another")
    run("models", "cache")
    assert copies(folder) == [copy], "it was used today"
    os.utime(known.stamp_file(copy), (time.time() - STALE - 60,) * 2)
    assert copy.stem not in run("models", "cache")[1] and names(folder) == []


# ---- where it cannot be had ----


def refusing(error: int) -> Callable[..., None]:
    def refuse(*given: object, **named: object) -> None:
        raise OSError(error, os.strerror(error), *given[:1])

    return refuse


@pytest.fixture(params=["full", "nearly full", "full within the copy", "read-only"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    match request.param:
        case "full":
            monkeypatch.setattr(DiskCache, "free", lambda self: 0)
        case "nearly full":
            monkeypatch.setattr(DiskCache, "free", lambda self: 2_000_001_000)
        case "full within the copy":
            monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
        case "read-only":
            monkeypatch.setattr("tempfile.mkstemp", refusing(errno.EROFS))
    yield request.param


WHY = {
    "full": "pack-cache allows 0 kB",
    "nearly full": "2.0 GB are free",
    "full within the copy": "No space left on device",
    "read-only": "Read-only file system",
}


def test_a_disk_that_takes_no_copy_costs_nothing_but_the_copy(run: Run, folder: Path, disk: str) -> None:
    code, out, err = run(*ANSWER)
    assert (code, err) == (0, "") and out, "who has not asked is not told in a pipe"
    assert names(folder) == []
    code, again, err = run(*ANSWER, "-v")
    assert (code, again) == (0, out) and names(folder) == []
    (line,) = [line for line in err.splitlines() if "packed weights" in line]
    assert f"not kept ({WHY[disk]})" in line or f"not kept: {WHY[disk]}" in line


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (("models", "cache", "--clear"), "what is left stays"),
        (("config", "set", "pack-cache", "off"), "pack-cache is set, and more than that is kept"),
    ],
)
def test_what_cannot_be_deleted_is_one_line(
    run: Run, folder: Path, command: tuple[str, ...], left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*ANSWER)
    (copy,) = copies(folder)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        (refusing(errno.EROFS) if path == copy else unlink)(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert err == f"error: {copy} cannot be deleted: Read-only file system; {left}\n" and copies(folder) == [copy]
    assert run("config", "get", "pack-cache")[1] == ("off\n" if command[0] == "config" else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_copy_is_written_leaves_nothing_of_it_and_the_answer_whole(
    run: Run, folder: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(*ANSWER, "--pack-cache", "off")
    seen = list[list[str]]()

    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("keeping"):
            seen.append(names(folder))
            os.kill(os.getpid(), number)
            time.sleep(10)
            raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr("llamachat.cli.progress.late_progress", lambda: nullcontext(progress))
        assert run(*ANSWER) == expected, "an answer that is out has been given"
    (within,) = seen
    assert len(within) == 1 and within[0].endswith(".part") and names(folder) == []
    assert run(*ANSWER) == expected and len(copies(folder)) == 1, "the next start makes it"
