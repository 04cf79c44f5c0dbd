"""load.py: what is refused before or while weights are read, memory planned and kept to, quantization as configured."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import arrays, save_gguf, save_hf, save_tokenizer, tiny_model
from safetensors.numpy import load_file, save_file

from llamachat import paths
from llamachat.core.spec import QuantConfig
from llamachat.core.tensors import dequantize
from llamachat.engines import memory
from llamachat.errors import DoesNotFitError, FormatError, UsageError
from llamachat.models.catalog import ModelEntry
from llamachat.models.load import load as bare_load
from llamachat.models.load import obtain
from llamachat.models.sources import LocalPath
from quantize.prepare import prepare

load = partial(bare_load, prepare=prepare)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_hf(tiny_model(), tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=f"{name} has values that are not finite"):
        load(str(folder))


def test_scales_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    from llamachat.formats.prequantized.ours import packed_entries
    from quantize.schemes import SCHEMES, quantize

    source = arrays(tiny_model())
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = quantize(source.pop(name), SCHEMES["int8"])
    tensor.scale[5, 1] = np.nan
    save_file({**source, **packed_entries(name, tensor)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "llamachat", "scheme": "int8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=f"{name} has values that are not finite"):
        load(str(folder))


def test_what_does_not_fit_is_refused_with_a_remedy_unless_forced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: memory.WORKSPACE + 900_000)
    with pytest.raises(DoesNotFitError, match=r"--ctx-size 256.*--force"):
        load(str(folder))
    assert load(str(folder), force=True).engine.slots == 2048


def test_what_does_not_fit_on_the_gpu_is_refused_before_anything_goes_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.WORKSPACE + 900_000, 1 << 40))
    with pytest.raises(DoesNotFitError, match=r"of the GPU's memory \(.*--ctx-size 1024"):
        load(str(folder), device="cuda")


def test_context_is_the_models_own_capped_or_as_asked(folder: Path) -> None:
    assert load(str(folder)).engine.slots == 2048
    assert load(str(folder), ctx_size=100).engine.slots == 100
    entry = ModelEntry("x", LocalPath(folder), context=64)
    assert load(entry).engine.slots == 64


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(paths, "cache_dir", lambda: folder)
    return folder


@pytest.mark.parametrize("scheme", ["int8", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"])
def test_float_weights_are_quantized_as_the_catalog_says_once(folder: Path, cache: Path, scheme: str) -> None:
    entry = ModelEntry("x", LocalPath(folder), quant_config=QuantConfig(scheme, skip=("*o_proj*",)))  # type: ignore[arg-type]
    model = load(entry, dtype="float32")
    original = arrays(tiny_model())
    bound = {"int8": 0.01, "bnb-int8": 0.02, "int4": 0.12, "bnb-nf4": 0.13, "bnb-fp4": 0.2}[scheme]
    index = model.checkpoint.index()
    for name, tensor in model.checkpoint.tensors():
        linear = "proj" in name and "o_proj" not in name
        outer = scheme in ("int8", "int4") and len(tensor.shape) == 2 and "proj" not in name
        assert (index[name].packing is not None) == (linear or outer)
        error = dequantize(tensor) - original[name]
        assert np.linalg.norm(error) <= bound * np.linalg.norm(original[name])
    (kept,) = (cache / "quantized").glob("*/manifest.json")
    made = kept.stat().st_mtime_ns
    load(entry, dtype="float32")
    assert kept.stat().st_mtime_ns == made, "the second time it is only opened"


def test_packed_weights_stay_as_they_are_whatever_the_catalog_says(tmp_path: Path, cache: Path) -> None:
    file = save_gguf(tiny_model(), tmp_path, quant="Q8_0")
    assert obtain(ModelEntry("x", LocalPath(file), quant_config=QuantConfig("int4"))) == file
    assert not (cache / "quantized").exists()


@pytest.mark.parametrize(("option", "value"), [("device", "cuda"), ("kv_bits", 7)])
def test_what_is_not_there_is_refused(folder: Path, option: str, value: object) -> None:
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UsageError):
        load(str(folder), **{option: value})  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="needs mkfifo")
def test_what_else_lies_in_a_models_folder_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.json")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    assert load(str(folder), ctx_size=64).engine.slots == 64


def test_where_nothing_can_be_written_a_model_loads_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "blocked").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "blocked"))
    assert load(str(folder), ctx_size=64).engine.slots == 64


PEAK = """
import resource, sys
import torch
from llamachat.models.load import load, obtain
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = load(sys.argv[1], ctx_size=64, dtype=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, model.engine.weight_bytes)
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_of_loading_stays_below_its_bound(smollm2_gguf: Path, dtype: str) -> None:
    """1.3 x the bytes that the weights need, plus 400 MB, of which torch itself takes some 300 before."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(smollm2_gguf), dtype], capture_output=True, text=True, check=True
    )
    peak, weights = map(int, run.stdout.split())
    assert weights > 90_000_000
    assert peak < 1.3 * weights + 100_000_000
