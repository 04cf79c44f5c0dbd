"""GGUF models: round trips through the gguf package's writer, parity with transformers, and hostile files."""

import re
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import interleaved, random_state, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.core.spec import RopeScaling
from llamachat.core.tensors import FloatTensor, QuantTensor, dequantize
from llamachat.errors import ConfigError, FormatError, LlamachatError, ModelError
from llamachat.formats import gguf_file
from llamachat.formats.gguf import GGUFCheckpoint, is_gguf, open_gguf
from llamachat.tokenizers import open as tokenizer

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {i} é" for i in range(96)],
    "tokenizer.ggml.scores": [i / 2 for i in range(96)],
    "tokenizer.ggml.add_bos_token": True,
}


def opened(folder: Path, config: dict[str, Any] = TINY, biased: bool = False, **options: Any) -> GGUFCheckpoint:
    """A random tiny model, written and opened."""
    state = random_state(config, qkv_bias=biased)
    return open_gguf(write_gguf(folder / "tiny.gguf", state, config, **options)[0])


def with_key(folder: Path, key: str, value: Any, **options: Any) -> GGUFCheckpoint:
    return opened(folder, metadata={key: value}, **options)


def assert_state(checkpoint: GGUFCheckpoint, state: dict[str, Any], quant: str = "F32") -> None:
    kind = gguf.GGMLQuantizationType[quant]
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == state.keys() == checkpoint.index().keys() == checkpoint.config.tensor_shapes().keys()
    for name, expected in state.items():
        if expected.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(dequantize(tensors[name]), expected, err_msg=name)
        assert checkpoint.index()[name].shape == tensors[name].shape == expected.shape


# What is read


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_tensors_come_back_with_hugging_face_names_and_row_order(tmp_path: Path, arch: str, quant: str) -> None:
    checkpoint = opened(tmp_path, biased=True, arch=arch, quant=quant)
    assert_state(checkpoint, random_state(TINY, qkv_bias=True), quant)
    assert checkpoint.config.qkv_bias


def test_config_equals_the_one_that_was_written(tmp_path: Path) -> None:
    config = opened(tmp_path, TINY | {"sliding_window": 32, "tie_word_embeddings": True, "pad_token_id": 3}).config
    for name in TINY.keys() - {"eos_token_id"}:
        assert getattr(config, name) == TINY[name]
    assert (config.head_dim, config.sliding_window, config.eos_token_ids, config.pad_token_id) == (16, 32, (2,), 3)
    assert config.tie_word_embeddings and config.rope_scaling is None and not config.qkv_bias


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    assert not opened(tmp_path).config.tie_word_embeddings


def test_head_dim_may_differ_from_hidden_size_over_heads(tmp_path: Path) -> None:
    config = TINY | {"head_dim": 32}
    checkpoint = opened(tmp_path, config)
    assert checkpoint.config.head_dim == 32
    assert_state(checkpoint, random_state(config))


def test_bos_eos_eot_and_eom_are_read(tmp_path: Path) -> None:
    tokens = {f"tokenizer.ggml.{name}_token_id": number for name, number in (("eot", 7), ("eom", 8), ("eos", 7))}
    config = opened(tmp_path, metadata=tokens).config
    assert (config.bos_token_id, config.eos_token_ids) == (1, (7, 8))


@pytest.mark.parametrize("factors", [np.linspace(1, 8, 8, dtype=np.float32)])
def test_rope_freqs_become_factors(tmp_path: Path, factors: Any) -> None:
    scaling = opened(tmp_path, extra={"rope_freqs.weight": factors}).config.rope_scaling
    assert scaling == RopeScaling("factors", factors=tuple(factors.tolist()))


def test_rope_factors_become_longrope(tmp_path: Path) -> None:
    short, long = np.full(8, 1.5, np.float32), np.full(8, 4.0, np.float32)
    keys = {"type": "longrope", "original_context_length": 64, "attn_factor": 1.25, "finetuned": True}
    metadata = {f"llama.rope.scaling.{name}": value for name, value in keys.items()}
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    scaling = opened(tmp_path, metadata=metadata, extra=extra).config.rope_scaling
    assert scaling == RopeScaling(
        "longrope", 4.0, 64, attention_factor=1.25, short_factor=(1.5,) * 8, long_factor=(4.0,) * 8
    )


YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 64}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear"}, None),
        ({"factor": 2.0}, RopeScaling("linear", 2.0)),
        (YARN, RopeScaling("yarn", 4.0, 64)),
        (
            YARN | {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
            RopeScaling("yarn", 4.0, 64, beta_fast=16.0, beta_slow=2.0),
        ),
        (YARN | {"yarn_attn_factor": 1.5}, RopeScaling("yarn", 4.0, 64, attention_factor=1.5)),
        (YARN | {"attn_factor": 2.0}, RopeScaling("yarn", 4.0, 64, attention_factor=2 * (0.1 * np.log(4) + 1))),
    ],
)
def test_rope_scaling_keys(tmp_path: Path, keys: dict[str, Any], expected: RopeScaling | None) -> None:
    metadata = {f"llama.rope.scaling.{name}": value for name, value in keys.items()}
    assert opened(tmp_path, metadata=metadata).config.rope_scaling == expected


def test_recommended_sampling_chat_template_and_ignored_keys(tmp_path: Path) -> None:
    checkpoint = opened(
        tmp_path,
        metadata={
            "general.sampling.temp": 0.5,
            "general.sampling.top_k": 40,
            "general.name": "x",
            "\x1b[2J.odd": "x",
            "tokenizer.chat_template": "{{ messages }}",
            "llama.rope.scaling.finetuned": False,
        },
    )
    assert checkpoint.sampling == {"temperature": 0.5, "top_k": 40}
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.ignored == ("llama.rope.scaling.finetuned", "general.name", "\\x1b[2J.odd")


def test_metadata_is_a_mapping_of_the_files_own_keys(tmp_path: Path) -> None:
    metadata = opened(tmp_path, metadata=VOCABULARY).metadata
    assert VOCABULARY.items() <= dict(metadata).items()
    assert metadata["llama.block_count"] == 2 and "llama.nothing" not in metadata


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
ODD = st.sampled_from(["", "\0", "\0" * 9, "a\0", "x" * 256, "é" * 127, "x" * 255, "\x05" + "\0" * 7])


@given(texts=st.lists(PLAIN, min_size=64, max_size=90) | st.lists(PLAIN | ODD, min_size=60, max_size=70))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_list_of_texts_is_read_whatever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    """Long lists are found and parted at once, but for texts that make that impossible."""
    monkeypatch.setattr(gguf_file, "STRETCH", 64)
    coded = [text.encode() for text in texts]
    listed = b"".join(struct.pack("<Q", len(text)) + text for text in coded)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    keys = (
        struct.pack("<Q1sIIQ", 1, b"a", 9, 8, len(texts)) + listed + struct.pack("<Q1sII", 1, b"b", 4, 7)
    )  # a list, a number
    (tmp_path / "texts.gguf").write_bytes(head + keys)
    metadata, _ = gguf_file.read_parts(tmp_path / "texts.gguf")
    assert metadata["a"] == texts and metadata["b"] == 7


@pytest.mark.parametrize("alignment", [8, 24, 4096])
def test_other_alignments(tmp_path: Path, alignment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.gguf_writer, "GGUF_DEFAULT_ALIGNMENT", alignment)
    checkpoint = with_key(tmp_path, "general.alignment", alignment, quant="Q8_0")
    assert_state(checkpoint, random_state(TINY), "Q8_0")


def test_floats_are_mapped_not_copied(tmp_path: Path) -> None:
    tensor = dict(opened(tmp_path, arch="qwen2").tensors())["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(tensor, FloatTensor) and not tensor.data.flags.owndata and not tensor.data.flags.writeable


def test_the_tokenizer_is_built_from_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "from_gguf", lambda metadata: metadata["tokenizer.ggml.tokens"])
    assert opened(tmp_path, metadata=VOCABULARY).tokenizer() == VOCABULARY["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("model", ["no_vocab", None])
def test_no_tokenizer_is_an_error(tmp_path: Path, model: str | None) -> None:
    with pytest.raises(FormatError, match="no tokenizer"):
        with_key(tmp_path, "tokenizer.ggml.model", model).tokenizer()


def test_is_gguf_looks_at_the_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"GGU")
    assert is_gguf(tmp_path / "a")
    assert not is_gguf(tmp_path / "b.gguf") and not is_gguf(tmp_path) and not is_gguf(tmp_path / "missing")


