"""Short texts in ASCII, which are encoded without the library: always to the ids that the library gives."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import gpt2_metadata

from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError
from llamachat.tokenizers import short_texts
from llamachat.tokenizers.gguf import SPLITS
from llamachat.tokenizers.open import from_gguf

WORDS = st.sampled_from(
    ["It's", "WE'LL", "don'T", " the", "Hello", "HelloWorld", "1234567", " 12", "\r\n", "\n\n ", "\t", "  "]
)
TEXT = st.lists(st.one_of(WORDS, st.text(st.characters(max_codepoint=127), max_size=6)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def few(smollm2_metadata: dict[str, Any]) -> dict[str, Any]:
    """SmolLM2's first 3,000 tokens, and the merges that make them."""
    keys = {name: smollm2_metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges")}
    tokens = keys["tokens"][:3000]
    known = {*tokens}
    merges = [merge for merge in keys["merges"] if merge.replace(" ", "") in known]
    return gpt2_metadata(tokens=tokens, token_type=keys["token_type"][:3000], merges=merges, eos_token_id=2)


@pytest.fixture(scope="module", params=sorted({patterns: pre for pre, patterns in SPLITS.items()}.values()))
def pair(request: pytest.FixtureRequest, few: dict[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    """With each way of splitting: as it is, and by the library alone."""
    keys = few | {"tokenizer.ggml.pre": request.param}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_texts, "BUDGET", 1 << 60)
        short = from_gguf(keys)
        patch.setattr(short_texts, "BUDGET", -1)
        return short, from_gguf(keys)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_the_ids_are_the_librarys(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    short, library = pair
    assert short.encode(text) == library.encode(text)


def test_a_prompt_needs_no_library_until_enough_was_encoded(
    few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = from_gguf(few)
    monkeypatch.setattr("tokenizers.Tokenizer", None)
    assert ours.encode_skeleton("<|im_start|>user\nhi there, world<|im_end|>\n")
    for text in ("é", "a b " * (short_texts.BUDGET // 4 + 1)):
        with pytest.raises(FormatError, match="not callable"):
            ours.encode(text)


@pytest.mark.parametrize("text", ["x" * (short_texts.LONGEST + 1), "hell", "[EMPTY_256]", "a<tag b"])
def test_what_is_not_sure_is_left_to_the_library(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*(chr(i) for i in range(33, 127)), "he", "ll", "hell", "<tag"]
    types = [1] * 96 + [3, 4]
    keys = {
        "tokens": tokens,
        "token_type": types,
        "merges": ["h e", "l l", "he ll"],
        "pre": "gpt-2",
        "eos_token_id": 96,
    }
    ours = from_gguf(gpt2_metadata(**keys))
    monkeypatch.setattr(short_texts, "BUDGET", -1)
    assert ours.encode(text) == from_gguf(gpt2_metadata(**keys)).encode(text)
