"""formats/mindformers.py: a YAML file's configuration over weights in another format."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from checkpoints import save_hf, save_tokenizer, tiny_model
from family_files import logits as right_logits
from family_files import model_of

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.native import build
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import ConfigError, FormatError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.models.load import LoadedModel
from llamachat.models.load import load as bare_load
from quantize.prepare import prepare

load = partial(bare_load, prepare=prepare)
NEEDS_COMPILER = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
IDS = [1, 17, 300, 4, 4, 99]

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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path)


def write(folder: Path, weights: str | None = "weights", **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
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


@pytest.mark.parametrize("skipped", ["w2", "feed_forward.w2", "layers.1.attention.w_qkv"])
def test_modules_not_to_be_converted_stay_in_float_under_mindformers_names(tmp_path: Path, skipped: str) -> None:
    quant = {"quant_method": "rtn", "modules_to_not_convert": ["lm_head", skipped]}
    index = load(str(write(tmp_path, quant_config=quant))).checkpoint.index()
    left = {name for name, info in index.items() if info.packing is None and len(info.shape) == 2}
    layers = [f"model.layers.{layer}." for layer in range(2)]
    expected = {f"{layer}mlp.down_proj.weight" for layer in layers}
    if "w_qkv" in skipped:
        expected = {f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"}
    assert left == expected | {"lm_head.weight"}


def logits(model: LoadedModel) -> np.ndarray:
    return advance(model.engine, Cache(64), IDS, "all")


@NEEDS_COMPILER
@pytest.mark.parametrize("asked", ["float16", "bfloat16", "float32", None])
@pytest.mark.parametrize("quant", [{"quant_method": "rtn", "weight_dtype": "int4"}, None], ids=["int4", "float"])
def test_on_a_cpu_the_native_engine_runs_it_and_says_what_it_computes_in(
    tmp_path: Path, asked: str | None, quant: dict[str, str] | None
) -> None:
    """None: MindFormers' own default, float16, is asked for as well."""
    said: list[str] = []
    model = load(str(write(tmp_path, compute_dtype=asked, quant_config=quant)), device="cpu", report=said.append)
    asked, used = asked or "float16", "8-bit integers and float32" if quant else "float32"
    differs = f" ({asked} is asked for)" if asked != used else ""
    about = model.engine.describe()
    assert about.startswith("native") and f"; computes in {used}{differs};" in about
    line = f"computing in {used}; the configuration asks for {asked}, which --engine torch keeps to"
    assert (line in said) == (asked != used)


@NEEDS_COMPILER
def test_quant_config_gives_packed_weights_whatever_the_compute_type(tmp_path: Path) -> None:
    quant = {"quant_method": "rtn", "weight_dtype": "int4"}
    sizes = [
        load(str(write(tmp_path / asked, compute_dtype=asked, quant_config=quant)), device="cpu").engine.weight_bytes  # type: ignore[attr-defined]
        for asked in ("float16", "bfloat16", "float32")
    ]
    dense = load(str(write(tmp_path / "dense")), device="cpu").engine.weight_bytes  # type: ignore[attr-defined]
    assert len(set(sizes)) == 1 and sizes[0] < 0.3 * dense


@pytest.mark.parametrize("asked", ["float16", "bfloat16", "float32"])
def test_torch_computes_in_what_is_asked_for(tmp_path: Path, asked: str) -> None:
    file = str(write(tmp_path, compute_dtype=asked))
    kept = load(file, device="cpu", engine="torch")
    assert f"computes in {asked};" in kept.engine.describe()
    assert f"keys and values {asked}" in kept.engine.describe()
    other = load(file, device="cpu", dtype="float32").engine.describe()  # a caller's dtype goes before it
    assert other.startswith("torch") and "computes in float32;" in other


@NEEDS_COMPILER
def test_the_native_engine_is_nearer_to_exact_than_the_types_asked_for(tmp_path: Path) -> None:
    """Why float weights run there too: nobody who asks for 16 bits gets less than these."""
    file = str(write(tmp_path, compute_dtype="bfloat16"))
    exact = logits(load(file, device="cpu", dtype="float32"))
    native, asked = (
        np.abs(logits(load(file, device="cpu", engine=engine)) - exact).max() for engine in ("native", "torch")
    )  # type: ignore[arg-type]
    assert native < 0.2 * asked


@NEEDS_COMPILER
def test_a_forced_native_engine_takes_a_configuration_that_names_types(tmp_path: Path) -> None:
    assert load(str(write(tmp_path)), engine="native").engine.describe().startswith("native")
    with pytest.raises(UsageError, match="computes in its own types only"):
        load(str(write(tmp_path)), engine="native", dtype="float32")


@pytest.mark.parametrize("where", ["file", "model_config"])
def test_experts_are_those_of_the_weights_and_in_the_yaml_as_its_own_mixtral_has_them(
    tmp_path: Path, where: str
) -> None:
    model = model_of("mixtral", head_dim=None, tie_word_embeddings=False)
    file = write(
        tmp_path, vocab_size=97, intermediate_size=96, num_layers=4, n_kv_heads=2, theta=1000000, rms_norm_eps=1e-6
    )
    shutil.rmtree(tmp_path / "weights")
    model.save_pretrained(tmp_path / "weights")
    source = yaml.safe_load(file.read_text())
    moe = {"expert_num": 5, "num_experts_chosen": 2, "capacity_factor": 1.1, "routing_policy": "TopkRouterV2"}
    (source if where == "file" else source["model"]["model_config"])["moe_config"] = moe
    file.write_text(yaml.safe_dump(source))
    checkpoint = open_checkpoint(file)
    engine = TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=32, dtype="float32")
    ids = [3, 17, 30, 4, 4, 90]
    np.testing.assert_allclose(advance(engine, Cache(32), ids, "all"), right_logits(model, ids), atol=1e-4, rtol=1e-4)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="lacks"):
        open_checkpoint(write(tmp_path, num_layers=3))


def test_a_yaml_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no weights"):
        open_checkpoint(write(tmp_path, weights=None))
