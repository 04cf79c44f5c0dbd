"""Megatron-core's T5 beside itself: logits and texts of what its script saved; and what a checkpoint may not ask for."""

import codecs
import io
import json
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import as_wholes
from megatron_t5 import Shape, build, forget_distutils, greedy, logits, on_the_cpu, one_process, save

from llamachat import Llama
from llamachat.cli.main import main
from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine
from llamachat.errors import ConfigError, FormatError, ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.megatron import MegatronCheckpoint
from quantize.convert import convert
from quantize.recipe import Recipe

CASES = {
    "learned": Shape(),
    "learned, fused gelu": Shape(bias_gelu_fusion=True, kv_channels=6),
    "learned, untied": Shape(untie_embeddings_and_output_weights=True),
    "rope": Shape("rope"),
    "rope, untied": Shape("rope", untie_embeddings_and_output_weights=True),
    "rope, half a head": Shape("rope", rotary_percent=0.5),
    "rope, interpolated": Shape("rope", rotary_seq_len_interpolation_factor=2.5),
    "rope, interleaved": Shape(
        "rope", rotary_interleaved=True, rotary_percent=0.5, rotary_seq_len_interpolation_factor=4
    ),
    "gated, no biases": Shape("rope", swiglu=True, add_bias_linear=False),
    "RMSNorm": Shape(normalization="RMSNorm"),
    "one layer": Shape(encoder_num_layers=3, decoder_num_layers=1, norm_epsilon=1e-3),
}
BOS, EOS = 30, 1  # of Megatron's tokenizer on the model with 26 pieces
IDS = {"decoder_start_token_id": BOS, "eos_token_id": EOS}
SOURCES = [[4, 9, 33, 17, 5, 12, 8, 20, 31], [7, 3], [25, 11, 6, 38, 14]]
TEXTS = [[BOS, 6, 19, 4, 33, 21, 39, 8], [BOS], [BOS, 15, 15, 2]]


@pytest.fixture(scope="module", autouse=True)
def megatron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with on_the_cpu(), one_process(tmp_path_factory.mktemp("group")):
        yield
    forget_distutils()


@pytest.fixture
def folder(tmp_path: Path, t5_sentencepiece: Path) -> Path:
    """For a checkpoint, with a tokenizer in it."""
    (tmp_path / "t5").mkdir()
    shutil.copy(t5_sentencepiece, tmp_path / "t5/tokenizer.model")
    return tmp_path / "t5"


def beside(folder: Path, **says: Any) -> Path:
    (folder / "megatron_config.json").write_text(json.dumps(says))
    return folder


