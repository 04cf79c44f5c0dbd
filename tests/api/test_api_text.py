"""`Llama.tokenizer` and `.formatter` against Meta's own Tokenizer and ChatFormat, and against sentencepiece."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pytest
from hash_engine import SPECIALS, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from vocabularies import meta_chat_format, meta_message

from llamachat.api.tokenizer import ChatFormat, Tokenizer
from llamachat.core.dialog import ChatML, Llama2, Llama3
from llamachat.errors import UsageError
from llamachat.tokenizers import open as tokenizer
from llamachat.tokenizers.open import open_file

FOUND = ("<|begin_of_text|>", "<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_7|>")
NAMES = st.sampled_from([*FOUND, "<|eot_id", "|>", "<|none|>", "<|eot_id|>|>"])
TEXTS = st.lists(NAMES | st.text(max_size=8), max_size=6).map("".join)
SETS = st.sets(st.sampled_from([*FOUND, "<|none|>"])) | st.just("all")


@pytest.fixture(scope="session")
def metas(llama_models_dir: Path) -> Any:
    """Meta's ChatFormat, whose `tokenizer` is Meta's Tokenizer."""
    return meta_chat_format(llama_models_dir)


@pytest.fixture(scope="session")
def inner(llama_models_dir: Path) -> tokenizer.Tokenizer:
    return open_file(llama_models_dir / "llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="session")
def ours(inner: tokenizer.Tokenizer) -> Tokenizer:
    return Tokenizer(inner, inner.eos_ids, None)


def test_facts_are_metas(ours: Tokenizer, metas: Any) -> None:
    theirs = metas.tokenizer
    for name in ("bos_id", "eos_id", "pad_id", "n_words", "special_tokens"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.stop_tokens == set(theirs.stop_tokens)


@given(text=TEXTS, bos=st.booleans(), eos=st.booleans(), allowed=SETS, disallowed=SETS | st.just(()))
def test_encoding_is_metas(
    ours: Tokenizer,
    metas: Any,
    text: str,
    bos: bool,
    eos: bool,
    allowed: Literal["all"] | set[str],
    disallowed: Literal["all"] | Collection[str],
) -> None:
    settings: dict[str, Any] = {"allowed_special": allowed, "disallowed_special": disallowed}
    try:
        expected = metas.tokenizer.encode(text, bos=bos, eos=eos, **settings)
    except ValueError:
        with pytest.raises(UsageError, match="it was not encoded"):
            ours.encode(text, bos=bos, eos=eos, **settings)
    else:
        assert ours.encode(text, bos=bos, eos=eos, **settings) == expected


@given(text=TEXTS)
def test_a_text_is_plain_unless_control_tokens_are_allowed(ours: Tokenizer, metas: Any, text: str) -> None:
    ids = ours.encode(text, bos=False, eos=False)
    assert ids == metas.tokenizer.encode(text, bos=False, eos=False)
    assert not set(ids) & set(ours.special_tokens.values())
    assert ours.decode(ids) == text


@given(ids=st.lists(st.integers(0, 128_255)))
def test_decoding_is_metas(ours: Tokenizer, metas: Any, ids: list[int]) -> None:
    assert ours.decode(ids) == ours.decode([-1, *ids, -1]) == metas.tokenizer.decode(ids)


@settings(max_examples=25)
@given(
    dialog=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), min_size=1
    )
)
def test_dialogs_messages_and_headers_are_metas(
    inner: tokenizer.Tokenizer, ours: Tokenizer, metas: Any, dialog: Any
) -> None:
    formatter = ChatFormat(Llama3(inner), ours.bos_id)
    # Their later code, which this is, no longer strips a content; Llama 3's did.
    theirs = [meta_message(message["role"], message["content"].strip()) for message in dialog]
    assert formatter.encode_dialog_prompt(dialog) == metas.encode_dialog_prompt(theirs).tokens
    for message, their in zip(dialog, theirs, strict=True):
        assert formatter.encode_message(message) == metas.encode_message(their, None)[0]
        assert formatter.encode_header(message) == metas._encode_header(message["role"])


def test_a_formatter_of_another_format_has_its_parts(spm: tokenizer.Tokenizer) -> None:
    chatml = ChatFormat(ChatML(byte_tokenizer()), -1)
    start, end = SPECIALS["<|im_start|>"], SPECIALS["<|im_end|>"]
    assert chatml.encode_header({"role": "user", "content": "hi"}) == [start, *b"user\n"]
    assert chatml.encode_message({"role": "user", "content": "hi"}) == [start, *b"user\nhi", end, *b"\n"]
    formatter = ChatFormat(Llama2(spm), 1)
    header, message = (
        each({"role": "user", "content": "hi"}) for each in (formatter.encode_header, formatter.encode_message)
    )
    assert message[: len(header)] == header == spm.encode("[INST]")
    assert formatter.encode_dialog_prompt([{"role": "user", "content": "hi"}]) == [1, *message]


def test_sentencepiece_is_as_in_llama_2(spm: tokenizer.Tokenizer, sentencepiece_model: Path) -> None:
    library, ours = SentencePieceProcessor(model_file=str(sentencepiece_model)), Tokenizer(spm, spm.eos_ids, None)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.n_words) == (1, 2, library.pad_id(), 32_000)
    for text in ("The quick", " two", "é 漢\n", ""):
        ids = ours.encode(text, bos=True, eos=True)
        assert ids == [1, *library.encode(text), 2]
        assert ours.decode(ids) == library.decode(ids) == text
    marked = ours.encode("a</s>b", bos=False, eos=False, allowed_special={"</s>"})
    assert marked == [*library.encode("a"), 2, *spm.encode("b", start=False)]


def test_a_model_without_bos_has_none_put_before_a_text(smollm2: tokenizer.Tokenizer) -> None:
    ours = Tokenizer(smollm2, smollm2.eos_ids, 2)
    assert ours.bos_id == -1 and ours.eos_id in smollm2.eos_ids and ours.pad_id == 2
    assert ours.encode("hi", bos=True, eos=True) == [*smollm2.encode("hi"), ours.eos_id]
