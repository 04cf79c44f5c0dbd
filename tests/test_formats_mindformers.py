"""formats/mindformers.py: a YAML file's configuration over weights in another format."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from checkpoints import save_hf, save_tokenizer, tiny_model

from llamachat.errors import ConfigError, FormatError
from llamachat.formats.detect import open_checkpoint
from llamachat.load import load

MODEL = {
    "type": "LlamaConfig",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "seq_length": 128,
    "rms_norm_eps": 1e-5,
    "compute_dtype": "float32",
    "max_decode_length": 96,
    "do_sample": False,
    "top_k": 3,
    "top_p": 1,
    "repetition_penalty": 1.1,
}


def write(folder: Path, weights: str | None = "weights", **changes: object) -> Path:
    save_hf(tiny_model(), folder / "weights")
    save_tokenizer(folder / "weights")
    file = folder / "predict.yaml"
    model = {"model_config": MODEL | changes, "arch": {"type": "LlamaForCausalLM"}}
    file.write_text(yaml.safe_dump({"seed": 3, "load_checkpoint": weights or "", "model": model}))
    return file


def test_the_yaml_runs_the_weights_it_names_with_its_own_settings(tmp_path: Path) -> None:
    model = load(str(write(tmp_path)))
    assert (model.sampling.temperature, model.sampling.top_k, model.sampling.repetition_penalty) == (0, 3, 1.1)
    assert model.sampling.seed == 3
    assert model.engine.slots == 96
    assert "float32" in model.engine.describe()


def test_tensors_are_those_of_the_weights(tmp_path: Path) -> None:
    file = write(tmp_path)
    theirs = dict(open_checkpoint(tmp_path / "weights").tensors())
    ours = dict(open_checkpoint(file).tensors())
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name].data, theirs[name].data) for name in ours)


def test_its_quant_config_is_applied_to_float_weights(tmp_path: Path) -> None:
    quant = {"quant_method": "rtn", "weight_dtype": "int8"}
    model = load(str(write(tmp_path, quant_config=quant)))
    packed = {name for name, info in model.checkpoint.index().items() if info.packing is not None}
    assert "model.layers.0.self_attn.q_proj.weight" in packed


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="lacks"):
        open_checkpoint(write(tmp_path, num_layers=3))


def test_a_yaml_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no weights"):
        open_checkpoint(write(tmp_path, weights=None))
