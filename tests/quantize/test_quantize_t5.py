"""T5 in int8 and int4: the folder opens as the same model, tables and norms stay, and what cannot be done is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from t5_models import SHAPE, save_t5, save_t5_gguf, t5_logits, t5_model
from typer.testing import CliRunner

from llamachat.cli.quantize import quantize_model
from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.spec import Dtypes, RopeScaling
from llamachat.core.tensors import FloatTensor, dequantize
from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine
from llamachat.errors import ModelError, UsageError
from llamachat.families.t5 import EncoderDecoderSpec, our_name
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.hf_t5 import hf_t5
from llamachat.formats.prequantized.ours import verify
from llamachat.formats.prequantized.schemes import SCHEMES
from quantize.bnb import bnb_entries
from quantize.convert import convert
from quantize.recipe import Recipe
from quantize.to_hf import t5_config

SOURCE, ANSWER = [*range(3, 60), 1], [0, *range(40, 70)]


def logits(path: Path) -> Any:
    checkpoint = open_checkpoint(path)
    engine = EncoderDecoderEngine.build(checkpoint.config, checkpoint.tensors(), slots=64, dtype="float32")
    engine.encode(0, SOURCE)
    return advance(engine, Cache(64), ANSWER, "all")


def theirs(model: Any, path: Path) -> Any:
    """transformers' logits with the values that a folder's tensors stand for."""
    values = dict(open_checkpoint(path).tensors())
    for name, weight in model.named_parameters():
        stored = values.get(our_name(name), values["model.embed_tokens.weight"])  # a tied head has none of its own
        weight.data = torch.from_numpy(dequantize(stored).copy())
    return t5_logits(model, SOURCE, ANSWER)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return without_tokenizer(save_t5(tmp_path / "source"))


def without_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize("case", ["t5", "v1.1", "mt5"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_output_opens_as_the_same_model_and_is_run_with_its_values(case: str, scheme: str, tmp_path: Path) -> None:
    source = without_tokenizer(save_t5(tmp_path / "source", case))
    out = tmp_path / "out"
    convert(open_checkpoint(source), out, Recipe(scheme))
    verify(out)
    before, after = open_checkpoint(source), open_checkpoint(out)
    assert replace(after.config, quantization=None) == before.config
    original, kinds = dict(before.tensors()), set[str]()
    for name, tensor in after.tensors():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if isinstance(tensor, FloatTensor):
            kinds.add(part)
            np.testing.assert_array_equal(dequantize(tensor), dequantize(original[name]))
    norms = {"input_layernorm", "cross_attn_layernorm", "post_attention_layernorm", "norm"}
    assert kinds == norms | {"relative_attention_bias"}
    np.testing.assert_allclose(logits(out), theirs(t5_model(case), out), atol=2e-4, rtol=1e-4)


def test_a_table_as_wide_as_a_group_stays_in_float(tmp_path: Path) -> None:
    source = without_tokenizer(save_t5(tmp_path / "source", num_heads=32))
    convert(open_checkpoint(source), tmp_path / "out", Recipe("int8"))
    packings = {name: info.packing for name, info in open_checkpoint(tmp_path / "out").index().items()}
    assert packings["decoder.relative_attention_bias.weight"] is None
    assert packings["decoder.layers.0.cross_attn.q_proj.weight"] is not None


def test_a_gguf_file_is_converted_with_what_it_says(tmp_path: Path) -> None:
    source = save_t5_gguf(t5_model("t5"), tmp_path / "t5.gguf")
    convert(open_checkpoint(source), tmp_path / "out", Recipe("int8"))
    assert replace(open_checkpoint(tmp_path / "out").config, quantization=None) == open_checkpoint(source).config
    np.testing.assert_allclose(logits(tmp_path / "out"), theirs(t5_model("t5"), tmp_path / "out"), atol=2e-4, rtol=1e-4)


def test_untied_weights_do_not_change_what_the_head_is_given(tmp_path: Path) -> None:
    """A file of the original T5 may have a head of its own; transformers scales by the word alone."""
    source = without_tokenizer(save_t5(tmp_path / "source"))
    config = json.loads((source / "config.json").read_text()) | {"scale_decoder_outputs": True}
    (source / "config.json").write_text(json.dumps(config))
    convert(open_checkpoint(source), tmp_path / "out", Recipe("int8"))
    after = open_checkpoint(tmp_path / "out").config
    assert (after.tie_word_embeddings, after.logit_multiplier) == (False, 64**-0.5)


def test_bitsandbytes_folders_are_read(source: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(source / "model.safetensors")
    packed, scheme = {name for name in arrays if name.endswith((".q.weight", ".wi_0.weight"))}, SCHEMES["bnb-nf4"]
    coded = {key: part for name in packed for key, part in bnb_entries(name, arrays[name], scheme).items()}
    save_file(
        {name: array for name, array in arrays.items() if name not in packed} | coded, source / "model.safetensors"
    )
    config = json.loads((source / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors = {
        name: tensor for name, tensor in open_checkpoint(source).tensors() if not isinstance(tensor, FloatTensor)
    }
    assert len(tensors) == len(packed)
    for layer in range(2):
        theirs = arrays[f"encoder.block.{layer}.layer.1.DenseReluDense.wi_0.weight"]
        ours = dequantize(tensors[f"encoder.layers.{layer}.mlp.gate_proj.weight"])
        assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs)


@pytest.mark.parametrize("scheme", ["int4-gptq", "bnb-nf4", "bnb-int8"])
def test_what_knows_decoders_alone_says_so(source: Path, tmp_path: Path, scheme: str) -> None:
    with pytest.raises(ModelError, match="this model has an encoder; nothing was converted; use int8 or int4"):
        run(source, tmp_path / "out", "--scheme", scheme)
    assert not (tmp_path / "out").exists()


def test_a_report_of_texts_is_refused_before_anything_is_converted(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this one answers a source; nothing was converted"):
        run(source, tmp_path / "out", "--report")
    assert "relative_attention_bias (2 of 2)" in run(source, tmp_path / "out"), "the table comes all the same"


def run(source: Path, out: Path, *options: str) -> str:
    app = typer.Typer()
    app.command()(quantize_model)
    return CliRunner().invoke(app, [str(source), "-o", str(out), *options], catch_exceptions=False).stdout


SIZES: dict[str, Any] = {
    "vocab_size": SHAPE["vocab_size"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 100,
    "attention_scale": 1.0, "tie_word_embeddings": True,
}  # fmt: skip
MEGATRON: dict[str, Any] = {
    "norm_kind": "layer", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True, "head_bias": True,
    "attention_scale": 8**-0.5, "activation": "gelu",
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gated": True, "activation": "gelu_pytorch_tanh", "eos_token_ids": (1, 5), "pad_token_id": 0},
        {"activation": "gelu_pytorch_tanh", "logit_multiplier": 64**-0.5, "bos_token_id": 3},
        {"activation": "silu", "gated": True, "relative_buckets": 8, "relative_distance": 20},
        {"gated": True, "activation": "gelu"},
        MEGATRON | {"positions": "learned_absolute", "dtypes": Dtypes(compute="bfloat16")},
        MEGATRON | {"positions": "rope", "rotary_dim": 4, "rope_scaling": RopeScaling("linear", 2.5)},
    ],
)
def test_every_specs_configuration_reads_as_the_spec(changes: dict[str, Any]) -> None:
    spec = EncoderDecoderSpec(**SIZES | changes)
    raw = json.loads(json.dumps(t5_config(spec)))
    assert hf_t5(raw, "config.json").config == spec
