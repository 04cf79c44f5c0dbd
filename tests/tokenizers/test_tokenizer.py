"""Each tokenizer gives the ids of the library or program it stands for, and never a control token for plain text."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from vocabularies import (
    byte_level_json,
    byte_tokens,
    gpt2_metadata,
    meta_chat_format,
    smollm2_library,
    spaced_json,
    spm_metadata,
    write_folder,
)

from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, ModelError
from llamachat.tokenizers import gguf as gguf_tokenizers
from llamachat.tokenizers import meta as meta_tokenizers
from llamachat.tokenizers import spm as spm_tokenizers
from llamachat.tokenizers.open import from_gguf, open_folder

TEXTS = [
    "",
    "Hello, world! It's 2024-12-31; 1234567 things.",
    "   leading, \t tabs\n\n\nlines  and trailing   ",
    " ",
    "\n \r\n\t",
    "Привет, мир. مرحبا بالعالم! 你好，世界。 नमस्ते 안녕하세요",
    "😀👩‍👩‍👧‍👦 e\u0301 ½ ² ٣ \u00a0\u200b\u2028",
    "def f(x):\n    return x ** 2  # comment\n",
    "<|eot_id|><|im_end|></s><s>[INST] <<SYS>> <|begin_of_text|> <0x0A> ▁",
]
PIECES = [
    "<|",
    "|>",
    "eot_id",
    "<|eot_id|>",
    "<|im_end|>",
    "im_end",
    "<s>",
    "</s>",
    "<unk>",
    " ",
    "\n",
    "a",
    "é",
    "😀",
    "1",
]
spelling_text = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def llama3(llama_models_dir: Path) -> Tokenizer:
    return open_folder(llama_models_dir / "llama_models/llama3")


@pytest.fixture(scope="session")
def meta(llama_models_dir: Path) -> Any:
    return meta_chat_format(llama_models_dir).tokenizer


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_metadata: dict[str, Any]) -> Any:
    return smollm2_library(smollm2_metadata)


@pytest.fixture(scope="session")
def spm_from_gguf(sentencepiece_model: Path) -> Tokenizer:
    return from_gguf(spm_metadata(sentencepiece_model))


@pytest.fixture(scope="session")
def spm_reference(sentencepiece_model: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(sentencepiece_model))


@pytest.fixture(scope="session")
def all_kinds(llama3: Tokenizer, smollm2: Tokenizer, spm: Tokenizer, spm_from_gguf: Tokenizer) -> list[Tokenizer]:
    return [llama3, smollm2, spm, spm_from_gguf]


def test_llama3_names_and_numbers_its_control_tokens_as_meta(llama3: Tokenizer, meta: Any) -> None:
    assert llama3.specials == meta.special_tokens
    assert (llama3.vocab_size, llama3.bos_id) == (meta.n_words, meta.bos_id) == (128256, 128000)
    assert llama3.eos_ids == set(meta.stop_tokens) == {128001, 128008, 128009}


@pytest.mark.parametrize("text", TEXTS)
def test_llama3_gives_metas_ids(llama3: Tokenizer, meta: Any, text: str) -> None:
    assert llama3.encode(text) == meta.encode(text, bos=False, eos=False)
    assert llama3.encode_skeleton(text) == meta.encode(text, bos=False, eos=False, allowed_special="all")


@pytest.mark.parametrize(
    "text",
    ["Hello wörld 日本 😀 \n" * 60_000, "a" * 1_000_000, " " * 1_000_000, ("x" * 24_999 + "\n" * 25_001) * 20],
    ids=["words", "one word", "spaces", "long runs"],
)
def test_llama3_cuts_a_megabyte_where_meta_does(llama3: Tokenizer, meta: Any, text: str) -> None:
    assert llama3.encode(text) == meta.encode(text, bos=False, eos=False)


@quick
@given(text=st.text(alphabet=" \n\x1c\u00a0ab<", max_size=60))
def test_texts_are_cut_as_meta_cuts_them(meta: Any, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_tokenizers, "LONGEST_RUN", 3)
        patch.setattr(meta_tokenizers, "LONGEST_TEXT", 17)
        ours = list(meta_tokenizers.parts(text))
    parts = [text[i : i + 17] for i in range(0, len(text), 17)]
    assert ours == [cut for part in parts for cut in meta._split_whitespaces_or_nonwhitespaces(part, 3)]


@quick
@given(text=spelling_text)
def test_smollm2_from_gguf_gives_the_tokenizers_librarys_ids(
    smollm2: Tokenizer, smollm2_reference: Any, text: str
) -> None:
    text = text.encode(errors="replace").decode()
    expected = smollm2_reference.encode(text, add_special_tokens=False).ids
    if smollm2.decode(smollm2.encode(text)) == text:  # else it has bytes without a token, which the library drops too
        assert smollm2.encode_skeleton(text) == expected


def test_smollm2_has_what_its_metadata_says(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, set(smollm2.eos_ids)) == (49152, None, {2})
    assert smollm2.names["bos_token"] == "<|im_start|>" and smollm2.names["eos_token"] == "<|im_end|>"
    assert smollm2.encode_skeleton("<|im_start|>user\n") == [1, 4093, 198]


@quick
@given(text=st.one_of(spelling_text, st.sampled_from(TEXTS)))
@example(text="▁a  b \x00")
def test_sentencepiece_gives_its_own_ids(
    spm: Tokenizer, spm_from_gguf: Tokenizer, spm_reference: SentencePieceProcessor, text: str
) -> None:
    text = text.encode(errors="replace").decode()
    assert spm.encode(text) == spm_from_gguf.encode(text) == spm_reference.encode(text)


def test_a_dummy_space_comes_only_where_a_text_starts(spm: Tokenizer, spm_reference: SentencePieceProcessor) -> None:
    hello, me = spm_reference.piece_to_id(["Hello", "▁me"])
    assert spm.encode("Hello", start=False) == [hello]
    assert spm.encode("Hello") == [spm_reference.piece_to_id("▁Hello")]
    assert spm.encode_skeleton("</s>Hello me</s>") == [2, hello, me, 2]
    assert spm.encode_skeleton("<s>Hello me</s>") == [1, *spm.encode("Hello me"), 2], "behind BOS a text starts"


def test_gguf_may_deny_the_dummy_space(sentencepiece_model: Path, spm: Tokenizer) -> None:
    without = from_gguf(spm_metadata(sentencepiece_model, add_space_prefix=False, add_bos_token=False))
    assert without.encode("Hello") == spm.encode("Hello", start=False)
    assert without.bos_id is None and not without.dummy_prefix


@quick
@given(text=spelling_text)
def test_plain_text_never_gives_a_control_token_and_is_not_changed(
    all_kinds: list[Tokenizer], smollm2: Tokenizer, text: str
) -> None:
    for tokenizer in all_kinds:
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.specials.values())
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        if tokenizer is not smollm2:  # which has no token for some bytes
            assert tokenizer.decode(ids) == text.replace("▁", "▁" if tokenizer.vocab_size == 128256 else " ")


def test_a_skeleton_gives_every_control_token(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        for name, token in tokenizer.specials.items():
            assert tokenizer.encode_skeleton(name) == [token]
            assert tokenizer.token_bytes(token) == b""
            assert tokenizer.decode([token]) == ""


def test_lone_surrogates_become_replacement_characters(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def test_a_token_outside_the_vocabulary_has_no_bytes(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(tokenizer.vocab_size) == b""


@quick
@given(ids=st.lists(st.integers(0, 31_999), max_size=30))
def test_sentencepiece_decodes_alike(spm: Tokenizer, spm_reference: SentencePieceProcessor, ids: list[int]) -> None:
    ids = [i for i in ids if i not in (0, 35)]  # it writes ⁇ for <unk>; and keeps a first space that is <0x20>
    one = re.compile("\ufffd+")  # it puts one for each byte, not for each invalid part
    assert one.sub("?", spm.decode(ids)) == one.sub("?", spm_reference.decode(ids))


@quick
@given(ids=st.lists(st.integers(17, 49_151), max_size=30))
def test_byte_level_decodes_alike(smollm2: Tokenizer, smollm2_reference: Any, ids: list[int]) -> None:
    assert smollm2.decode(ids) == smollm2_reference.decode(ids)


@pytest.mark.parametrize("scheme", ["legacy", "always", "first", "never"])
@pytest.mark.parametrize("text", ["hello", " he", "<s>hello</s>he <s> he", "he\n😀", "", "▁he"])
def test_tokenizer_json_in_sentencepieces_manner_gives_the_librarys_ids(tmp_path: Path, scheme: str, text: str) -> None:
    library = spaced_json(scheme, "<s>", "</s>")
    ours = open_folder(write_folder(tmp_path, library))
    assert ours.encode_skeleton(text) == library.encode(text).ids
    assert ours.decode(ours.encode_skeleton(text)) == library.decode(library.encode(text).ids)


def test_tokenizer_json_continues_a_text_without_a_dummy_space(tmp_path: Path) -> None:
    for scheme in ("legacy", "always", "first"):
        ours = open_folder(write_folder(tmp_path / scheme, spaced_json(scheme, "<s>")))
        assert [ours.token_bytes(i) for i in ours.encode("he", start=False)] == [b"he"]
        assert [ours.token_bytes(i) for i in ours.encode("he")] == [b" he"]


def test_tokenizer_json_of_bytes_gives_the_librarys_ids(tmp_path: Path, smollm2_reference: Any) -> None:
    folder = write_folder(tmp_path, smollm2_reference, bos_token=None, eos_token={"content": "<|im_end|>"})
    ours = open_folder(folder)
    for text in TEXTS:
        assert ours.encode_skeleton(text) == smollm2_reference.encode(text, add_special_tokens=False).ids
        assert not set(ours.encode(text)) & set(ours.specials.values())
        assert ours.decode(ours.encode(text)) == text
    assert (ours.vocab_size, ours.bos_id, set(ours.eos_ids)) == (49152, None, {2})


@pytest.mark.parametrize(
    ("config", "adds", "expected"),
    [
        ({"bos_token": "<s>"}, True, 256),
        ({"bos_token": "<s>"}, False, None),
        ({"bos_token": "<s>", "add_bos_token": True}, False, 256),
        ({"bos_token": "<s>", "add_bos_token": False}, True, None),
        ({}, True, 256),
        ({}, False, None),
    ],
)
def test_tokenizer_json_begins_a_text_with_bos_where_the_model_was_trained_so(
    tmp_path: Path, config: dict[str, Any], adds: bool, expected: int | None
) -> None:
    library = byte_level_json("<s>", "</s>")
    if adds:
        library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    ours = open_folder(write_folder(tmp_path, library, **config))
    assert ours.bos_id == expected
    assert ours.encode("a") == library.encode("a", add_special_tokens=False).ids


def test_added_tokens_that_mark_structure_are_not_found_in_text_but_shown(tmp_path: Path) -> None:
    library = byte_level_json("<|a|>")
    library.add_tokens([AddedToken(name, special=False) for name in ("<tool_call>", "<|fim|>", "    ")])
    ours = open_folder(write_folder(tmp_path, library))
    assert ours.encode_skeleton("<tool_call>") == [257] and ours.token_bytes(257) == b"<tool_call>"
    assert ours.specials == {"<|a|>": 256, "<|fim|>": 258}
    assert not set(ours.encode("<tool_call><|fim|><|a|>")) & {256, 257, 258}
    assert ours.decode(ours.encode("<tool_call><|fim|><|a|>")) == "<tool_call><|fim|><|a|>"
    assert ours.encode("    ") == [259]  # plain text that the model has a token for


def test_a_control_token_may_swallow_space_around_it(tmp_path: Path) -> None:
    library = byte_level_json()
    library.add_special_tokens(
        [AddedToken("<end>", special=True, rstrip=True), AddedToken("<mid>", special=True, lstrip=True)]
    )
    ours = open_folder(write_folder(tmp_path, library))
    for text in ("a <end>\n b", "a <mid>\n b", " <end> <mid> "):
        assert ours.encode_skeleton(text) == library.encode(text).ids


def test_a_tokenizer_that_makes_control_tokens_of_plain_words_is_refused(tmp_path: Path) -> None:
    library = byte_level_json(merges=(("h", "i"),))
    library.add_special_tokens([AddedToken("hi", special=True)])
    with pytest.raises(FormatError, match="control token"):
        open_folder(write_folder(tmp_path, library)).encode("hi")


def test_sentencepiece_takes_further_tokens_from_the_configuration(sentencepiece_model: Path, tmp_path: Path) -> None:
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    added = {"32000": {"content": "<|im_end|>"}, "1": {"content": "<s>"}, "99999999999": {"content": "x"}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    )
    ours = open_folder(tmp_path)
    assert (ours.vocab_size, set(ours.eos_ids)) == (32001, {32000})
    assert ours.encode_skeleton("</s>a<|im_end|>") == [2, *ours.encode("a", start=False), 32000]
    assert "'x' 99999999999" in ours.notes[0]
    assert 32000 not in ours.encode("<|im_end|>")


def test_user_defined_pieces_of_sentencepiece_that_mark_structure_are_cut_in_text(sentencepiece_model: Path) -> None:
    metadata = spm_metadata(sentencepiece_model)
    for name, kind in (("<tool>", 4), ("<|im_end|>", 4), ("§§§", 4)):
        metadata["tokenizer.ggml.tokens"].append(name)
        metadata["tokenizer.ggml.scores"].append(0.0)
        metadata["tokenizer.ggml.token_type"].append(kind)
    ours = from_gguf(metadata)
    assert ours.specials["<|im_end|>"] == 32001 and "<tool>" not in ours.specials
    assert ours.encode_skeleton("<tool><|im_end|>") == [32000, 32001]
    assert not {32000, 32001} & set(ours.encode("<tool> <|im_end|>"))
    assert ours.encode("§§§", start=False) == [32002]


def test_gguf_gathers_all_ids_that_end_a_turn() -> None:
    ours = from_gguf(gpt2_metadata(eot_token_id=3, eom_token_id=4, bos_token_id=5))
    assert ours.eos_ids == {257, 3, 4} and ours.bos_id == 5
    assert not {3, 4, 5} & set(ours.encode("".join(map(chr, range(128)))))  # named by the metadata, so control tokens


@pytest.mark.parametrize(("pre", "bos"), [("llama-bpe", 257), ("smollm", None)])
def test_gguf_says_by_the_splitting_whether_bos_comes_first_when_nothing_else_does(pre: str, bos: int | None) -> None:
    assert from_gguf(gpt2_metadata(pre=pre, bos_token_id=257)).bos_id == bos


def test_gguf_takes_every_way_of_splitting_it_lists() -> None:
    text = "It's 12345 Ünïcode!?\n\n  x\tHELLO world's  "
    for pre in gguf_tokenizers.SPLITS:
        tokenizer = from_gguf(gpt2_metadata(pre=pre))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="session")
def o200k(smollm2_metadata: dict[str, Any]) -> tuple[Any, Any]:
    """OpenAI's own way to split a text, over SmolLM2's merges; and the same as a GGUF file says it."""
    import tiktoken
    import tiktoken_ext.openai_public as public

    ours = from_gguf(smollm2_metadata | {"tokenizer.ggml.pre": "gpt-4o"})
    ranks = {ours.token_bytes(token): token for token in range(17, ours.vocab_size)}
    ranks = {bytes([byte]): 10**6 + byte for byte in range(256)} | ranks  # a few control characters are no tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: ranks)
        pattern = public.o200k_base()["pat_str"]
    return ours, tiktoken.Encoding("o200k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@quick
@given(text=st.one_of(spelling_text, st.text(), st.text("aAbBéÉ'sSdD 12\n/.\u0301\u01c5")))
@example("WE'LL don'T say HelloWorld's 12345/\n\n x")
def test_gpt_4os_way_of_splitting_is_tiktokens(o200k: tuple[Any, Any], text: str) -> None:
    ours, theirs = o200k
    expected = theirs.encode_ordinary(text)
    assert ours.encode(text) == [token for token in expected if token < 10**6]


MERGED: dict[str, Any] = {
    "tokens": [*byte_tokens(), "he", "ll", "hell", "hello", "ĊĊ", "<|b|>", "<|e|>"],
    "merges": ["hell o", "h e", "l l", "he ll", "Ċ Ċ"],  # products before their parts, too
    "token_type": [1] * 261 + [3, 3],
    "eos_token_id": 262,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": 260},
        {"eot_token_id": 260},
        {"token_type": [1] * 258 + [3] + [1] * 2 + [3, 3]},
        {"token_type": [1] * 258 + [5] + [1] * 2 + [3, 3]},
        {"token_type": [1] * 256 + [3, 3, 3] + [1] * 2 + [3, 3]},
        {"merges": [*MERGED["merges"], "x y", "xy z", "a zz"]},
        {"tokens": [t for t in MERGED["tokens"] if t != "hell"], "token_type": [1] * 260 + [3, 3], "eos_token_id": 261},
    ],
    ids=["eos", "eot", "control", "unused", "several", "no product", "no part"],
)
@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_gguf_tokens_that_no_text_may_give_take_part_in_merges(changes: dict[str, Any], pre: str) -> None:
    """As in llama.cpp, but that text which would be such a token is what the token is made of."""
    ours = from_gguf(gpt2_metadata(**{**MERGED, "pre": pre, **changes}))
    hello = ours.encode("hello")
    assert [ours.token_bytes(i) for i in hello] == [b"hello"], "the longer word is found"
    for text in ("hell", "hellhell", "\n\n", "\n\n\n", "he", "xyz", "hello\n\nhell"):
        ids = ours.encode(text)
        assert not set(ids) & set(ours.specials.values()) and ours.decode(ids) == text


def test_gguf_merges_that_chain_a_product_on_do_not_nest_calls() -> None:
    merges = ["a" * n + " a" for n in range(1, 1500)]
    ours = from_gguf(gpt2_metadata(merges=merges, pre="gpt-2"))
    assert ours.encode("a" * 1499) == [ours.encode("a")[0]] * 1499


@pytest.mark.parametrize("key", ["bos", "eos", "unknown"])
@pytest.mark.parametrize("value", [None, 32000, 0xFFFFFFFF])
def test_a_sentencepiece_gguf_without_an_id_or_with_one_of_no_token_has_llama_cpps_default(
    sentencepiece_model: Path, key: str, value: int | None
) -> None:
    metadata = spm_metadata(sentencepiece_model)
    if value is None:
        del metadata[f"tokenizer.ggml.{key}_token_id"]
    else:
        metadata[f"tokenizer.ggml.{key}_token_id"] = value
    ours = from_gguf(metadata)
    assert (ours.bos_id, ours.eos_ids, ours.specials["<unk>"]) == (1, {2}, 0)
    assert [f"{key} {value}" in note for note in ours.notes] == [True] * (value is not None)


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "eom", "padding"])
def test_a_gguf_id_that_no_token_has_is_ignored_with_a_note(key: str) -> None:
    for value in (258, -1, 0xFFFFFFFF):
        ours = from_gguf(gpt2_metadata(**{"eos_token_id": 257, f"{key}_token_id": value}))
        assert ours.eos_ids == (set() if key == "eos" else {257}) and ours.bos_id is None
        assert [str(value) in note for note in ours.notes] == [True] * (key != "padding")


def test_gguf_tokens_without_a_text_or_a_type_are_harmless(sentencepiece_model: Path) -> None:
    metadata = spm_metadata(sentencepiece_model)
    metadata["tokenizer.ggml.tokens"][500:502] = ["", ""]
    metadata["tokenizer.ggml.token_type"][600] = 0
    for ours in (from_gguf(metadata), from_gguf(gpt2_metadata(tokens=[*byte_tokens(), "", "<|end|>"], merges=["a c"]))):
        assert ours.token_bytes(256 if ours.vocab_size == 258 else 500) == b""
        assert ours.decode(ours.encode("Hello [EMPTY_500] [EMPTY_256]")) == "Hello [EMPTY_500] [EMPTY_256]"
    assert from_gguf(metadata).token_bytes(600) == from_gguf(spm_metadata(sentencepiece_model)).token_bytes(600)


def test_gguf_without_a_way_of_splitting_has_llama_cpps_default() -> None:
    old, named = from_gguf(gpt2_metadata(pre=None)), from_gguf(gpt2_metadata(pre="default"))
    assert old.encode("It's 12345 ab!") == named.encode("It's 12345 ab!")


# ---- files beside a tokenizer ----


def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


BESIDE: dict[str, dict[str, Any]] = {
    "names": {"special_tokens_map.json": {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}},
    "names twice": {
        "special_tokens_map.json": {"bos_token": "<|begin|>", "eos_token": "<|end|>"},
        "tokenizer_config.json": {"eos_token": "<|begin|>"},
    },
    "a plain token is named": {"tokenizer_config.json": {"eos_token": "ab", "bos_token": "<|begin|>"}},
    "added": {"added_tokens.json": {"<|im_start|>": 260, "<|im_end|>": 261, "<tool>": 262, "§§": 263}},
    "added and named": {
        "added_tokens.json": {"<|im_end|>": 260},
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
    },
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "257": {"content": "ab", "special": True},
                "258": {"content": "<|begin|>", "special": True},
                "260": {"content": "<|im_end|>", "special": True, "rstrip": True},
                "261": {"content": "§§", "special": False, "normalized": False},
            },
            "eos_token": "<|im_end|>",
        }
    },
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_tokenizer_json_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, byte_level_json("<|begin|>", "<|end|>", merges=(("a", "b"), ("c", "d"))))
    for file, content in ({"tokenizer_config.json": {}} | BESIDE[name]).items():
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"} if "config" in file else {}
        (tmp_path / file).write_text(json.dumps(kind | content))
    ours, theirs = open_folder(tmp_path), reference(tmp_path)
    for text in ("<|im_start|>cd<|im_end|>\n §§a<|begin|>ab", "<|end|> <|im_end|>  c<tool>§§§"):
        assert ours.encode_skeleton(text) == theirs(text, add_special_tokens=False)["input_ids"]
        plain = ours.encode(text.replace("ab", ""))
        assert not set(plain) & set(ours.specials.values()) and ours.decode(plain) == text.replace("ab", "")
    assert ours.names.get("bos_token") == theirs.bos_token and ours.names.get("eos_token") == theirs.eos_token
    assert ours.eos_ids == ({theirs.eos_token_id} if theirs.eos_token else set())


@pytest.mark.parametrize("beside", ["added_tokens.json", "added_tokens_decoder"])
def test_tokens_beside_a_sentencepiece_model_are_its_own(
    tmp_path: Path, sentencepiece_model: Path, spm: Tokenizer, beside: str
) -> None:
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    added = {"<|im_start|>": 32000, "<|im_end|>": 32001, "<tool>": 32002, "§§": 32003}
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    if beside == "added_tokens.json":
        (tmp_path / beside).write_text(json.dumps(added))
    else:
        config[beside] = {str(i): {"content": name, "special": name[1] == "|"} for name, i in added.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = open_folder(tmp_path)
    assert ours.vocab_size == 32004 and ours.eos_ids == {32001} and ours.names["eos_token"] == "<|im_end|>"
    ids = ours.encode_skeleton("<|im_start|>Hello<tool><|im_end|>")
    assert ids == [32000, *spm.encode("Hello", start=False), 32002, 32001]
    plain = ours.encode("<|im_start|>a §§ <tool>")
    assert set(plain) & set(added.values()) == {32003} and ours.decode(plain) == "<|im_start|>a §§ <tool>"
    assert ours.token_bytes(32002) == b"<tool>" and ours.token_bytes(32000) == b""


def test_a_control_token_may_take_an_id_inside_a_sentencepiece_vocabulary(
    tmp_path: Path, sentencepiece_model: Path, spm: Tokenizer, spm_reference: SentencePieceProcessor
) -> None:
    """Some fine-tunes give a rare word's id to a new token, or call a word of the vocabulary a control token."""
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    th, word = spm_reference.piece_to_id(["▁th", "▁commonly"])
    decoder = {str(word): {"content": "<|im_end|>", "special": True}, str(th): {"content": "▁th", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    ours = open_folder(tmp_path)
    assert ours.encode("the other thing") == spm.encode("the other thing"), "longer words are made of it as before"
    for text in ("th", "commonly", "<|im_end|>", "a th commonly <|im_end|> b"):
        assert not {th, word} & set(ours.encode(text)) and ours.decode(ours.encode(text)) == text
    assert ours.encode_skeleton("<|im_end|>") == [word] and ours.token_bytes(word) == b""


@pytest.mark.parametrize("legacy", [None, True, False])
def test_sentencepieces_dummy_space_behind_control_tokens_is_as_legacy_says(
    tmp_path: Path, sentencepiece_model: Path, spm: Tokenizer, legacy: bool | None
) -> None:
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    ours = open_folder(tmp_path)
    first, later = (spm.encode("Hello", start=starts) for starts in (legacy is not False, legacy is True))
    assert ours.encode_skeleton("<s>Hello</s>Hello") == [1, *first, 2, *later]
    assert ours.encode("Hello") == spm.encode("Hello")


def test_add_bos_token_null_is_not_false(tmp_path: Path) -> None:
    library = byte_level_json("<s>")
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    assert open_folder(write_folder(tmp_path, library, bos_token="<s>", add_bos_token=None)).bos_id == 256


@pytest.mark.parametrize("file", ["special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"a": NaN}', "[" * 100_000])
def test_a_damaged_file_beside_a_tokenizer_is_one_line(tmp_path: Path, file: str, text: str) -> None:
    write_folder(tmp_path, byte_level_json("<s>"))
    (tmp_path / file).write_text(text)
    with pytest.raises(ModelError, match=file):
        open_folder(tmp_path)


@quick
@given(
    content=st.dictionaries(
        st.sampled_from(
            ["added_tokens_decoder", "bos_token", "eos_token", "legacy", "additional_special_tokens", "<x>"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(["", "<s>", "<|y|>", "a"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["1", "300", "-1", "content", "special", "²"]), inner, max_size=3)
            ),
        ),
    ),
    file=st.sampled_from(["special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"]),
)
def test_whatever_lies_beside_a_tokenizer_it_opens_or_is_a_model_error(
    tmp_path: Path, sentencepiece_model: Path, content: dict[str, Any], file: str
) -> None:
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    byte_level_json("<s>").save(str(tmp_path / "tokenizer.json"))
    try:
        ours = open_folder(tmp_path)
        assert all(0 <= i < ours.vocab_size for i in ours.encode_skeleton("<s><|y|>a<x>b"))
    except ModelError:
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "bert"},
        {"model": ["gpt2"]},
        {"pre": "never-heard-of"},
        {"pre": 3},
        {"tokens": None},
        {"tokens": []},
        {"tokens": [1, 2]},
        {"tokens": ["a", "a"], "token_type": [1, 1]},
        {"token_type": [1]},
        {"token_type": [1.0] * 258},
        {"token_type": [9] * 258},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["a b c"]},
        {"merges": [" ab"]},
        {"eos_token_id": True},
        {"eot_token_id": "257"},
    ],
)
def test_damaged_gguf_metadata_is_a_format_error(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        from_gguf(gpt2_metadata(**changes))


def test_an_unknown_way_of_splitting_is_named() -> None:
    with pytest.raises(FormatError, match="never-heard-of"):
        from_gguf(gpt2_metadata(pre="never-heard-of"))


@pytest.mark.parametrize(
    "changes",
    [{"scores": None}, {"scores": [0.0]}, {"scores": [float("nan")] * 32000}, {"tokens": ["a"]}],
)
def test_damaged_sentencepiece_metadata_is_a_format_error(sentencepiece_model: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        from_gguf(spm_metadata(sentencepiece_model, **changes))


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    import base64

    return b"\n".join(change([base64.b64encode(bytes([i])) + b" %d" % i for i in range(256)])) + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        _lines(lambda lines: lines[:-1]),
        _lines(lambda lines: [*lines, lines[0]]),
        _lines(lambda lines: [*lines, b"YWI= 999"]),
        _lines(lambda lines: [*lines, b"YWI= 3"]),
        _lines(lambda lines: [*lines, b"YWI="]),
        _lines(lambda lines: [*lines, b"YWI= x"]),
        _lines(lambda lines: [*lines, b"YWI= " + b"9" * 5000]),
        _lines(lambda lines: [*lines, b"A 256"]),
        b"",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x05hello",
        b"\xff" * 100,
        bytes(100),
    ],
)
def test_a_damaged_tokenizer_model_is_a_format_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(FormatError):
        open_folder(tmp_path)


@quick
@given(cut=st.integers(0, 493_000), junk=st.binary(max_size=9))
def test_a_cut_or_overwritten_sentencepiece_model_opens_or_is_a_format_error(
    sentencepiece_model: Path, tmp_path: Path, cut: int, junk: bytes
) -> None:
    data = sentencepiece_model.read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data[:cut] + junk + (data[cut + len(junk) :] if junk else b""))
    try:
        tokenizer = open_folder(tmp_path)
    except FormatError:
        return
    assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.encode("Hello <s>"))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "nonsense", '{"model": {"type": "BPE", "vocab": {"a": 9e9}, "merges": []}}', "[" * 100_000],
)
def test_a_damaged_tokenizer_json_is_a_format_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FormatError):
        open_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ModelError):
        open_folder(tmp_path)


