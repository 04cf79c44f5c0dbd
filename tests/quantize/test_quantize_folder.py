"""What a converted model's folder says: to our reader exactly what the source said, to transformers the same."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints import save_gguf, save_hf, save_lit, save_meta, save_tokenizer, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from quality import build
from transformers import AutoConfig, AutoModelForCausalLM, modeling_rope_utils
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamachat.core.rope import frequencies
from llamachat.core.spec import Dtypes, ModelSpec, RopeScaling
from llamachat.errors import ConfigError, ModelError
from llamachat.families.family import first_full
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.hf_config import hf
from llamachat.formats.lazy import LazyCheckpoint, float_entry
from llamachat.generation.perplexity import run
from quantize.convert import convert
from quantize.recipe import Recipe
from quantize.to_hf import hf_config

NUMBERS = st.floats(1e-6, 1e6)
LENGTHS = st.integers(1, 2**30)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


@st.composite
def scalings(draw: st.DrawFn, pairs: int) -> RopeScaling:
    lists = st.lists(NUMBERS, min_size=pairs, max_size=pairs).map(tuple)
    factor, original = draw(NUMBERS), draw(LENGTHS)
    match draw(st.sampled_from(["linear", "dynamic", "llama3", "yarn", "longrope", "same", "factors"])):
        case "linear":
            return RopeScaling("linear", factor)
        case "dynamic":
            return RopeScaling("dynamic", factor, draw(st.sampled_from([0, original])))
        case "llama3":
            low, more = draw(st.floats(1e-3, 1e3)), draw(st.floats(1e-3, 1e3))
            return RopeScaling("llama3", factor, original, low, low + more)
        case "factors":
            return RopeScaling("factors", factors=draw(lists))
        case "yarn":
            return RopeScaling(
                "yarn",
                factor,
                original,
                beta_fast=draw(NUMBERS),
                beta_slow=draw(NUMBERS),
                truncate=draw(st.booleans()),
                mscale=draw(st.floats(0, 1e6)),
                mscale_all_dim=draw(st.floats(0, 1e6)),
                attention_factor=draw(st.none() | NUMBERS),
            )
        case kind:
            short = draw(lists)
            long = short if kind == "same" else draw(lists)
            return RopeScaling.longrope(factor, original, draw(st.none() | st.just(1.0) | NUMBERS), short, long)


@st.composite
def configurations(draw: st.DrawFn) -> ModelSpec:
    """Any that a reader of ours makes; the sizes are small, so that a model can be made of each."""
    kv, shared, layers = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([2, 4, 10, 16]))
    window = draw(st.none() | LENGTHS)
    return ModelSpec(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.sampled_from([32, 64, 96])),
        intermediate_size=draw(st.integers(1, 70)),
        num_hidden_layers=layers,
        num_attention_heads=kv * shared,
        num_key_value_heads=kv,
        head_dim=head_dim,
        max_position_embeddings=draw(LENGTHS),
        rms_norm_eps=draw(st.floats(1e-12, 0.1)),
        rope_theta=draw(st.floats(1.001, 1e15)),
        rope_scaling=draw(st.none() | scalings(head_dim // 2)),
        tie_word_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        sliding_window=window,
        layer_types=first_full(layers, draw(st.integers(0, layers - 1))) if window else (),
        bos_token_id=draw(st.none() | st.just(0)),
        eos_token_ids=draw(st.lists(st.integers(0, 2**24), max_size=3, unique=True).map(tuple)),
        pad_token_id=draw(st.none() | st.integers(0, 2**24)),
        dtypes=draw(st.builds(Dtypes, st.none() | DTYPES, DTYPES, DTYPES, DTYPES, st.none() | DTYPES)),
    )


SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0.01, 100),
        "top_k": st.integers(0, 2**24),
        "seed": st.integers(0, 2**64 - 1),
        "max_length": st.none() | LENGTHS,
    },
)


@given(configurations())
def test_any_configuration_is_read_as_it_was_written(config: ModelSpec) -> None:
    text = json.dumps(hf_config(config))
    assert hf(json.loads(text), "it").config == config


def in_memory(folder: Path, config: ModelSpec, sampling: dict[str, Any]) -> LazyCheckpoint:
    """A model with these shapes and settings that came from no file."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    arrays = {name: chance.standard_normal(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    entries = {name: float_entry(name, array) for name, array in arrays.items()}
    return LazyCheckpoint(folder, config, entries, folder, sampling, (), ())


