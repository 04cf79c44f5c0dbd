"""Server-sent events, however their bytes are cut."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamachat.remote.sse import LONGEST_EVENT, Event, Events, OverlongError


def events(data: bytes, cuts: Sequence[int] = ()) -> list[Event]:
    reader, ends = Events(), sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [event for at, end in pairwise(ends) for event in reader.add(data[at:end])]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"data: a\n\n", [Event("a")]),
        (b"data:a\r\n\r\ndata:  b\r\rdata: c\n\n", [Event("a"), Event(" b"), Event("c")]),
        (b"data: a\ndata: b\ndata\n\n", [Event("a\nb\n")]),
        (b": OPENROUTER PROCESSING\n\n: ping\n\ndata: a\n\n", [Event("a")]),
        (b"event: error\ndata: a\nid: 7\nretry: 9\n\ndata: b\n\n", [Event("a", "error"), Event("b")]),
        (b"error: {}\n\n", [Event("{}", "error")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [Event("a")]),
        (b"event: ping\n\ndata: a\n\n", [Event("a")]),
        ("data: é𝄞\n\n".encode(), [Event("é𝄞")]),
        (b"data: \xff\n\n", [Event("\ufffd")]),
        (b"data: a\n", []),
        (b"data: a", []),
    ],
)
def test_what_is_an_event(data: bytes, found: list[Event]) -> None:
    assert events(data) == found
    assert events(data, range(len(data))) == found  # byte by byte


LINES = st.sampled_from(
    [b"data: \xc3\xa9", b"data:x", b"data", b": c", b"event: error", b"error: e", b"", b"", b"id: 1", b"zz"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 1000)))
@example([(b"data: a", b"\r\n"), (b"", b"\r\n"), (b"data: b", b"\n"), (b"", b"\n")], [8, 10])
def test_cuts_change_nothing(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    data = b"".join(line + end for line, end in lines)
    assert events(data, cuts) == events(data)


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000)))
def test_any_bytes_give_the_same_events_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert events(data, cuts) == events(data)


@pytest.mark.parametrize("line", [b"data: ", b": ", b"", b"data: x\ndata: "])
def test_an_event_is_of_bounded_size(line: bytes) -> None:
    reader, block, taken = Events(), b"x" * (1 << 16), 0
    with pytest.raises(OverlongError):
        for part in (line, *[block] * 100):
            taken += len(part)
            assert [*reader.add(part)] == []
    assert LONGEST_EVENT < taken <= LONGEST_EVENT + len(block) + len(line)


def test_many_small_events_are_not_one_large_one() -> None:
    reader, block = Events(), (b": comment\n" + b"x" * 1000 + b"\n") * 60 + b"data: x\n\n"
    for _ in range(80):  # 4.9 MB
        assert len([*reader.add(block)]) == 1
