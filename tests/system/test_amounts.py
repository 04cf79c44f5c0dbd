"""Bytes for people, and how long the rest will take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.system.amounts import Pace, share, size
from llamachat.ui.progress_line import ProgressLine


def told(*steps: tuple[float, int]) -> Pace:
    times = iter([time for time, _ in steps])
    pace = Pace(lambda: next(times))
    for _, done in steps:
        pace.tell(done)
    return pace


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([(0, 0)], ""),
        ([(0, 0), (0.5, 100)], ""),
        ([(0, 0), (2, 100)], "0:18"),
        ([(0, 500), (2, 600)], "0:08"),  # on from where an earlier run stopped
        ([(0, 0), (1, 1)], "16:39"),
        ([(0, 0), (20, 10)], "33:00"),
        ([(0, 0), (100, 10)], "2:45:00"),
        ([(0, 900), (1, 900), (5, 900)], ""),
        ([(0, 900), (1, 950), (2, 0), (4, 100)], "0:18"),  # begun anew
    ],
)
def test_the_time_left_is_of_what_came_lately(steps: list[tuple[float, int]], left: str) -> None:
    assert told(*steps).left(1000) == left


def test_a_million_steps_are_not_all_kept() -> None:
    pace = told(*((step / 1000, step) for step in range(30_000)))
    assert pace.speed == pytest.approx(1000, rel=0.05)


@given(st.integers(0, 10**15), st.integers(1, 10**15))
def test_a_share_is_in_the_unit_of_the_whole(done: int, total: int) -> None:
    assert share(done, total).endswith(f"/{size(total)}")


def test_what_matters_most_comes_first_and_only_bytes_are_told_as_bytes() -> None:
    line = ProgressLine()
    line.tell("fetching a/b", 20_000_000, 80_000_000)
    assert line.line == "fetching ██░░░░ 25% · 20/80 MB · a/b"
    line.tell("asking for a/b", 0, None)
    assert line.line == "asking for a/b"
    line.tell("model.layers.3.weight", 1, 2)
    assert line.line == "model.layers.3.weight █████░░░░░ 50%"