@settings(max_examples=25, deadline=None)
@given(configurations(), SAMPLING, st.sampled_from([None, 8, 16]), st.sampled_from(["int4", "int8", "bnb-nf4"]))
def test_any_model_is_opened_as_it_was_converted(
    tmp_path_factory: pytest.TempPathFactory, config: ModelSpec, sampling: dict[str, Any], bits: Any, scheme: Any
) -> None:
    home = tmp_path_factory.mktemp("any")
    try:
        convert(in_memory(home / "in", config, sampling), home / "out", Recipe(scheme, kv_bits=bits))
    except ModelError as error:
        assert scheme == "bnb-nf4" and "transformers has no Llama" in str(error)
        return
    opened = open_checkpoint(home / "out")
    assert opened.config.quantization is not None
    assert opened.config.quantization.kv_bits == bits
    assert replace(opened.config, quantization=None) == config
    assert opened.sampling == {name: value for name, value in sampling.items() if value is not None}


# from each format, and into transformers

PAIRS = 8  # of a head of the tiny model
FACTORS = np.linspace(1, 8, PAIRS, dtype=np.float32)


def gguf(folder: Path, extra: Any = None, **keys: Any) -> Path:
    metadata = {f"llama.rope.scaling.{name}": value for name, value in keys.items()}
    return save_gguf(tiny_model(), folder / "gguf", metadata=metadata, extra=extra)


def over_yaml(folder: Path, **changes: Any) -> Path:
    """A YAML whose model differs from that of the Hugging Face folder it names."""
    save_tokenizer(save_hf(tiny_model(), folder / "weights"))
    (folder / "weights/generation_config.json").write_text('{"temperature": 0.4, "top_k": 7, "eos_token_id": [9]}')
    given = {
        "vocab_size": 320,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "seq_length": 2048,
        "theta": 12345.0,
        "rms_norm_eps": 1e-3,
        "compute_dtype": "bfloat16",
        "rotary_dtype": "float16",
        "top_k": 3,
        "repetition_penalty": 1.25,
        "max_decode_length": 96,
    }
    file = folder / "predict.yaml"
    model = {"model_config": given | changes, "arch": {"type": "LlamaForCausalLM"}}
    file.write_text(yaml.safe_dump({"seed": 3, "load_checkpoint": "weights", "model": model}))
    return file


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
YARN = {"beta_slow": 1.0, "beta_fast": 16.0, "mscale": 1.0, "mscale_all_dim": 0.8}
TWO_LISTS = {"rope_factors_long.weight": FACTORS * 2, "rope_factors_short.weight": FACTORS}


def scaled(**rope: Any) -> Any:
    return lambda folder: save_hf(tiny_model(rope_parameters={"rope_theta": 5000.0, **rope}), folder / "hf")


