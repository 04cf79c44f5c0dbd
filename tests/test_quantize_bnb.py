"""bitsandbytes' serialisation both ways: transformers loads what we write, and computes what we compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hf, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llamachat.eval import run
from llamachat.formats.detect import open_checkpoint
from llamachat.tensors import dequantize
from quantize.convert import convert
from quantize.quality import build
from quantize.recipe import Recipe

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
