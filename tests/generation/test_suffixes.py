"""suffixes.py against a search through all places, and its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.generation import suffixes
from llamachat.generation.suffixes import GAP, GrowingText, SuffixArray, agreement

ids = st.lists(st.integers(0, 3), max_size=30)


def agrees(text: list[int], at: int, other: list[int]) -> int:
    """The slow definition of `agreement`."""
    ends = [other[len(other) - length :] for length in range(min(at, len(other)) + 1)]
    return max(len(end) for end in ends if text[at - len(end) : at] == end)


@given(texts=st.lists(ids, max_size=4), wanted=ids)
def test_a_suffix_array_finds_the_longest_agreement_there_is(texts: list[list[int]], wanted: list[int]) -> None:
    array = SuffixArray(texts)
    everything = [token for text in texts for token in (*text, GAP)]
    assert list(array.ids) == everything
    best = max((agrees(everything, at, wanted) for at in range(len(everything) + 1)), default=0)
    at, count = array.find(wanted)
    assert count == agreement(array.ids, at, wanted) >= min(best, suffixes.SORTED)


@given(texts=st.lists(ids, min_size=1, max_size=4), more=ids)
def test_a_growing_text_finds_the_latest_place_of_the_last_two_tokens_or_of_one(
    texts: list[list[int]], more: list[int]
) -> None:
    text = GrowingText()
    for each in texts:
        text.begin(each)
    for token in more:
        known = list(text.ids)
        place = text.add(token)
        two = [
            at for at in range(2, len(known) + 1) if known and known[at - 2 : at] == [known[-1], token] != [GAP, token]
        ]
        one = [at for at in range(1, len(known) + 1) if known[at - 1] == token]
        assert place == (two or one or [0])[-1]
        assert text.ids == [*known, token]


def test_a_sequence_that_goes_on_is_not_put_to_the_text_twice() -> None:
    text = GrowingText()
    text.begin([1, 2, 3])
    text.add(4)
    text.begin([1, 2, 3, 4, 5])
    assert text.ids == [1, 2, 3, 4, 5]
    text.begin([1, 2, 3, 6])
    assert text.ids == [1, 2, 3, 4, 5, GAP, 1, 2, 3, 6]


@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=8))
def test_a_growing_text_is_bounded_and_ends_as_its_sequence_does(lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffixes, "LARGEST", 64)
        text = GrowingText()
        for number, length in enumerate(lengths):
            sequence = [number * 7 + token for token in range(length)]
            text.begin(sequence)
            assert len(text.ids) <= 64 + suffixes.AGAIN + 1
            tail = min(length, 32)
            assert not tail or text.ids[-tail:] == sequence[-tail:]
