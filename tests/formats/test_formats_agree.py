"""The same model in every foreign format: one set of tensors, one configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import arrays, save_bin, save_gguf, save_hf, save_lit, save_meta, tiny_model

from llamachat.core.cache import CacheStep
from llamachat.core.tensors import FloatTensor
from llamachat.engines.torch.engine import TorchEngine
from llamachat.formats.detect import open_checkpoint

Save = Callable[[Any, Path], Path]
FORMATS: dict[str, Save] = {
    "safetensors": save_hf,
    "sharded": lambda model, folder: save_hf(model, folder, sharded=True),
    "bin": save_bin,
    "meta": save_meta,
    "meta-2-rows": lambda model, folder: save_meta(model, folder, shards=2, embedding_axis=0),
    "meta-2-columns": lambda model, folder: save_meta(model, folder, shards=2, embedding_axis=1),
    "lit": save_lit,
    "gguf": save_gguf,
}


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS.keys())
def test_tensors_are_transformers_own_bit_for_bit(tmp_path: Path, save: Save) -> None:
    model = tiny_model()
    tensors, expected = dict(open_checkpoint(save(model, tmp_path / "model")).tensors()), arrays(model)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert isinstance(tensor, FloatTensor)
        np.testing.assert_array_equal(tensor.data, expected[name], strict=True)


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS.keys())
def test_the_configuration_computes_the_same_model(tmp_path: Path, save: Save) -> None:
    """Context length and control tokens are not compared: not every format says them."""
    ours = open_checkpoint(save(tiny_model(), tmp_path / "model")).config
    theirs = tiny_model().config
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    assert (ours.head_dim, ours.rope_theta, ours.rope_scaling) == (16, 10000.0, None)
    assert ours.rms_norm_eps == pytest.approx(1e-5, rel=1e-6)  # GGUF holds it as float32


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS.keys())
def test_logits_are_transformers_own(tmp_path: Path, save: Save) -> None:
    model, ids = tiny_model(), [1, 17, 300, 4, 4, 99]
    checkpoint, where = open_checkpoint(save(model, tmp_path / "model")), np.arange(len(ids))
    engine = TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=len(ids), dtype="float32")
    logits = engine.forward(ids, CacheStep(where, where, (range(len(ids)),)), "all")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
