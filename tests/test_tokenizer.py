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
    meta_chat_format,
    smollm2_library,
    spaced_json,
    spm_metadata,
    write_folder,
)

from llamachat.errors import FormatError, ModelError
from llamachat.tokenizer import Tokenizer, from_gguf, open_folder
from llamachat.tokenizers import gguf as gguf_tokenizers
from llamachat.tokenizers import meta as meta_tokenizers
from llamachat.tokenizers import spm as spm_tokenizers

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
        patch.setattr(meta_tokenizers, "_LONGEST_RUN", 3)
        patch.setattr(meta_tokenizers, "_LONGEST_TEXT", 17)
        ours = list(meta_tokenizers._parts(text))
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
    assert spm.encode_skeleton("<s>Hello me</s>") == [1, hello, me, 2]


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
    assert ours.encode_skeleton("<s>a<|im_end|>") == [1, *ours.encode("a", start=False), 32000]
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


def gpt2_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of 258 tokens."""
    tokens = [*byte_tokens(), "ab", "<|end|>"]
    values = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "token_type": [1] * 257 + [3],
        "merges": ["a b"],
        "eos_token_id": 257,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def test_gguf_gathers_all_ids_that_end_a_turn() -> None:
    ours = from_gguf(gpt2_metadata(eot_token_id=3, eom_token_id=4, bos_token_id=5))
    assert ours.eos_ids == {257, 3, 4} and ours.bos_id == 5
    assert not {3, 4, 5} & set(ours.encode("".join(map(chr, range(128)))))  # named by the metadata, so control tokens


@pytest.mark.parametrize(("pre", "bos"), [("llama-bpe", 257), ("smollm", None)])
def test_gguf_says_by_the_splitting_whether_bos_comes_first_when_nothing_else_does(pre: str, bos: int | None) -> None:
    assert from_gguf(gpt2_metadata(pre=pre, bos_token_id=257)).bos_id == bos


def test_gguf_takes_every_way_of_splitting_it_lists() -> None:
    text = "It's 12345 Ünïcode!?\n\n  x\tHELLO world's  "
    for pre in gguf_tokenizers._SPLITS:
        tokenizer = from_gguf(gpt2_metadata(pre=pre))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "bert"},
        {"model": ["gpt2"]},
        {"pre": None},
        {"pre": "never-heard-of"},
        {"pre": 3},
        {"tokens": None},
        {"tokens": []},
        {"tokens": [1, 2]},
        {"tokens": ["a", "a"], "token_type": [1, 1]},
        {"tokens": ["a", ""], "token_type": [1, 1]},
        {"token_type": [1]},
        {"token_type": [1.0] * 258},
        {"token_type": [9] * 258},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["a b c"]},
        {"merges": ["a zz"]},
        {"merges": ["< |"]},
        {"eos_token_id": 258},
        {"eos_token_id": -1},
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


NO_UNKNOWN: dict[str, Any] = {"token_type": [1] * 32000, "unknown_token_id": None}


@pytest.mark.parametrize(
    "changes",
    [{"scores": None}, {"scores": [0.0]}, {"scores": [float("nan")] * 32000}, {"tokens": ["a"]}, NO_UNKNOWN],
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
        "import sys; from pathlib import Path; from llamachat.tokenizers import spm; "
        f"spm.from_proto(Path({str(sentencepiece_model)!r}).read_bytes(), {{}}, '')\n"
        "print(*{'tokenizers', 'tiktoken', 'sentencepiece', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sentencepiece"]