# Split files


def split_paths(folder: Path, seed: int = 0, config: dict[str, Any] = TINY) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return write_gguf(folder / "tiny.gguf", random_state(config, seed), config, metadata=VOCABULARY, split=8)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_split_files_open_from_any_part(tmp_path: Path, part: int) -> None:
    checkpoint = open_gguf(split_paths(tmp_path)[part])
    assert_state(checkpoint, random_state(TINY))
    assert checkpoint.metadata["tokenizer.ggml.tokens"][95] == "token 95 é"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second, _ = split_paths(tmp_path)
    second.unlink()
    with pytest.raises(FormatError, match=second.name):
        open_gguf(first)


def test_a_renamed_part_cannot_find_the_others(tmp_path: Path) -> None:
    path = split_paths(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match="one of several parts"):
        open_gguf(path)


def test_parts_out_of_order_are_refused(tmp_path: Path) -> None:
    first, second, third = split_paths(tmp_path)
    shutil.copy(third, second)
    with pytest.raises(FormatError, match="not part 2 of 3"):
        open_gguf(first)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    fewer = TINY | {"tie_word_embeddings": True}  # one tensor less: three parts too
    ours, theirs = split_paths(tmp_path / "a"), split_paths(tmp_path / "b", config=fewer)
    shutil.copy(theirs[2], ours[2])
    with pytest.raises(FormatError, match="do not add up"):
        open_gguf(ours[0])


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first, second, third = split_paths(tmp_path)
    number = b"split.no" + struct.pack("<I", 2)  # then the part's number
    data = second.read_bytes()
    assert data.count(number) == 1
    third.write_bytes(data.replace(number + b"\1", number + b"\2"))
    with pytest.raises(FormatError, match="do not add up"):
        open_gguf(first)


# Models that are refused


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.logit_scale", 0.5, "logit_scale"),
        ("llama.attention.causal", False, "causal"),
        ("llama.expert_count", 8, "expert_count"),
        ("llama.rope.dimension_count", 8, "dimension_count"),
        ("llama.attention.value_length", 8, "value_length"),
        ("llama.attention.key_length", 0, "key_length"),
        ("llama.attention.key_length", 18, "value_length"),
        ("llama.attention.head_count", 0, "head_count"),
        ("llama.attention.head_count", 2**31, "head_count"),
        ("llama.attention.head_count", True, "head_count"),
        ("llama.attention.head_count_kv", [2, 1], "head_count_kv"),
        ("llama.attention.head_count_kv", 3, "num_key_value_heads"),
        ("llama.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon"),
        ("llama.block_count", None, "block_count"),
        ("llama.block_count", "two", "block_count"),
        ("llama.context_length", 0, "context_length"),
        ("llama.feed_forward_length", -1, "feed_forward_length"),
        ("llama.vocab_size", 95, "vocab_size"),
        ("llama.rope.freq_base", float("inf"), "freq_base"),
        ("llama.rope.freq_base", 0.0, "rope_theta"),
        ("llama.rope.scaling.type", "dynamic", "dynamic"),
        ("llama.rope.scaling.type", "longrope", "longrope"),
        ("llama.rope.scaling.attn_factor", 2.0, "attn_factor"),
        ("tokenizer.chat_template", 7, "chat_template"),
        ("general.sampling.temp", "hot", "sampling.temp"),
        ("general.sampling.temp", -1.0, "temperature"),
        ("general.sampling.top_k", 0.5, "top_k"),
        ("general.type", "adapter", "general.type"),
    ],
)
def test_keys_that_would_change_the_result_are_errors(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        with_key(tmp_path, key, value)
    assert "tiny.gguf" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["<s>", 2.5, True, [1]])
def test_an_id_that_is_no_number_is_an_error(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"tiny\.gguf: tokenizer\.ggml\.bos_token_id"):
        with_key(tmp_path, "tokenizer.ggml.bos_token_id", value)


