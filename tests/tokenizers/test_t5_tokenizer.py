"""T5's tokenizer gives the ids of sentencepiece and of transformers, from each of its files; no text gives a sentinel."""

import json
import random
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from t5_models import save_t5_gguf, t5_model
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import T5Tokenizer
from vocabularies import spm_metadata

from llamachat import Llama
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError
from llamachat.tokenizers.open import from_gguf, open_folder

SENTINELS = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
PIECES = [
    *("a", "s", "test", "the ", "what", " ", "   ", "\n", "\t", "\r\n", "é", "ﬁ", "½", "①", "Ａ", "日本", "😀", "▁", ":", "~"),
    *("\u00a0", "\u3000", "\u200b", "\u2028", "\ufeff", "\x00", "\x7f", "<", "</s>", "<pad>", "<unk>", "<extra_id_0>"),
    *("<extra_id_99>", "<extra_id_100>", "extra_id_0>", "<extra_", "id_7>"),
]  # fmt: skip
varied = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
quick = settings(max_examples=150)


def varied_texts() -> list[str]:
    chance = random.Random(7)
    made = ["".join(chance.choices(PIECES, k=chance.randrange(1, 14))) for _ in range(490)]
    return [*made, "", " ", "  ", "\n", "\u200b", " test", "test ", " a  test\n", "▁a", "e\u0301"]


@dataclass
class T5:
    """The same vocabulary in the files that there are of it, and its references."""

    library: SentencePieceProcessor
    reference: T5Tokenizer
    spiece: Tokenizer
    fast: Tokenizer
    gguf: Tokenizer

    @property
    def all(self) -> tuple[Tokenizer, ...]:
        return self.spiece, self.fast, self.gguf


def charsmap_of(model: Path) -> bytes:
    """The normalizer's table: what lies between its name and its switches, at the end of the file, behind its length."""
    data = model.read_bytes()
    start = data.rindex(b"nmt_nfkc\x12") + len(b"nmt_nfkc\x12")
    sizes = data[start:][:3]
    size = sum((byte & 127) << 7 * i for i, byte in enumerate(sizes))
    assert sizes[2] < 128 and data[start + 3 + size] == 0x18, "a length of three bytes, then add_dummy_prefix"
    return data[start + 3 : start + 3 + size]


def t5_metadata(model: Path, **changes: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes it, which does not name the control tokens' ids where the defaults are theirs."""
    metadata = spm_metadata(model)
    for key, values in (("tokens", SENTINELS), ("scores", [-1000.0] * 100), ("token_type", [4] * 100)):
        metadata[f"tokenizer.ggml.{key}"] += values
    given = {"model": "t5", "add_space_prefix": True, "remove_extra_whitespaces": True}
    given |= {"precompiled_charsmap": list(charsmap_of(model))} | changes
    metadata = {key: value for key, value in metadata.items() if not key.endswith("_token_id")}
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in given.items()}