def opened(folder: Path) -> EncoderDecoderEngine:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, MegatronCheckpoint)
    return EncoderDecoderEngine.build(checkpoint.config, checkpoint.tensors(), slots=96, dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_megatrons_in_chunks_token_by_token_and_side_by_side(folder: Path, case: str) -> None:
    """It has all texts in one batch, padded on both sides and masked; here none is."""
    model = build(CASES[case])
    save(folder, model, CASES[case])
    engine = opened(beside(folder, head="embedding") if "untied" in case else folder)
    theirs = logits(model, SOURCES, TEXTS)
    for source, text, expected in zip(SOURCES, TEXTS, theirs, strict=True):
        engine.encode(0, source)
        np.testing.assert_allclose(advance(engine, Cache(48), text, "all"), expected, atol=1e-4)
    engine.encode(0, SOURCES[0])
    cache, text = Cache(48), TEXTS[0]
    parts = [advance(engine, cache, text[:3], "all"), *(advance(engine, cache, [i])[None] for i in text[3:])]
    np.testing.assert_allclose(np.concatenate(parts), theirs[0], atol=1e-4)
    caches = [Cache(32, first) for first in (0, 32, 64)]
    for each, source in zip(caches, SOURCES, strict=True):
        engine.encode(each.first, source)
    rows = engine.forward_many(TEXTS, [each.plan(len(text)) for each, text in zip(caches, TEXTS, strict=True)])
    np.testing.assert_allclose(rows, [row[-1] for row in theirs], atol=1e-4)


@pytest.mark.parametrize("case", ["learned, untied", "rope, interleaved", "gated, no biases"])
def test_parts_are_cut_of_the_wholes(folder: Path, case: str) -> None:
    save(folder, build(CASES[case]), CASES[case])
    as_wholes(open_checkpoint(beside(folder, head="embedding") if "untied" in case else folder))


@pytest.mark.parametrize("case", ["learned", "rope, half a head", "gated, no biases"])
def test_answers_are_megatrons(folder: Path, case: str) -> None:
    model = build(CASES[case], seed=3)
    save(folder, model, CASES[case])
    llama = Llama.build(folder, max_seq_len=48, dtype="float32")
    prompts = ["a test", "what is it", "test"]
    sources = [llama.model.encode_text(prompt) for prompt in prompts]
    assert sources[0] == [3, 5, 10], "with nothing before it and nothing behind"
    expected = [greedy(model, source, BOS, EOS, 20) for source in sources]
    assert len({*map(tuple, expected)}) > 1, "which the sources make different"
    tokens, _ = llama.generate(sources, max_gen_len=20, temperature=0)
    assert [list(each) for each in tokens] == [[i for i in each if i != EOS] for each in expected]


def test_a_head_of_its_own_is_used_where_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later versions use it; 0.9 has it in its files, and multiplies by the embedding."""
    shape = CASES["learned, untied"]
    model = build(shape)
    save(folder, model, shape)
    with pytest.raises(ConfigError, match="cannot be known which matrix"):
        open_checkpoint(folder)
    engine = opened(beside(folder, head="output_layer"))
    engine.encode(0, SOURCES[0])
    ours = advance(engine, Cache(48), TEXTS[0], "all")
    assert np.abs(ours - logits(model, SOURCES[:1], TEXTS[:1])[0].numpy()).max() > 0.1
    monkeypatch.setattr(model, "shared_embedding_or_output_weight", lambda: None)
    np.testing.assert_allclose(ours, logits(model, SOURCES[:1], TEXTS[:1])[0], atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("case", ["learned", "rope, interleaved", "gated, no biases"])
def test_a_converted_one_answers_with_the_same_tokenizer(folder: Path, case: str, scheme: str) -> None:
    shape = replace(CASES[case], hidden_size=64, ffn_hidden_size=64, kv_channels=16)
    model = build(shape)
    save(folder, model, shape)
    source, made = open_checkpoint(folder), folder.with_name("made")
    convert(source, made, Recipe(scheme))
    engine, tokenizer = opened_from(made), open_checkpoint(made).tokenizer()
    engine.encode(0, SOURCES[0])
    ours, right = advance(engine, Cache(48), TEXTS[0], "all"), logits(model, SOURCES[:1], TEXTS[:1])[0].numpy()
    assert 0 < np.abs(ours - right).mean() < {"int8": 0.1, "int4": 0.5}[scheme] * right.std()
    assert tokenizer.specials == source.tokenizer().specials and tokenizer.frames[1] == ((), ())


def opened_from(folder: Path) -> EncoderDecoderEngine:
    checkpoint = open_checkpoint(folder)
    return EncoderDecoderEngine.build(checkpoint.config, checkpoint.tensors(), slots=96, dtype="float32")


def test_the_command_line_answers_and_says_what_was_ignored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(CASES["learned"])
    save(folder, model, CASES["learned"])
    words = ["llamachat", "complete", "-m", str(folder), "a test", "--temp", "0", "-n", "9", "--json", "-v"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as exit:
        main()
    said = capsys.readouterr()
    assert not exit.value.code, said.err
    assert json.loads(said.out)["tokens"] == greedy(model, [3, 5, 10], BOS, EOS, 9)
    assert "adam_beta1" in said.err and "hidden_size" not in said.err


def test_more_tokens_than_there_are_positions_is_refused_before_anything_runs(folder: Path) -> None:
    save(folder, build(CASES["learned"]), CASES["learned"])
    with pytest.raises(UsageError, match="positions for 48 tokens; a context of 49"):
        Llama.build(folder, max_seq_len=49)


def test_what_goes_on_with_a_text_is_refused_in_one_line(folder: Path) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    llama = Llama.build(folder, max_seq_len=32)
    for read in (llama.logits, llama.hidden_states, llama.attentions):
        with pytest.raises(UsageError, match="answers a source"):
            read([3, 4])
    with pytest.raises(UsageError, match="answers a source"):
        llama.embed(["a"])


# ---- its tokenizer ----


def test_its_tokenizer_has_tokens_of_its_own_behind_the_model(folder: Path) -> None:
    """CLS, SEP, EOD, MASK, then what the model lacks of padding, beginning and end, then the sentinels from 0 on."""
    save(folder, build(CASES["rope"]), CASES["rope"])
    ours = open_checkpoint(folder).tokenizer()
    assert {name: i for name, i in ours.specials.items() if i > 25} == {
        **{"<CLS>": 26, "<SEP>": 27, "<EOD>": 28, "<MASK>": 29, "<BOS>": 30},
        **{f"<extra_id_{i}>": 31 + i for i in range(5)},
    }
    assert (ours.bos_id, ours.frames[1], ours.eos_ids, ours.names["bos_token"]) == (None, ((), ()), {EOS}, "<BOS>")
    test = ours.encode("test")
    assert ours.encode_skeleton("test<extra_id_1> test<SEP>test") == [*test, 32, *test, 27, *test]
    assert ours.decode([*test, 32, *test, EOS]) == "test<extra_id_1> test"
    assert not {27, 32} & set(ours.encode("<extra_id_1><SEP>"))


def test_ids_beside_it_have_the_last_word_and_stand_for_a_tokenizer(folder: Path) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    assert open_checkpoint(beside(folder, decoder_start_token_id=3)).config.decoder_start_token_id == 3
    (folder / "tokenizer.model").unlink()
    config = open_checkpoint(folder).config
    assert (config.decoder_start_token_id, config.eos_token_ids) == (3, ())
    with pytest.raises(ModelError, match="no tokenizer"):
        open_checkpoint(folder).tokenizer()
    (folder / "megatron_config.json").unlink()
    with pytest.raises(ConfigError, match="do not say what the decoder's text begins with"):
        open_checkpoint(folder)
    with pytest.raises(ConfigError, match="the key 'end' with the value 1 is unknown"):
        open_checkpoint(beside(folder, decoder_start_token_id=3, end=1))


# ---- files and arguments ----


def rewritten(folder: Path, **changes: Any) -> Path:
    """The checkpoint with other entries; None leaves one out."""
    file = next(folder.rglob("*.pt"))
    content = torch.load(file, weights_only=False)
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    torch.save(content, file)
    return folder


def test_other_models_of_megatrons_are_no_t5(folder: Path) -> None:
    model = build(CASES["rope"])
    save(folder, model, CASES["rope"])
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    with pytest.raises(FormatError, match="only megatron-core's T5Model is read"):
        open_checkpoint(rewritten(folder, model=state))


def test_weights_of_two_bytes_are_read_as_they_are(folder: Path) -> None:
    shape = CASES["learned"]
    model = build(shape).bfloat16()
    save(folder, model, shape, params_dtype=torch.bfloat16, bf16=True)
    engine, model = opened(folder), model.float()
    engine.encode(0, SOURCES[0])
    np.testing.assert_allclose(
        advance(engine, Cache(48), TEXTS[0], "all"), logits(model, SOURCES[:1], TEXTS[:1])[0], atol=1e-4
    )


def test_names_of_transformer_engine_are_read_too(folder: Path) -> None:
    """It has a norm in the linear layer behind it, and a state of its own in each."""
    model = build(CASES["learned"])
    save(folder, model, CASES["learned"])
    names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    names |= {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    state: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        found = next((old for old in names if old in name), "")
        state[name.replace(found, names[found]) if found else name] = value
    states = {"self_attention.core_attention": torch.zeros(3, dtype=torch.uint8), "mlp.linear_fc1": io.BytesIO(b"fp8")}
    state |= {f"decoder.layers.0.{name}._extra_state": value for name, value in states.items()}
    engine = opened(rewritten(folder, model=state))
    engine.encode(0, SOURCES[0])
    np.testing.assert_allclose(
        advance(engine, Cache(48), TEXTS[0], "all"), logits(model, SOURCES[:1], TEXTS[:1])[0], atol=1e-4
    )


@pytest.mark.parametrize(
    "inside", ["", "iter_0000100", "iter_0000100/mp_rank_00", "iter_0000100/mp_rank_00/model_optim_rng.pt"]
)
def test_any_of_its_folders_and_the_file_itself_may_be_given(folder: Path, inside: str) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    checkpoint = open_checkpoint(folder / inside)
    assert checkpoint.config.decoder_start_token_id == BOS
    assert checkpoint.files == (folder / "iter_0000100/mp_rank_00/model_optim_rng.pt", folder / "tokenizer.model")


def test_a_release_is_found(folder: Path) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    (folder / "iter_0000100").rename(folder / "release")
    (folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert open_checkpoint(folder).config.positions == "rope"


@pytest.mark.parametrize(
    ("told", "said"),
    [("../../etc", "says '../../etc'; expected is a number"), ("7", "has no mp_rank_00"), ("", "expected is a number")],
)
def test_a_tracker_that_leads_nowhere_is_one_line(folder: Path, told: str, said: str) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    (folder / "latest_checkpointed_iteration.txt").write_text(told)
    with pytest.raises(FormatError, match=said):
        open_checkpoint(folder)


def test_what_several_ranks_saved_is_refused(folder: Path) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    (folder / "iter_0000100/mp_rank_01").mkdir()
    with pytest.raises(FormatError, match="saved by 2 ranks"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"position_embedding_type": "relative"}, "position_embedding_type is 'relative'"),
        ({"normalization": "other"}, "normalization is 'other'"),
        ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size is 2"),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"rotary_base": 500}, "rotary_base is 500"),
        ({"apply_layernorm_1p": True}, "apply_layernorm_1p is True"),
        ({"squared_relu": True}, "squared_relu is True"),
        ({"qk_layernorm": True}, "qk_layernorm is True"),
        ({"never_heard_of": 3}, "the key 'never_heard_of' with the value 3 is unknown"),
        ({"num_layers": 4, "decoder_num_layers": None}, "the decoder has 4 layers; there are weights of 3"),
        ({"padded_vocab_size": 39}, "word_embeddings|embed_tokens"),
        ({"hidden_size": torch.float32}, "hidden_size is '<dtype>'"),
        ({"vocab_extra_ids": 1 << 40}, "vocab_extra_ids is"),
        ({"kv_channels": 7}, "head_dim"),
        ({"rotary_percent": 0.3, "position_embedding_type": "rope"}, "embed_positions|rotated part"),
    ],
)
def test_arguments_that_give_another_model_are_named(folder: Path, arguments: dict[str, Any], said: str) -> None:
    save(folder, build(CASES["learned"]), CASES["learned"], **arguments)
    with pytest.raises(ModelError, match=said) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("without", ["args", "model"])
def test_a_file_that_lacks_a_part_is_one_line(folder: Path, without: str) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    with pytest.raises(FormatError, match="no args and model"):
        open_checkpoint(rewritten(folder, **{without: None}))


def test_weights_that_are_missing_or_too_many_are_named(folder: Path) -> None:
    model = build(CASES["rope"])
    save(folder, model, CASES["rope"])
    state = dict(model.state_dict())
    taken = state.pop("decoder.layers.1.mlp.linear_fc2.bias")
    with pytest.raises(FormatError, match=r"lacks 'decoder\.layers\.1\.mlp\.down_proj\.bias'"):
        open_checkpoint(rewritten(folder, model=state))
    with pytest.raises(FormatError, match="holds 'adapter'"):
        open_checkpoint(
            rewritten(folder, model=state | {"decoder.layers.1.mlp.linear_fc2.bias": taken, "adapter": taken})
        )
    state["decoder.layers.1.self_attention.linear_qkv.bias"] = torch.zeros(95)
    with pytest.raises(FormatError, match="96 rows are needed"):
        open_checkpoint(rewritten(folder, model=state))


# ---- attacks ----


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Builds(Namespace):
    """Its state is another, as a pickle may say."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return Namespace, (), self.state


@pytest.mark.parametrize(
    "hostile",
    [
        Calls(os.system, "touch FLAG"),
        Calls(eval, "open('FLAG', 'w')"),
        Calls(bytearray, 1 << 40),
        Calls(getattr, Namespace, "__init__"),
        Calls(open, "FLAG", "w"),
        Calls(pickle.loads, b"x"),
    ],
    ids=["system", "eval", "bytearray", "getattr", "open", "loads"],
)
@pytest.mark.parametrize("where", ["args", "model", "rng_state"])
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(
    folder: Path, where: str, hostile: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    shape = CASES["rope"]
    save(folder, build(shape), shape)
    parts = {"args": shape.arguments(seed=hostile), "model": {"x": hostile}, "rng_state": [hostile]}
    file = next(folder.rglob("*.pt"))
    torch.save({"args": shape.arguments(), "model": {}, where: parts[where]}, file)
    with pytest.raises(FormatError, match="it may run code and was not loaded"):
        open_checkpoint(folder)
    assert not (folder / "FLAG").exists()


@pytest.mark.parametrize(
    "coding", ["hex_codec", Calls(codecs.encode, "urk", "rot13")], ids=["by name", "by a name that is made"]
)
def test_an_encoding_that_grows_again_and_again_is_refused(folder: Path, coding: Any) -> None:
    shape = CASES["rope"]
    save(folder, build(shape), shape)
    grown: Any = Calls(codecs.encode, "x" * 1000, "latin1")
    for _ in range(40):
        grown = Calls(codecs.encode, grown, coding)
    with pytest.raises(FormatError, match="asks for 'an encoding that is not latin1'"):
        open_checkpoint(rewritten(folder, rng_state=grown))


def test_a_text_that_is_encoded_again_and_again_is_refused(folder: Path) -> None:
    shape = CASES["rope"]
    save(folder, build(shape), shape)
    text = "x" * 100_000
    with pytest.raises(FormatError, match="copies what it holds again and again"):
        open_checkpoint(rewritten(folder, rng_state=[Calls(codecs.encode, text, "latin1") for _ in range(100)]))


@pytest.mark.parametrize(
    "state",
    [
        {"__class__": 3},
        {"__setstate__": 1, "get": 2},
        ({"a": 1}, {"__dict__": {"b": 2}}),
        (None, {"x": 1}),
        {3: 4},
        [1],
        7,
    ],
    ids=repr,
)
def test_whatever_state_the_arguments_are_given_it_is_one_line(folder: Path, state: Any) -> None:
    shape = CASES["rope"]
    save(folder, build(shape), shape)
    good = next(folder.rglob("*.pt")).read_bytes()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(rewritten(folder, args=Builds(state)))
    assert "\n" not in str(caught.value)
    next(folder.rglob("*.pt")).write_bytes(good)
    assert open_checkpoint(folder).config.positions == "rope", "nothing stays behind"


def test_only_this_format_may_name_arguments(tmp_path: Path) -> None:
    from llamachat.formats.pickled import read_pickled

    torch.save({"w": Namespace(a=1)}, tmp_path / "m.pth")
    with pytest.raises(FormatError, match="argparse Namespace"):
        read_pickled(tmp_path / "m.pth")


def test_a_damaged_archive_is_one_line(folder: Path) -> None:
    save(folder, build(CASES["rope"]), CASES["rope"])
    file = next(folder.rglob("*.pt"))
    whole = file.read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            open_checkpoint(folder)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Namespace(), 2))
    with pytest.raises(FormatError):
        open_checkpoint(folder)
