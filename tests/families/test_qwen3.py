"""families/qwen3.py: which engine answers, and that it converts. That it is read and answers as theirs: test_files.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.native import build
from llamachat.formats.detect import open_checkpoint
from llamachat.models.load import load
from quantize.convert import convert
from quantize.recipe import Recipe


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    made = Qwen3ForCausalLM(config)
    for name, weight in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)
    return made.eval()


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_the_native_engine_runs_it(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    engine = load(str(tmp_path), device="cpu").engine
    assert engine.describe().startswith("native")
    ids = list(range(3, 15))
    right = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(advance(engine, Cache(16), ids, "all"), right, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("scheme", ["int8", "int4-gptq", "bnb-nf4"])
def test_it_converts_and_transformers_would_know_it(model: Any, tmp_path: Path, scheme: Any) -> None:
    model.save_pretrained(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf")
    text = [np.random.default_rng(n).integers(0, 320, 64).tolist() for n in range(4)]
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe(scheme), calibration=text)
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert (raw["model_type"], raw["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert "llamachat" not in raw, "nothing that config.json could not say"
    assert open_checkpoint(tmp_path / "out").config.qk_norm == "head"
