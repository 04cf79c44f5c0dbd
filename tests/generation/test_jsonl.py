"""jsonl.py: lines as they come through a pipe, and files of results that a broken run goes on with."""

import json
import os
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.errors import UsageError
from llamachat.generation import jsonl
from llamachat.generation.jsonl import Lines, open_results


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), max_size=8), st.booleans())
def test_lines_are_those_of_a_text_file_however_they_come(data: bytes, cuts: list[int], last: bool) -> None:
    read, write = os.pipe()
    taken = list[bytes | str]()
    with os.fdopen(read, "rb") as file:
        lines = Lines(file)
        for cut in cuts:
            os.write(write, data[:cut])
            data, sent = data[cut:], data[:cut]
            taken.append(sent)
            while (line := lines.take(wait=False)) is not None:
                taken.append(line)
        os.write(write, data)
        os.close(write)
        while line := lines.take(wait=last):
            taken.append(line)
        assert lines.take(wait=True) == ""
    whole = b"".join(each for each in taken if isinstance(each, bytes)) + data
    expected = whole.decode("utf-8", "surrogateescape").removeprefix("\ufeff").split("\n")
    expected = [line + "\n" for line in expected[:-1]] + [expected[-1]] * bool(expected[-1])
    assert [each for each in taken if isinstance(each, str)] == expected


def test_a_line_that_has_not_come_is_none_or_waited_for() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as file:
        lines = Lines(file)
        os.write(write, b"one\ntw")
        assert [lines.take(wait=False) for _ in range(2)] == ["one\n", None]
        timer = Timer(0.1, lambda: os.write(write, b"o\n"))
        timer.start()
        assert lines.take(wait=True) == "two\n"
        timer.join()
        os.close(write)
        assert lines.take(wait=False) == ""


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 1000)
    (tmp_path / "zeros").write_bytes(bytes(10**6))
    with (tmp_path / "zeros").open("rb") as file:
        lines = Lines(file)
        with pytest.raises(UsageError, match="a line is longer than 1,000 bytes; it was skipped"):
            lines.take(wait=True)
        assert len(lines.data) < 1 << 17 and lines.take(wait=True) == ""


@given(st.lists(st.sampled_from([0, 5, 99, 100, 101, 10**5, 2 * 10**5]), max_size=8))
def test_lines_behind_one_that_is_too_long_are_read(lengths: list[int]) -> None:
    with TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "LONGEST", 100)
        file.write(b"".join(b"x" * length + b"\n" for length in lengths))
        file.seek(0)
        lines, found = Lines(file), list[int | None]()
        while True:
            try:
                if (line := lines.take(wait=True)) == "":
                    break
                found.append(len(line or "") - 1)
            except UsageError:
                found.append(None)
    assert found == [length if length < 100 else None for length in lengths]


DONE = '{"model": "m", "finish_reason": "stop"}\n'
BAD = '{"error": "line 3 is not JSON"}\n'
CUT = '{"model": "m", "finish_reason": "interrupt"}\n'


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ("", ""),
        (DONE + BAD + DONE, DONE + BAD + DONE),
        (DONE + DONE[:20], DONE),
        (DONE + DONE[:3], DONE),
        (DONE + DONE[:-1], DONE),
        (DONE + CUT + DONE, DONE),
        (CUT, ""),
        (DONE + BAD + BAD, DONE),
        (BAD + DONE + BAD + CUT, BAD + DONE),
    ],
)
def test_resuming_keeps_whole_results_and_cuts_off_torn_and_interrupted_ones_and_errors_at_the_end(
    held: str, kept: str, tmp_path: Path
) -> None:
    file = tmp_path / "results"
    file.write_text(held)
    results, count = open_results(file, resume=True)
    assert count == kept.count("\n")
    with results:
        results.write(BAD)
    assert file.read_text() == kept + BAD


@pytest.mark.parametrize("held", ['{"prompt": "one"}\n', DONE + "notes\n" + DONE, "no newline", "[1]\n", "\n"])
def test_a_file_that_holds_something_else_is_left_as_it_is(held: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(held)
    for resume in (True, False):
        with pytest.raises(UsageError, match=r"is no result|exists"):
            open_results(file, resume)
    assert file.read_text() == held


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_file_is_not_to_be_removed(tmp_path: Path, resume: bool) -> None:
    for place in (tmp_path, Path(os.devnull)):
        with pytest.raises(UsageError, match=r"is no file; nothing was run; give another --output, or none"):
            open_results(place, resume)


def test_a_new_file_is_made_and_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    results, count = open_results(tmp_path / "new", resume=True)
    results.close()
    assert count == 0 and (tmp_path / "new").read_text() == ""
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        open_results(tmp_path / "none/new", resume=False)
    with pytest.raises(UsageError, match="cannot be written: File name too long"):
        open_results(tmp_path / ("x" * 300), resume=False)
    assert json.loads(DONE)