def test_ids_that_no_model_has_are_a_format_error(tmp_path: Path) -> None:
    library = byte_level_json()
    huge = json.loads(library.to_str())
    huge["model"]["vocab"]["zz"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(huge))
    with pytest.raises(FormatError, match="4294967295"):
        open_folder(tmp_path)


def test_a_librarys_panic_is_a_format_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    twice = {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": ["a b"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": twice}))
    with pytest.raises(FormatError):
        open_folder(tmp_path)
    assert capfd.readouterr().err == "", "the panic is not printed, which could hold what the file says"


def test_an_expression_that_gives_up_on_a_text_is_a_format_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = byte_level_json()
    steps = [pre_tokenizers.Split(Regex("(a+)+$"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer = open_folder(write_folder(tmp_path, library))
    with pytest.raises(FormatError, match="a text: PanicException"):
        tokenizer.encode("a" * 40 + "!")
    assert capfd.readouterr().err == ""


LONGER = normalizers.Replace("a", "aaaaaaaaaaaaaaaa")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Sequence([LONGER] * 8)},
        {"normalizer": normalizers.Sequence([normalizers.Sequence([LONGER])])},
        {"normalizer": normalizers.Sequence([normalizers.Replace(Regex(""), "a")] * 40)},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 40)},
    ],
)
def test_a_tokenizer_json_whose_steps_would_fill_the_memory_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    library = byte_level_json()
    for name, step in changes.items():
        setattr(library, name, step)
    with pytest.raises(FormatError, match="longer without bound"):
        open_folder(write_folder(tmp_path, library))


@pytest.mark.parametrize(("length", "refused"), [(33, False), (100_000, True)])
def test_a_normalizer_that_makes_much_of_a_character_is_refused(length: int, refused: bool) -> None:
    charsmap = b"\4\0\0\0" + b"trie" + b"x" * length + b"\0"
    with pytest.raises(FormatError, match="more than 64 bytes") if refused else nullcontext():
        spm_tokenizers.refuse_long_replacements([charsmap], "x")


def test_an_unknown_decoder_is_named(tmp_path: Path) -> None:
    library = byte_level_json()
    text = json.loads(library.to_str()) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(FormatError, match="WordPiece"):
        open_folder(tmp_path)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="MiB"):
        open_folder(tmp_path)


def test_only_the_library_that_is_needed_is_imported(sentencepiece_model: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from llamachat.tokenizers import side, spm; "
        f"spm.from_proto(Path({str(sentencepiece_model)!r}).read_bytes(), side.Side(), '')\n"
        "print(*{'tokenizers', 'tiktoken', 'sentencepiece', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sentencepiece"]
