"""Offsets of tokens in a text: exact where the tokens are its bytes, else as near as two texts can be brought together."""

import unicodedata

import pytest
from checkpoints import save_tokenizer
from headed import fast_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from llamachat.core.tokenizer import Tokenizer
from llamachat.generation.offsets import Offsets, offsets
from llamachat.tokenizers.open import open_folder

TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab  \n\tﬁ½Ａé日🦊\u0301\u00a0")))


def of(tokenizer: Tokenizer, text: str) -> Offsets:
    return offsets(tokenizer, text, tokenizer.encode(text))


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    fast_tokenizer(folder := tmp_path_factory.mktemp("bytewise"))
    return open_folder(folder)


@pytest.fixture(scope="module")
def normalising(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """sentencepiece's NFKC, which also leaves spaces out."""
    save_tokenizer(folder := tmp_path_factory.mktemp("normalising"))
    return open_folder(folder)


@given(text=TEXTS)
def test_tokens_that_are_the_texts_bytes_have_exact_offsets(bytewise: Tokenizer, text: str) -> None:
    found = of(bytewise, text)
    assert found.whole
    at = 0
    for piece, (start, end) in zip(found.pieces, found.ranges, strict=True):
        before, behind = len(text[:start].encode()), len(text[:end].encode())
        assert before <= at < at + len(piece) <= behind  # no character is cut
        assert not text[start:end].encode()[: at - before].startswith(text[start].encode())
        at += len(piece)
    assert at == len(text.encode())


@given(text=TEXTS)
def test_any_run_of_tokens_is_a_part_of_the_text_that_holds_what_they_decode_to(bytewise: Tokenizer, text: str) -> None:
    found = of(bytewise, text)
    for first in range(0, len(found.ranges), 3):
        start, end = found.between(first, last := min(first + 2, len(found.ranges) - 1))
        decoded = b"".join(found.pieces[first : last + 1]).decode(errors="ignore")
        assert decoded.strip() in text[start:end] and found.exact(first, last)


@given(text=TEXTS)
def test_what_a_normaliser_changed_stays_in_order_and_within_the_text(normalising: Tokenizer, text: str) -> None:
    found = of(normalising, text)
    starts = [start for start, _ in found.ranges]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= len(text) for start, end in found.ranges)


@given(
    words=st.lists(st.text("abcdefﬁ½Ａéß日🦊", min_size=1), min_size=1), gaps=st.sampled_from([" ", "  ", " \n ", "\t"])
)
def test_words_are_found_whatever_their_normal_form_is(normalising: Tokenizer, words: list[str], gaps: str) -> None:
    text = gaps.join(words)
    found, at = of(normalising, text), 0
    for word in words:
        read = unicodedata.normalize("NFKC", word)
        tokens = [i for i, (start, end) in enumerate(found.ranges) if at <= start and end <= at + len(word)]
        pieces = b"".join(found.pieces[i] for i in tokens if text[slice(*found.ranges[i])].strip())
        assert pieces.decode(errors="replace").strip() == read
        assert found.between(tokens[0], tokens[-1]) == (at, at + len(word))
        at += len(word) + len(gaps)


def test_a_part_that_alone_is_read_otherwise_is_not_exact(normalising: Tokenizer) -> None:
    found = of(normalising, "the ﬁx")
    at = next(i for i, piece in enumerate(found.pieces) if piece == b"f")
    assert found.between(at, at) == (4, 5) and not found.exact(at, at)
    assert found.between(at, at + 1) == (4, 5) and found.exact(at, at + 1)
    assert not found.whole and found.exact(0, 0)


def test_an_unknown_character_is_what_its_token_was_read_from() -> None:
    class Unknown:
        """Has no token for anything but small letters and spaces."""

        dummy_prefix = True

        def encode(self, text: str, *, start: bool = True) -> list[int]:
            return [32, *(ord(char) if char in "abcdefgh " else 0 for char in text)]

        def token_bytes(self, token: int) -> bytes:
            return bytes([token]) if token else b""

    text = "ab日cd ÄÖ h"
    found = offsets(Unknown(), text, Unknown().encode(text))  # type: ignore[arg-type]
    assert [text[start:end] for start, end in found.ranges][1:5] == ["a", "b", "日", "c"]
    assert text[slice(*found.between(7, 8))] == "ÄÖ" and text[slice(*found.between(10, 10))] == "h"
