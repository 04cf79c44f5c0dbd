"""Text that comes in pieces is the text that comes at once, and ends at the first stop string."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from vocabularies import byte_level_json, spaced_json, write_folder

from llamachat.core.detokenize import Detokenizer, StopMatcher
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import UsageError
from llamachat.formats.gguf import open_gguf
from llamachat.tokenizers.open import from_gguf, open_folder

quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def all_kinds(
    llama_models_dir: Path, smollm2_gguf: Path, spm: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Tokenizer]:
    folder = tmp_path_factory.mktemp("json")
    return [
        open_folder(llama_models_dir / "llama_models/llama3"),
        from_gguf(open_gguf(smollm2_gguf).metadata),
        spm,
        open_folder(write_folder(folder / "bytes", byte_level_json("<s>"))),
        open_folder(write_folder(folder / "spaces", spaced_json("first", "<s>"))),
        open_folder(write_folder(folder / "no prefix", spaced_json("never", "<s>"))),
    ]


def streamed(tokenizer: Tokenizer, ids: Sequence[int], continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, continues=continues)
    return [*map(detokenizer.add, ids), detokenizer.finish()]


@quick
@given(data=st.data())
def test_any_ids_give_the_text_of_all_at_once(all_kinds: list[Tokenizer], data: st.DataObject) -> None:
    for tokenizer in all_kinds:
        size = tokenizer.vocab_size  # bytes and control tokens are among the first or the last
        token = st.one_of(st.integers(0, 300), st.integers(size - 300, size), st.integers(0, size))
        ids = data.draw(st.lists(token, max_size=25))
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@quick
@given(text=st.text())
def test_a_text_comes_back_in_whole_characters(all_kinds: list[Tokenizer], text: str) -> None:
    for tokenizer in all_kinds:
        if tokenizer.decode(tokenizer.encode(text)) == text:
            pieces = streamed(tokenizer, tokenizer.encode(text))
            assert "".join(pieces) == text
            assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@quick
@given(text=st.text())
def test_a_stream_is_what_sentencepiece_decodes(spm: Tokenizer, sentencepiece_model: Path, text: str) -> None:
    reference = SentencePieceProcessor(model_file=str(sentencepiece_model))
    ids = reference.encode(text)
    assert "".join(streamed(spm, ids)) == reference.decode(ids)


def test_what_continues_a_text_keeps_its_space(spm: Tokenizer) -> None:
    ids = spm.encode("to be")
    assert "".join(streamed(spm, ids)) == "to be"
    assert "".join(streamed(spm, ids, continues=True)) == " to be"


def test_control_tokens_before_a_text_do_not_change_it(spm: Tokenizer) -> None:
    assert "".join(streamed(spm, [1, *spm.encode("to be"), 2])) == "to be"


def test_a_character_is_held_back_until_its_last_byte(all_kinds: list[Tokenizer]) -> None:
    bytewise = next(tokenizer for tokenizer in all_kinds if tokenizer.vocab_size == 257)
    ids = bytewise.encode("é😀")
    assert streamed(bytewise, ids) == ["", "é", "", "", "", "😀", ""]
    assert streamed(bytewise, ids[:-1]) == ["", "é", "", "", "", "\ufffd"]


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Slowly: grow the text by characters until it ends with a stop string."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@settings(deadline=None, max_examples=500)
@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3),
)
def test_text_ends_where_the_first_stop_string_begins(pieces: list[str], stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    for i, piece in enumerate(pieces):
        safe, stopped = matcher.add(piece)
        shown += safe
        seen = "".join(pieces[: i + 1])
        expected, expected_stop = cut_at_stop(seen, stops)
        assert stopped == expected_stop
        if stopped:
            assert shown == expected
        else:  # all is shown but the longest end that a stop string may begin with
            ends = (n for n in range(len(seen) + 1) if any(stop.startswith(seen[len(seen) - n :]) for stop in stops))
            assert shown == seen[: len(seen) - max(ends, default=0)]
    shown += matcher.finish()
    assert shown == cut_at_stop("".join(pieces), stops)[0]


def test_a_half_matched_stop_string_may_begin_again_within_itself() -> None:
    matcher = StopMatcher(["aab"])
    assert [matcher.add(text) for text in ("a", "a", "a", "b")] == [("", False), ("", False), ("a", False), ("", True)]


def test_nothing_is_shown_after_a_stop_string() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.add("go stop on") == ("go ", True)
    assert matcher.add("more") == ("", True)
    assert matcher.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError):
        StopMatcher(["a", ""])
