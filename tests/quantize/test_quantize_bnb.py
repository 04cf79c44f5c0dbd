"""bitsandbytes' serialisation both ways: transformers loads what we write, and computes what we compute."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from checkpoints import save_hf, save_tokenizer, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from quality import build
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import dequantize
from llamachat.errors import ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.prequantized.schemes import SCHEMES
from llamachat.generation.perplexity import run
from llamachat.models.load import load
from quantize.bnb import bnb_entries
from quantize.convert import REPORT, convert
from quantize.recipe import Recipe, in_transformers, read_recipe
from quantize.report import lines

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
]
IDS = [(i * i) % 320 for i in range(48)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_hf(tiny_model(), tmp_path / "source")


def theirs(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


FOUR_BIT = [Recipe("bnb-nf4"), Recipe("bnb-nf4", double_quant=True), Recipe("bnb-fp4")]


@pytest.mark.parametrize("recipe", FOUR_BIT, ids=["nf4", "nf4-double", "fp4"])
def test_transformers_loads_our_four_bits_and_gives_our_logits(source: Path, tmp_path: Path, recipe: Recipe) -> None:
    convert(open_checkpoint(source), tmp_path / "out", recipe)
    model = theirs(tmp_path / "out")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    ours = run(build(open_checkpoint(tmp_path / "out"), lambda name: None, 64), IDS)
    np.testing.assert_allclose(logits(model.train()), ours, atol=1e-4 * np.abs(ours).max())
    assert np.linalg.norm(logits(model.eval()) - ours) < 0.05 * np.linalg.norm(ours)  # where it computes in bfloat16


def test_transformers_loads_our_eight_bits_as_the_weights_we_mean(source: Path, tmp_path: Path) -> None:
    """In training it computes with floats, as we do; at inference it rounds the activations to 8 bits as well."""
    convert(open_checkpoint(source), tmp_path / "out", Recipe("bnb-int8"))
    model = theirs(tmp_path / "out")
    tensors = dict(open_checkpoint(tmp_path / "out").tensors())
    for name, module in model.model.named_modules():
        if type(module).__name__ == "Linear8bitLt":
            weight = module.weight.CB.float() * module.weight.SCB[:, None] / 127
            np.testing.assert_allclose(weight.numpy(), dequantize(tensors[f"model.{name}.weight"]), rtol=1e-6)
    ours = run(build(open_checkpoint(tmp_path / "out"), lambda name: None, 64), IDS)
    np.testing.assert_allclose(logits(model.train()), ours, atol=2e-3 * np.abs(ours).max())
    assert np.linalg.norm(logits(model.eval()) - ours) < 0.05 * np.linalg.norm(ours)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_our_codes_are_those_that_transformers_writes(source: Path, tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    config = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
    recipe: Any = Recipe(f"bnb-{kind}")  # type: ignore[arg-type]
    convert(open_checkpoint(source), tmp_path / "ours", recipe)
    theirs(source, quantization_config=config).save_pretrained(tmp_path / "theirs")
    ours = dict(open_checkpoint(tmp_path / "ours").tensors())
    for name, tensor in open_checkpoint(tmp_path / "theirs").tensors():
        np.testing.assert_array_equal(dequantize(tensor), dequantize(ours[name]), err_msg=name)


# widths that no group divides: 3 heads of 20 are not a multiple of 32, 3 of 32 are one but not of 64; 33 is odd
WIDTHS = [(60, 100), (96, 160), (66, 33)]


@pytest.mark.usefixtures("bitsandbytes_as_stored")
@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("recipe", [*FOUR_BIT, Recipe("bnb-int8")], ids=["nf4", "nf4-double", "fp4", "int8"])
def test_any_width_is_quantized_as_bitsandbytes_does(tmp_path: Path, recipe: Recipe, shape: tuple[int, int]) -> None:
    hidden, inner = shape
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    source = save_hf(tiny_model(hidden_size=hidden, intermediate_size=inner, **heads), tmp_path / "source")
    convert(open_checkpoint(source), tmp_path / "out", recipe)
    model = theirs(tmp_path / "out").train()
    quantized = {name for name, module in model.named_modules() if type(module).__name__ in BNB_LINEAR}
    assert len(quantized) == 14
    ours = run(build(open_checkpoint(tmp_path / "out"), lambda name: None, 64), IDS)
    np.testing.assert_allclose(logits(model), ours, atol=2e-3 * np.abs(ours).max())


BNB_LINEAR = ("Linear4bit", "Linear8bitLt")
VALUES = st.sampled_from([0.0, -0.0, 1e-45, -1e-39, 1e-38, 0.5, -1.0, 1.0, 2.0, 3e38]) | st.floats(-4, 4, width=32)


@settings(deadline=None)
@given(st.data(), st.sampled_from(["nf4", "fp4"]), st.sampled_from([32, 64, 128]), st.booleans())
def test_our_bytes_are_those_of_bitsandbytes_own_function(
    data: st.DataObject, kind: str, block: int, double: bool
) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((rows, columns), np.float32)
    odd: Mapping[int, float] = data.draw(st.dictionaries(st.integers(0, rows * columns - 1), VALUES, max_size=8))
    for place, value in odd.items():
        values.reshape(-1)[place] = value
    if data.draw(st.booleans()):
        values[rows // 2 :] = 0
    packed, state = bnb.quantize_4bit(
        torch.from_numpy(values), blocksize=block, quant_type=kind, compress_statistics=double
    )
    ours = bnb_entries("x.weight", values, replace(SCHEMES[f"bnb-{kind}"], group=block), double)
    np.testing.assert_array_equal(ours["x.weight"], packed.numpy(), strict=True)
    for part, tensor in state.as_dict(packed=True).items():
        np.testing.assert_array_equal(ours[f"x.weight.{part}"], tensor.numpy(), part, strict=True)


@given(st.integers(1, 5), st.integers(1, 50), st.integers(0, 99))
def test_our_eight_bits_are_those_of_bitsandbytes_own_function(rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    codes, scale, _ = bnb.int8_vectorwise_quant(torch.from_numpy(values))
    ours = bnb_entries("x.weight", values, SCHEMES["bnb-int8"])
    np.testing.assert_array_equal(ours["x.weight"], codes.numpy())
    np.testing.assert_array_equal(ours["x.SCB"], scale.numpy())


# what stays float

MODULES = [name.removesuffix(".weight") for name in tiny_model().state_dict() if "proj" in name or "head" in name]


@settings(deadline=None)
@given(st.text("lmoqp_.1*heads|()", min_size=1, max_size=12), st.sampled_from(MODULES))
def test_an_entry_to_skip_means_what_it_means_to_transformers(pattern: str, module: str) -> None:
    try:
        Recipe("bnb-nf4", skip_modules=(pattern,))
    except UsageError:
        return
    assert in_transformers(pattern, module) == (not should_convert_module(module, [pattern]))


@pytest.mark.parametrize(
    "skip", ["o_proj", "model.layers.1", "model.layers.1.mlp", "mlp.up", r".*\.[qk]_proj", "lm_head"]
)
@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-int8"])
def test_modules_to_skip_are_those_that_transformers_skips(
    source: Path, tmp_path: Path, scheme: Any, skip: str
) -> None:
    """As in a configuration that was written for transformers; our output lists them so that it finds the same."""
    settings = {"quant_method": "bitsandbytes", f"load_in_{4 if '4' in scheme else 8}bit": True}
    (tmp_path / "quant.json").write_text(json.dumps({**settings, "llm_int8_skip_modules": [skip, "lm_head"]}))
    recipe = read_recipe(tmp_path / "quant.json")
    convert(open_checkpoint(source), tmp_path / "out", recipe)
    expected = {name for name in MODULES if should_convert_module(name, [skip, "lm_head"])}
    model = theirs(tmp_path / "out")
    assert {name for name, module in model.named_modules() if type(module).__name__ in BNB_LINEAR} == expected
    index = open_checkpoint(tmp_path / "out").index()
    assert {name.removesuffix(".weight") for name, info in index.items() if info.packing is not None} == expected


def test_what_options_leave_in_float_is_named_in_full_and_told(source: Path, tmp_path: Path) -> None:
    recipe = Recipe("bnb-nf4", overrides=("*.o_proj=float", "*.1.mlp.*=float"))
    done = convert(open_checkpoint(source), tmp_path / "out", recipe)
    left = [f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
    left += [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert sorted(config["llm_int8_skip_modules"]) == sorted(["lm_head", *left])
    facts = json.loads((tmp_path / "out" / REPORT).read_text())["tensors"]
    floats = {name for name, fact in facts.items() if fact["scheme"] == "float" and len(fact["shape"]) == 2}
    assert floats == {f"{name}.weight" for name in (*left, "lm_head", "model.embed_tokens")}
    told = next(line for line in lines(done) if "left in float" in line)
    assert "o_proj (2 of 2)" in told
    assert "up_proj (1 of 2)" in told
    assert "lm_head" in told
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {name for name in stored if name.endswith("absmax")} == {
        f"{name}.weight.absmax" for name in MODULES if name not in (*left, "lm_head")
    }


def test_a_model_all_of_whose_widths_are_odd_loads_and_is_not_quantized_again(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    folder = save_hf(tiny_model(hidden_size=60, intermediate_size=100, **heads), tmp_path / "source")
    save_tokenizer(folder)
    convert(open_checkpoint(folder), tmp_path / "out", Recipe("bnb-nf4", double_quant=True))
    written = dict(open_checkpoint(tmp_path / "out").tensors())
    for name, tensor in load(str(tmp_path / "out")).checkpoint.tensors():
        np.testing.assert_array_equal(dequantize(tensor), dequantize(written[name]), name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 96}, "--group-size is 96; known are 32, 64"),
        ({"skip_modules": ("*.o_proj",)}, "no regular expression"),
        ({"skip_modules": ("(" * 5000,)}, "no regular expression"),
    ],
)
def test_what_bitsandbytes_has_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe("bnb-nf4", **options)


def test_a_llama_that_transformers_has_not_is_no_bitsandbytes_model() -> None:
    config = ModelSpec(320, 64, 256, 2, 4, 4, 16, 2048, qkv_bias=True, mlp_bias=True)
    with pytest.raises(ModelError, match="transformers has no Llama whose qkv_bias is True"):
        Recipe("bnb-nf4").check(config)
    Recipe("int8").check(config)