@pytest.mark.parametrize("value", [96, 2**31, 0xFFFFFFFF])
def test_an_id_that_no_token_has_is_as_one_that_is_not_given(tmp_path: Path, value: int) -> None:
    for name in ("bos", "eos", "padding"):
        config = with_key(tmp_path, f"tokenizer.ggml.{name}_token_id", value).config
        assert value not in (config.bos_token_id, config.pad_token_id, *config.eos_token_ids)
    assert "tokenizer.ggml.padding_token_id" in with_key(tmp_path, "tokenizer.ggml.padding_token_id", value).ignored


def test_a_sentencepiece_model_that_names_no_ids_has_those_of_llama(tmp_path: Path) -> None:
    config = opened(tmp_path, metadata={"tokenizer.ggml.model": "llama"}).config
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


@pytest.mark.parametrize("arch", ["gemma", "mamba", "gpt2\x1b[2J"])
def test_other_architectures_are_refused(tmp_path: Path, arch: str) -> None:
    with pytest.raises(ConfigError, match=r"general\.architecture") as caught:
        opened(tmp_path, arch=arch)
    assert str(caught.value).isprintable()


def test_a_list_that_says_the_same_for_each_layer_is_accepted(tmp_path: Path) -> None:
    assert with_key(tmp_path, "llama.attention.head_count_kv", [2, 2]).config.num_key_value_heads == 2


def test_rope_factors_of_the_wrong_length_or_sign_are_refused(tmp_path: Path) -> None:
    ones = np.ones((1, 8), np.float32)
    for factors in (ones, ones[0, 1:], 0 * ones[0], -ones[0], np.nan * ones[0]):
        with pytest.raises(ModelError, match=r"rope_freqs|RoPE factors"):
            opened(tmp_path, extra={"rope_freqs.weight": factors})


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length"])
def test_sizes_that_contradict_the_tensors_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(FormatError, match=r"tiny\.gguf"):
        with_key(tmp_path, f"llama.{key}", 1024, biased=True)