SOURCES: dict[str, Any] = {
    "lit": lambda folder: save_lit(tiny_model(), folder / "lit"),
    "meta": lambda folder: save_meta(tiny_model(), folder / "meta"),
    "meta llama3": lambda folder: save_meta(tiny_model(), folder / "meta", use_scaled_rope=True, rope_theta=5e5),
    "gguf": gguf,
    "gguf linear": lambda folder: gguf(folder, type="linear", factor=4.0),
    "gguf yarn": lambda folder: gguf(folder, type="yarn", factor=8.0, original_context_length=256),
    "gguf factors": lambda folder: gguf(folder, {"rope_freqs.weight": FACTORS}),
    "gguf longrope": lambda folder: gguf(folder, TWO_LISTS, type="longrope", original_context_length=512),
    "hf linear": scaled(rope_type="linear", factor=3.0),
    "hf dynamic": scaled(rope_type="dynamic", factor=3.0),
    "hf yarn": scaled(rope_type="yarn", factor=8.0, original_max_position_embeddings=256, attention_factor=1.1),
    "hf llama3": scaled(rope_type="llama3", factor=8.0, **LLAMA3),
    "hf bias": lambda folder: save_hf(tiny_model(attention_bias=True, mlp_bias=True, head_dim=24), folder / "hf"),
    "yaml": over_yaml,
    "yaml linear": lambda folder: over_yaml(folder, extend_method="PI", scaling_factor=2.0),
    "yaml dynamic": lambda folder: over_yaml(folder, extend_method="DYNAMIC_NTK"),
    "yaml yarn": lambda folder: over_yaml(
        folder, extend_method="YARN", scaling_factor={"factor": 8.0, "original_max_position_embeddings": 256, **YARN}
    ),
    "yaml llama3": lambda folder: over_yaml(folder, extend_method="LLAMA3", scaling_factor={"factor": 8.0, **LLAMA3}),
}


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What transformers says of a RoPE that it does not like."""
    said: list[str] = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(modeling_rope_utils.logger, name, said.append)
    yield said


@pytest.mark.usefixtures("bitsandbytes_as_stored")
@pytest.mark.parametrize("name", SOURCES)
def test_the_output_of_every_format_is_what_it_was_to_us_and_to_transformers(
    name: str, tmp_path: Path, complaints: list[str]
) -> None:
    source = open_checkpoint(SOURCES[name](tmp_path))
    convert(source, tmp_path / "out", Recipe("bnb-nf4"))
    opened = open_checkpoint(tmp_path / "out")
    assert replace(opened.config, quantization=None) == replace(source.config, quantization=None)
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert complaints == []
    kind = theirs.rope_parameters["rope_type"]
    if kind != "default":
        for context in (128, 4096):
            ours, factor = frequencies(source.config, context)
            inverse, scale = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=context)
            np.testing.assert_allclose(ours, inverse.numpy(), rtol=2e-6)
            assert factor == pytest.approx(scale)
    ids = [(i * i) % 320 for i in range(48)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).train()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # a YAML's
            module.compute_dtype = torch.float32
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    ours = run(build(replace_dtypes(opened), lambda name: None, 64), ids)
    np.testing.assert_allclose(logits, ours, atol=1e-4 * np.abs(ours).max())


def replace_dtypes(checkpoint: Checkpoint) -> Any:
    """The same in float32, to be compared with transformers in float32."""
    assert isinstance(checkpoint, LazyCheckpoint)
    return replace(checkpoint, config=replace(checkpoint.config, dtypes=Dtypes()))


def test_a_yaml_has_the_last_word_on_everything(tmp_path: Path) -> None:
    quant = {"quant_method": "rtn", "weight_dtype": "int8", "kvcache_dtype": "int8"}
    source = open_checkpoint(over_yaml(tmp_path, extend_method="PI", scaling_factor=2.0, quant_config=quant))
    convert(source, tmp_path / "out", Recipe("int4"))
    opened = open_checkpoint(tmp_path / "out")
    config = opened.config
    assert (config.rope_theta, config.rms_norm_eps, config.eos_token_ids) == (12345.0, 1e-3, (2,))
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.dtypes == Dtypes("bfloat16", rotary="float16")
    assert config.quantization is not None
    assert (config.quantization.scheme, config.quantization.kv_bits) == ("int4", 8)
    assert opened.sampling == source.sampling
    assert opened.sampling["top_k"] == 3
    assert (opened.sampling["seed"], opened.sampling["max_length"]) == (3, 96)


def test_a_hugging_face_folders_own_files_are_kept(tmp_path: Path) -> None:
    folder = save_hf(tiny_model(), tmp_path / "source")
    save_tokenizer(folder)
    told = {"do_sample": True, "temperature": 0.3, "eos_token_id": [2, 5], "_from_model_config": True}
    (folder / "generation_config.json").write_text(json.dumps(told))
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    convert(open_checkpoint(folder), tmp_path / "out", Recipe())
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    theirs, ours = (json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "out"))
    assert {name: value for name, value in ours.items() if name != "quantization_config"} == theirs


def test_files_beside_metas_that_its_reader_does_not_read_stay_behind(tmp_path: Path) -> None:
    folder = save_meta(tiny_model(), tmp_path / "meta")
    (folder / "generation_config.json").write_text('{"temperature": 0.1, "eos_token_id": 9}')
    (folder / "chat_template.jinja").write_text("no")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "no", "bos_token": "<s>", "add_bos_token": true}')
    source = open_checkpoint(folder)
    convert(source, tmp_path / "out", Recipe())
    opened = open_checkpoint(tmp_path / "out")
    assert (opened.chat_template, dict(opened.sampling)) == (None, {})
    assert opened.config.eos_token_ids == source.config.eos_token_ids
    assert opened.tokenizer().bos_id == source.tokenizer().bos_id


def test_greedy_sampling_is_told_transformers_in_its_words(tmp_path: Path) -> None:
    config = ModelSpec(8, 32, 32, 1, 1, 1, 4, 16)
    convert(in_memory(tmp_path / "in", config, {"temperature": 0.0, "top_k": 4}), tmp_path / "out", Recipe())
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"do_sample": False, "top_k": 4}
    assert open_checkpoint(tmp_path / "out").sampling == {"temperature": 0.0, "top_k": 4}


# what is not the same is never published


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06', "rms_norm_eps 1e-06, the source has 1e-05"),
        ("config.json", '"hidden_act": "silu"', '"hidden_act": "gelu"', "would not open again .*hidden_act"),
        ("config.json", '"scheme": "int8"', '"scheme": "int4"', "quantization"),
        ("generation_config.json", '"eos', '"temperature": 0.2, "eos', "sampling defaults"),
        ("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 3', "eos_token_ids"),
        ("tokenizer_config.json", "false", "true", "tokenizer bos_id"),
        ("tokenizer_config.json", "hello", "goodbye", "chat template"),
    ],
)
def test_an_output_that_differs_is_refused_in_one_line_and_deleted(
    file: str, old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the writer got one value wrong; the old output stays."""
    folder = save_hf(tiny_model(), tmp_path / "source")
    save_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "add_bos_token": false, "chat_template": "hello"}'
    )
    source = open_checkpoint(folder)
    convert(source, tmp_path / "out", Recipe())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def wrong(source: Checkpoint, recipe: Recipe, folder: Path) -> None:
        write(source, recipe, folder)
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    from quantize.convert import write_metadata as write

    monkeypatch.setattr("quantize.convert.write_metadata", wrong)
    with pytest.raises(ModelError, match=said) as caught:
        convert(source, tmp_path / "out", Recipe("int8"))
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (3, 0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"qkv_bias": "yes"}, "qkv_bias"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"dtypes": {"norm": "float8"}}, "norm"),
        ({"dtypes": {"head": "float32"}}, "head"),
        ({"kv_bits": 8}, "kv_bits"),
        ({"max_length": "long"}, "max_length"),
        ({"seed": -1}, "seed"),
        ({"hidden_size": 3}, "hidden_size"),
        ([], "llamachat"),
    ],
)
def test_our_own_key_is_read_as_strictly_as_the_rest(own: Any, said: str) -> None:
    raw = hf_config(ModelSpec(8, 32, 32, 1, 1, 1, 4, 16))
    with pytest.raises(ConfigError, match=said):
        hf(raw | {"llamachat": own}, "it")


def test_bare_factors_keep_a_rolling_window(tmp_path: Path) -> None:
    """They are the same for every length, also when Hugging Face's words for it are longrope's."""
    convert(open_checkpoint(gguf(tmp_path, {"rope_freqs.weight": FACTORS})), tmp_path / "out", Recipe())
    scaling = open_checkpoint(tmp_path / "out").config.rope_scaling
    assert scaling is not None
    assert not scaling.length_dependent