@pytest.fixture(scope="session")
def t5(t5_sentencepiece: Path, tmp_path_factory: pytest.TempPathFactory) -> T5:
    library = SentencePieceProcessor(model_file=str(t5_sentencepiece))
    pieces = [(library.id_to_piece(i), library.get_score(i)) for i in range(library.vocab_size())]
    vocabulary = [*pieces, *((name, 0.0) for name in SENTINELS)]
    reference = T5Tokenizer(vocab=vocabulary, _spm_precompiled_charsmap=charsmap_of(t5_sentencepiece))
    slow, fast = (tmp_path_factory.mktemp(name) for name in ("spiece", "fast"))
    shutil.copy(t5_sentencepiece, slow / "spiece.model")
    (slow / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    reference.save_pretrained(fast)
    return T5(library, reference, open_folder(slow), open_folder(fast), from_gguf(t5_metadata(t5_sentencepiece)))


def test_five_hundred_texts_have_the_ids_of_sentencepiece_and_of_transformers(t5: T5) -> None:
    texts = varied_texts()
    assert len(texts) == 500
    for text in texts:
        theirs = t5.reference(text, add_special_tokens=False)["input_ids"]
        for ours in t5.all:
            assert ours.encode(text) == t5.library.encode(text), text
            assert ours.encode_skeleton(text) == theirs, text
            assert ours.decode(theirs) == shown(t5.reference, theirs), text


def shown(reference: T5Tokenizer, ids: list[int]) -> str:
    """transformers' text with the sentinels in it, and without what else marks structure, or is unknown."""
    return str(reference.decode([i for i in ids if i > 2]))


@quick
@given(text=varied)
@example(text="a \u0301")
def test_any_text_has_the_ids_of_its_library(t5: T5, text: str) -> None:
    """tokenizer.json has those of its own, which replaces by graphemes, and to which U+0085 is a space."""
    text = text.encode(errors="replace").decode()
    expected = t5.library.encode(text)
    assert t5.spiece.encode(text) == t5.gguf.encode(text) == expected
    assert t5.fast.encode_skeleton(text) == t5.reference(text, add_special_tokens=False)["input_ids"]
    assert t5.spiece.encode_skeleton(text) == t5.gguf.encode_skeleton(text)
    if not any(mark in text for mark in (*t5.fast.specials, *SENTINELS)):
        assert t5.fast.encode(text) == t5.fast.encode_skeleton(text)
        assert t5.spiece.encode_skeleton(text) == expected


def test_a_text_that_continues_another_keeps_its_first_space_and_gets_none(t5: T5) -> None:
    a, test, space = (t5.library.piece_to_id(piece) for piece in ("a", "▁test", "▁"))
    for ours in t5.all:
        assert ours.encode("a", start=False) == [a] and ours.encode("a") == [space, a]
        for text in (" test", "  test", "\n\u200btest ", "test"):
            assert ours.encode(text) == [test]
            assert ours.encode(text, start=False) == ([test] if text != "test" else ours.encode(text, start=False))
        assert ours.encode("test", start=False)[0] != test
        assert ours.encode(" ", start=False) == ours.encode("", start=False) == []


def test_what_it_says_of_itself(t5: T5) -> None:
    for ours in t5.all:
        assert ours.vocab_size == len(t5.reference) == 126
        assert (ours.bos_id, ours.frames[1], ours.eos_ids) == (None, ((), (1,)), {1})
        assert ours.names["eos_token"] == "</s>" and ours.dummy_prefix
        assert t5.reference("a test")["input_ids"] == [*ours.encode("a test"), *ours.frames[1][1]]
        found = {name: i for name, i in ours.specials.items() if i > 25}
        assert found == {name: t5.reference.convert_tokens_to_ids(name) for name in SENTINELS}
        assert found["<extra_id_99>"] == 26 and found["<extra_id_0>"] == 125, "the last comes first"


def test_sentinels_are_shown_but_never_typed(t5: T5) -> None:
    for ours in t5.all:
        typed = ours.encode("a <extra_id_0> test </s><pad>")
        assert typed == t5.library.encode("a <extra_id_0> test </s><pad>")
        assert not set(typed) & (set(ours.specials.values()) - {2})
        marked = ours.encode_skeleton("<extra_id_0> a<extra_id_1>test</s>")
        assert marked == t5.reference("<extra_id_0> a<extra_id_1>test</s>", add_special_tokens=False)["input_ids"]
        assert ours.decode(marked) == "<extra_id_0> a<extra_id_1> test"
        assert ours.token_bytes(125) == b"<extra_id_0>" and ours.token_bytes(1) == b""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tokenizer_class": "T5TokenizerFast", "extra_ids": 3}, 29),
        ({"tokenizer_class": "MT5Tokenizer", "extra_ids": 0}, 26),
        ({"extra_ids": 3}, 26),  # of whatever it is: T5 gives them their meaning
        ({"tokenizer_class": "AlbertTokenizer"}, 26),
        ({"tokenizer_class": "T5Tokenizer", "added_tokens_decoder": {"27": {"content": "<extra_id_98>"}}}, 126),
    ],
)
def test_the_number_of_sentinels_is_told_beside_it(
    tmp_path: Path, t5_sentencepiece: Path, config: dict[str, Any], expected: int
) -> None:
    shutil.copy(t5_sentencepiece, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = open_folder(tmp_path)
    assert ours.vocab_size == expected
    assert ours.frames[1][1] == ((1,) if "T5" in config.get("tokenizer_class", "") else ())


def test_an_impossible_number_of_sentinels_is_named(tmp_path: Path, t5_sentencepiece: Path) -> None:
    shutil.copy(t5_sentencepiece, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 99999999}')
    with pytest.raises(ConfigError, match="extra_ids is 99999999"):
        open_folder(tmp_path)


def test_without_a_tokenizers_class_the_models_type_tells(tmp_path: Path, t5_sentencepiece: Path) -> None:
    shutil.copy(t5_sentencepiece, tmp_path / "spiece.model")
    (tmp_path / "config.json").write_text('{"model_type": "mt5"}')
    assert open_folder(tmp_path).vocab_size == 126
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert open_folder(tmp_path).vocab_size == 26


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_older_files_of_transformers_merge_spaces_in_the_normalizer(
    tmp_path: Path, t5: T5, t5_sentencepiece: Path, scheme: str
) -> None:
    library = T5Tokenizer(
        vocab=[
            *((t5.library.id_to_piece(i), t5.library.get_score(i)) for i in range(26)),
            *((n, 0.0) for n in SENTINELS),
        ]
    ).backend_tokenizer
    strip, merge = normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")
    charsmap = normalizers.Precompiled(charsmap_of(t5_sentencepiece))
    library.normalizer = normalizers.Sequence([charsmap, strip, merge])
    library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme)
    library.save(str(tmp_path / "tokenizer.json"))
    ours = open_folder(tmp_path)
    for text in varied_texts():
        assert ours.encode(text) == t5.library.encode(text), text
        assert ours.encode_skeleton(text) == library.encode(text, add_special_tokens=False).ids, text