def test_tensors_too_many_or_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"self_attn\.q_norm"):
        opened(tmp_path, extra={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    state = random_state(TINY)
    del state["model.norm.weight"]
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        open_gguf(write_gguf(tmp_path / "tiny.gguf", state, TINY)[0])


@pytest.mark.parametrize("kind", ["IQ2_XXS", "NVFP4", "F64"])
def test_an_unsupported_type_is_named_with_its_tensor(tmp_path: Path, kind: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.zeros((64, 256 // block * size), np.uint8)
    with pytest.raises(FormatError, match=rf"blk\.0\.ffn_down\.weight.*{kind}"):
        opened(tmp_path, raw={"blk.0.ffn_down.weight": (kind, blocks)})


# Files that lie


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def container(keys: list[bytes] = [], tensors: list[bytes] = [], data: bytes = bytes(128), version: int = 3) -> bytes:  # noqa: B006
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32) + data


ARRAY_OF_ARRAYS = struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 0)
HUGE = 2**64 - 1
LIES = {
    "empty": b"",
    "only a magic": b"GGUF",
    "another magic": b"GGML" + bytes(60),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": container(version=1),
    "version 4": container(version=4),
    "tensor count": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    "key count": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
    "key count within limits": b"GGUF" + struct.pack("<IQQ", 3, 0, 60000) + bytes(19),
    "43 bytes, an endless array": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + key("k", 9, struct.pack("<IQ", 9, HUGE))[:19],
    "array of arrays": container([key("k", 9, ARRAY_OF_ARRAYS)]),
    "array length": container([key("k", 9, struct.pack("<IQ", 4, 2**62))]),
    "array length within limits": container([key("k", 9, struct.pack("<IQ", 12, 2**22))]),
    "arrays without number": container([key(f"{i}", 9, struct.pack("<IQ", 0, 2**20) + bytes(2**20)) for i in range(5)]),
    "texts without end": container([key("k", 9, struct.pack("<IQ", 8, 2**22))]),
    "text length": container([key("k", 8, struct.pack("<Q", HUGE))]),
    "text in an array": container([key("k", 9, struct.pack("<IQQ", 8, 1, HUGE))]),
    "key length": container([struct.pack("<Q", 2**63) + b"k"]),
    "type of value": container([key("k", 13, bytes(8))]),
    "type of elements": container([key("k", 9, struct.pack("<IQ", 13, 1) + bytes(8))]),
    "key twice": container([key("k", 0, b"\1"), key("k", 0, b"\2")]),
    "key not UTF-8": container([text(b"\xff") + struct.pack("<I", 0) + b"\0"]),
    "alignment 0": container([key("general.alignment", 4, bytes(4))]),
    "alignment 1": container([key("general.alignment", 4, b"\1\0\0\0")]),
    "alignment of text": container([key("general.alignment", 8, text("32"))]),
    "no dimensions": container([], [tensor("t", ())]),
    "five dimensions": container([], [tensor("t", (1, 1, 1, 1, 1))]),
    "dimension 0": container([], [tensor("t", (0,))]),
    "overflow": container([], [tensor("t", (2**32, 2**32))]),
    "exabytes": container([], [tensor("t", (2**63,))]),
    "rows not of whole blocks": container([], [tensor("t", (48, 1), kind=2)]),
    "a vector of blocks": container([], [tensor("t", (32,), kind=2)]),
    "unknown type": container([], [tensor("t", (32,), kind=99)]),
    "removed type": container([], [tensor("t", (32,), kind=4)]),
    "beyond the end": container([], [tensor("t", (33,))]),
    "offset beyond the end": container([], [tensor("t", offset=2**63)]),
    "not aligned": container([], [tensor("t", (1,), offset=4)]),
    "tensor twice": container([], [tensor("t", (1,)), tensor("t", (1,), offset=32)]),
    "overlap": container([], [tensor("a", (16,)), tensor("b", (1,), offset=32)]),
    "same place": container([], [tensor("a", (1,)), tensor("b", (1,))]),
}


@pytest.mark.parametrize("lie", LIES)
def test_dishonest_headers_are_format_errors(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[lie])
    with pytest.raises(FormatError, match=r"lie\.gguf") as caught, bounded_memory():
        gguf_file.read_parts(path)
    assert str(caught.value).isprintable()


def test_the_container_of_these_lies_is_otherwise_sound(tmp_path: Path) -> None:
    path = tmp_path / "truth.gguf"
    path.write_bytes(
        container(
            [key("k", 9, struct.pack("<IQ", 8, 1) + text("v"))], [tensor("t"), tensor("u", (4,), 1, 128)], bytes(136)
        )
    )
    metadata, tensors = gguf_file.read_parts(path)
    assert metadata["k"] == ["v"] and tensors.keys() == {"t", "u"}


def test_the_43_byte_file_is_43_bytes() -> None:
    assert len(LIES["43 bytes, an endless array"]) == 43


def test_texts_that_are_not_utf8_fail_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(container([key("k", 9, struct.pack("<IQ", 8, 1) + text(b"\xff"))]))
    with pytest.raises(FormatError, match="UTF-8"):
        gguf_file.read_parts(path)[0]["k"]


def test_a_file_cut_off_after_opening_is_a_format_error(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, quant="Q8_0")
    tensors = checkpoint.tensors()
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:4096])
    with pytest.raises(FormatError, match="token_embd"):
        next(tensors)


class bounded_memory:  # noqa: N801
    """Fails when the block allocates more than 32 MB at any time (numpy's arrays included)."""

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32_000_000


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("honest")
    config = TINY | {"num_hidden_layers": 1}
    random = np.random.default_rng(0)
    raw = {"output.weight": ("Q5_1", random.integers(0, 120, (96, 48), dtype=np.uint8))}
    state, extra = random_state(config), {"rope_freqs.weight": np.ones(8, np.float32)}
    (path,) = write_gguf(folder / "x.gguf", state, config, quant="Q4_0", metadata=VOCABULARY, raw=raw, extra=extra)
    return path.read_bytes()


def use_everything(path: Path) -> None:
    checkpoint = open_gguf(path)
    assert checkpoint.index().keys() == dict(checkpoint.tensors()).keys()
    assert len(dict(checkpoint.metadata)) and checkpoint.chat_template is None


def patches() -> st.SearchStrategy[tuple[float, bytes]]:
    numbers = st.one_of(st.sampled_from([0, 1, 2**31, 2**32, 2**63, HUGE]), st.integers(0, HUGE))
    packed = st.builds(lambda number, size: struct.pack("<Q", number)[:size], numbers, st.sampled_from([1, 4, 8]))
    return st.tuples(st.floats(0, 1), st.one_of(packed, st.binary(min_size=1, max_size=8)))


@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(patches(), max_size=4), st.one_of(st.none(), st.floats(0, 1)), st.booleans())
def test_mutated_files_open_or_fail_cleanly(
    honest: bytes, tmp_path: Path, changes: list[tuple[float, bytes]], cut: float | None, in_header: bool
) -> None:
    reach = honest.index(b"rope_freqs") + 60 if in_header else len(honest)
    data = bytearray(honest)
    for place, patch in changes:
        at = int(place * (reach - len(patch)))
        data[at : at + len(patch)] = patch
    path = tmp_path / "x.gguf"
    path.write_bytes(data if cut is None else data[: int(cut * reach)])
    with bounded_memory():
        try:
            use_everything(path)
        except LlamachatError as error:
            assert str(error).isprintable()


