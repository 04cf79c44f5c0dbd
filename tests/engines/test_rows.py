"""Rows of logits lie where earlier ones lay, but never where somebody still has any of these."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batch_engines import MODELS, SIZE, caches, native, together
from test_native import tokens_of

from llamachat.core.tensors import Array
from llamachat.engines.native import rows
from llamachat.engines.native.rows import Rows


def test_memory_is_used_again_once_nobody_has_a_view_of_it() -> None:
    room = Rows()
    first = room(4, 1000)[1:, :900]
    place = first.__array_interface__["data"][0]
    part = first[2][5:9]
    del first
    assert not np.shares_memory(part, room(4, 1000))  # a part of a part is enough
    del part
    assert room(4, 1000)[1:].__array_interface__["data"][0] == place


def test_what_is_kept_for_later_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGEST", 4000)
    room = Rows()
    assert room(1, 1001).base is None and room(1, 1000).base is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=40))
def test_rows_that_somebody_has_are_never_written_to(steps: list[tuple[int, int, bool]]) -> None:
    room, held = Rows(), list[Array]()
    for number, (count, width, keeps) in enumerate(steps):
        given = room(count, width)
        assert given.shape == (count, width)
        given[:] = number
        values = [float(each.flat[0]) for each in held if each.size]
        assert values == sorted(set(values)) and all((each == each.flat[0]).all() for each in held if each.size)
        if keeps:
            held.append(given[:, : width // 2])


def test_logits_stay_what_they_are_while_more_are_computed() -> None:
    engine, texts = native("grouped", 4 * SIZE), caches(4)
    ids = tokens_of(MODELS["grouped"], 60)
    steps = [together(engine, texts, [[token]] * 4) for token in ids[:20]]
    kept = [logits.copy() for logits in steps]
    row = steps.pop()[2]
    again, expected = native("grouped", 4 * SIZE), caches(4)
    for token, logits in zip(ids[:20], kept, strict=True):
        assert np.array_equal(together(again, expected, [[token]] * 4), logits)
    del steps
    before = row.copy()
    for token in ids[20:]:
        together(engine, texts, [[token]] * 4)
    assert np.array_equal(row, before)