def trained(**settings: Any) -> bytes:
    """A small sentencepiece model of this file's text."""
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text(encoding="utf-8").splitlines()), model_writer=model,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, num_threads=1, vocab_size=400, **settings
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity", "nfkc_cf"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_every_sentencepiece_model_gives_its_own_ids(
    tmp_path: Path, kind: str, rule: str, merges: bool, prefix: bool
) -> None:
    data = trained(
        model_type=kind, normalization_rule_name=rule, remove_extra_whitespaces=merges, add_dummy_prefix=prefix,
        user_defined_symbols=["§§"],
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(data)
    ours, library = open_folder(tmp_path), SentencePieceProcessor(model_proto=data)
    assert ours.dummy_prefix == prefix

    def pieces(ids: list[int]) -> str:
        return "".join(map(library.id_to_piece, ids))

    known = 0
    for text in [*varied_texts()[::5], "§§", " §§ a§§"]:
        assert ours.encode(text) == library.encode(text), text
        if library.unk_id() not in library.encode(text):
            parted = pieces(ours.encode("a")) + pieces(ours.encode(text, start=False))
            assert parted == pieces(library.encode("a" + text)), text
            known += 1
    assert known > 30


@pytest.mark.parametrize("kind", ["spiece.model", "tokenizer.json", "GGUF"])
def test_a_model_with_it_answers_as_transformers(tmp_path: Path, t5: T5, t5_sentencepiece: Path, kind: str) -> None:
    """The source ends with </s>, and sentinels in an answer are shown."""
    model = t5_model("v1.1", vocab_size=128)
    if kind == "GGUF":
        metadata = t5_metadata(t5_sentencepiece, precompiled_charsmap=charsmap_of(t5_sentencepiece))
        folder = save_t5_gguf(model, tmp_path / "t5.gguf", **metadata)
    else:
        folder = tmp_path
        model.save_pretrained(folder)
        if kind == "spiece.model":
            shutil.copy(t5_sentencepiece, folder / kind)
        else:
            t5.reference.save_pretrained(folder)
    llama = Llama.build(folder, max_seq_len=32)
    for text in ("a test", "  what  is\tthis ", "half: ½ e\u0301"):
        source = t5.reference(text, return_tensors="pt")
        assert llama.model.encode_text(text) == source["input_ids"][0].tolist()
        theirs = model.generate(**source, max_new_tokens=12, do_sample=False, eos_token_id=1, use_cache=False)[
            0, 1:
        ].tolist()
        answer = llama.text_completion([text], temperature=0, max_gen_len=12)[0]["generation"]
        assert answer == shown(t5.reference, [i for i in theirs if i < 126])
    assert "<extra_id_" in answer


@pytest.mark.parametrize("allowed", ["all", {"<extra_id_0>", "<extra_id_1>"}])
def test_python_takes_sentinels_that_it_is_told_of(tmp_path: Path, t5: T5, allowed: Any) -> None:
    model = t5_model("t5", vocab_size=128)
    model.save_pretrained(tmp_path)
    t5.reference.save_pretrained(tmp_path)
    llama = Llama.build(tmp_path, max_seq_len=32)
    text = "a <extra_id_0> test<extra_id_1>what"
    ids = llama.tokenizer.encode(text, bos=False, eos=True, allowed_special=allowed)
    source = t5.reference(text, return_tensors="pt")
    assert ids == source["input_ids"][0].tolist()
    theirs = model.generate(**source, max_new_tokens=9, do_sample=False, eos_token_id=1, use_cache=False)[0, 1:]
    tokens, _ = llama.generate([ids], max_gen_len=9, temperature=0)
    assert list(tokens[0]) == theirs.tolist()