# Independent readers


@pytest.mark.parametrize(("arch", "quant"), [("llama", "Q8_0"), ("qwen2", "Q4_1")])
def test_transformers_loads_the_same_model(tmp_path: Path, arch: str, quant: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = opened(tmp_path, biased=arch == "qwen2", arch=arch, quant=quant, metadata=VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        np.testing.assert_array_equal(dequantize(tensors[name]), expected.numpy(), err_msg=name)
    for name in TINY.keys() - {"eos_token_id", "rope_theta", "rms_norm_eps"}:
        assert getattr(checkpoint.config, name) == getattr(model.config, name)
    assert np.float32(checkpoint.config.rms_norm_eps) == np.float32(model.config.rms_norm_eps)
    assert checkpoint.config.rope_theta == model.config.rope_parameters["rope_theta"]


# The one real model

GGUF_TO_HF = {short: long for long, short in gguf_files.PARTS.items()}
GGUF_TO_HF |= {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[GGUFCheckpoint]:
    yield open_gguf(smollm2_gguf)


def test_smollm2_values_are_gguf_s_in_the_row_order_of_transformers(smollm2: GGUFCheckpoint) -> None:
    """As transformers' own loading does it, which would take 20 seconds to parse the vocabulary; of three layers."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    reorder = LlamaTensorProcessor({"num_attention_heads": 9, "num_key_value_heads": 3})
    _, stored = gguf_file.read_parts(smollm2.path)
    file, tensors = np.memmap(smollm2.path, mode="r"), dict(smollm2.tensors())
    assert len(stored) == len(tensors) == 272
    for raw in (raw for raw in stored.values() if raw.name.split(".")[1] in ("0", "14", "29", "weight")):
        blocks = file[raw.offset : raw.offset + raw.nbytes].reshape(raw.shape[0] if len(raw.shape) == 2 else 1, -1)
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[raw.kind.name]).reshape(raw.shape)
        expected = reorder.process(values, raw.name).weights
        name = GGUF_TO_HF[raw.name.split(".")[-2]]
        name = f"model.layers.{raw.name.split('.')[1]}.{name}" if raw.name.startswith("blk.") else name
        np.testing.assert_array_equal(dequantize(tensors[f"{name}.weight"]), expected, err_msg=name)


def test_smollm2_loads_within_a_tenth_more_memory_than_it_takes(smollm2: GGUFCheckpoint) -> None:
    tracemalloc.start()
    tensors = dict(smollm2.tensors())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * sum(tensor.nbytes for tensor in tensors.values())
    assert isinstance(tensors["model.layers.0.mlp.up_proj.weight"], QuantTensor)


def test_smollm2_metadata(smollm2: GGUFCheckpoint) -> None:
    assert len(smollm2.metadata["tokenizer.ggml.tokens"]) == smollm2.config.vocab_size == 49152
    assert smollm2.chat_template is not None and "<|im_start|>" in smollm2.chat_template
    assert "general.name" in smollm2.ignored


def test_interleaving_is_what_transformers_undoes() -> None:
    rows = np.arange(2 * 8)
    assert interleaved(rows, 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
