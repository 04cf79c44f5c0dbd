"""A PEFT folder is read strictly: what would compute something else is refused in one line that names key, value and file."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_gguf, save_hf, save_lit, save_meta, tiny_model
from family_files import CASES, model_of, save_family_gguf
from peft_folders import trained
from safetensors.torch import load_file, save_file

from llamachat.core.spec import QuantConfig
from llamachat.core.tensors import FloatTensor, to_float32
from llamachat.errors import ConfigError, FormatError, LlamachatError, ModelError, UsageError
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import Changed
from llamachat.formats.adapter_base import base_named, is_adapter
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import Patterns, open_peft
from llamachat.models.adapters import Adapters, reference
from quantize.once import Quantized

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2,
                         "num_key_value_heads": 2}  # fmt: skip
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_hf(tiny_model(**SMALL), tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_model(**SMALL), tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "adapter"))


def reconfigured(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refilled(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    state = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("lora_bias", True), ("use_qalora", True), ("use_bdlora", {"nblocks": 2}),
        ("alora_invocation_tokens", [1, 2]), ("arrow_config", {"top_k": 1}), ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"n": 1}), ("layer_replication", [[0, 1]]), ("megatron_config", {"a": 1}),
        ("trainable_token_indices", [3]), ("enable_lora", [True]), ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"), ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"), ("init_lora_weights", "lora_ga"), ("peft_type", "IA3"), ("peft_type", "ADALORA"),
        ("bias", "some"), ("r", 0), ("r", 10**9), ("r", "4"), ("lora_alpha", "16"), ("use_rslora", 1),
        ("rank_pattern", ["q_proj"]), ("rank_pattern", {"q_proj": 0}), ("alpha_pattern", {"q_proj": "a"}),
        ("rank_pattern", {"(a{9999}){9999}": 4}), ("rank_pattern", {"q_proj(": 4}), ("something_new", 3),
        ("target_parameters", "gate"),
    ],
)  # fmt: skip
def test_what_is_not_lora_or_not_known_is_refused_by_key_value_and_file(
    folder: Path, base: Checkpoint, key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        open_peft(reconfigured(folder, **{key: value}), base)
    said = str(refused.value)
    assert "\n" not in said and key in said and CONFIG in said
    assert not isinstance(value, str) or value in said


@pytest.mark.parametrize(
    "changes",
    [
        {"loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2}}, {"init_lora_weights": "gaussian"},
        {"task_type": "CAUSAL_LM"},
        {"target_modules": "anything"}, {"runtime_config": {}}, {"merge_weights": False}, {"trainable_token_indices": None},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_taken_and_told(folder: Path, base: Checkpoint, changes: dict[str, Any]) -> None:
    read = open_peft(reconfigured(folder, **changes), base)
    assert {*changes} - {"init_lora_weights", "trainable_token_indices"} <= {*read.ignored}
    assert read.rank == 4 and len(read.matrices) == 7


def lacking(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: state[name] for name in state if "q_proj.lora_B" not in name}


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def narrower(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[:, :-1] if "q_proj.lora_A" in name else tensor for name, tensor in state.items()}


def infinite(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor / 0 if "v_proj.lora_B" in name else tensor for name, tensor in state.items()}


def beside(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[..., dict[str, torch.Tensor]]:
    return lambda state: {**state, f"base_model.model.{name}": torch.ones(shape, dtype=dtype)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, "q_proj' in .* has not just two matrices"),
        (renamed("layers.0", "layers.1"), "layers.1.*no such tensor; give the right base"),
        (renamed("q_proj", "x_proj"), "x_proj.*no such tensor"),
        (renamed("base_model.model.", "transformer."), "begin with base_model.model"),
        (narrower, r"matrices \(32, 4\) and \(4, 31\); the base is another model"),
        (infinite, "values that are not finite"),
        (beside("model.norm.weight", 31), "is .31,.; it is another model's"),
        (beside("lm_head.weight", 321, 32), "another model's"),
        (beside("model.embed_tokens.base_layer.weight", 400, 32), "another vocabulary"),
        (beside("model.layers.0.self_attn.q_proj.bias", 32), "no such tensor"),
        (beside("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 32), "no such tensor"),
        (beside("prompt_embeddings", 3, 32), "no such tensor"),
        (beside("model.norm.weight", 32, dtype=torch.int64), "holds int64"),
        (lambda state: {}, "holds no tensors"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_this_models_are_refused_in_one_line(
    folder: Path, base: Checkpoint, change: Callable[..., dict[str, torch.Tensor]], said: str
) -> None:
    with pytest.raises(FormatError, match=said) as refused:
        open_peft(refilled(folder, change), base)
    assert "\n" not in str(refused.value)


def test_a_rank_that_the_configuration_does_not_say_is_refused(folder: Path, base: Checkpoint) -> None:
    with pytest.raises(FormatError, match=r"q_proj' have the rank 4, .*adapter_config.json says 3"):
        open_peft(reconfigured(folder, rank_pattern={"q_proj": 3}), base)


def test_a_folder_without_weights_says_so(folder: Path, base: Checkpoint) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        open_peft(folder, base)


def test_a_pickle_is_read_through_the_allow_list(folder: Path, base: Checkpoint) -> None:
    before = open_peft(folder, base)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    after = open_peft(folder, base)
    assert before.matrices.keys() == after.matrices.keys()
    for name, low in before.matrices.items():
        assert np.array_equal(low.a, after.matrices[name].a) and low.scale == after.matrices[name].scale
    torch.save({"x": print}, folder / "adapter_model.bin")
    with pytest.raises(FormatError, match="may run code"):
        open_peft(folder, base)


def test_values_in_16_bits_are_taken_as_they_are(folder: Path, base: Checkpoint) -> None:
    whole = open_peft(folder, base).matrices
    state = load_file(folder / WEIGHTS)
    for dtype in (torch.float16, torch.bfloat16):
        refilled(folder, lambda _: {name: tensor.to(dtype) for name, tensor in state.items()})  # noqa: B023
        for name, low in open_peft(folder, base).matrices.items():
            expected = torch.from_numpy(to_float32(whole[name].a).copy()).to(dtype).float().numpy()
            assert low.a.itemsize == 2 and np.array_equal(to_float32(low.a), expected)


def test_patterns_match_as_pefts_do_and_in_bounded_time() -> None:
    patterns = Patterns("here", {"q_proj": 1, r"layers\.\d+\.mlp\.(up|down)_proj": 2, "^model.norm": 3, ".*k_proj": 4})
    found = [patterns.of(name, 0) for name in ("model.layers.3.self_attn.q_proj", "q_proj", "xq_proj",
             "layers.12.mlp.down_proj", "model.norm", "a.model.norm", "b.k_proj")]  # fmt: skip
    assert found == [1, 1, 0, 2, 3, 0, 4]
    slow = Patterns("here", {"(x+x+)+y": 1, "(.*.*.*.*.*.*)*(a|b|ab)*(a|b|ab)*z": 2})
    try:
        assert slow.of("x" * 60 + ".ab" * 20, 0) == 0
    except ConfigError as error:
        assert "takes more than" in str(error)


def merged_into(path: Path, folder: Path) -> dict[str, Any]:
    base = open_checkpoint(path)
    whole = Changed(base, [(open_peft(folder, base), 1.0)], merge=True)
    return {name: to_float32(tensor.data) for name, tensor in whole.tensors() if isinstance(tensor, FloatTensor)}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5)


def test_a_base_in_another_format_has_the_same_adapter(tmp_path: Path) -> None:
    """Also where the file's own rows and names are others."""
    folder, model = trained(tiny_model(), tmp_path / "adapter"), tiny_model()
    theirs = merged_into(save_hf(model, tmp_path / "hf"), folder)
    for path in (save_gguf(model, tmp_path / "g"), save_meta(model, tmp_path / "m"), save_lit(model, tmp_path / "l")):
        same(merged_into(path, folder), theirs)


@pytest.mark.parametrize("family", ["glm4", "phi3", "mixtral"])
def test_names_of_an_adapter_are_transformers_beside_a_gguf_file_too(family: str, tmp_path: Path) -> None:
    _, _, (arch, changes) = CASES[family]  # type: ignore[misc]
    model = model_of(family, **changes)
    folder = trained(copy.deepcopy(model), tmp_path / "adapter", target_modules="all-linear")
    model.save_pretrained(tmp_path / "hf")
    same(merged_into(save_family_gguf(model, arch, tmp_path / "a.gguf"), folder), merged_into(tmp_path / "hf", folder))


def test_weights_that_are_quantized_already_are_not_merged_into(folder: Path, base: Checkpoint) -> None:
    coded = Quantized(base, QuantConfig("int8"))
    with pytest.raises(ModelError, match="are quantized already; nothing can be merged into them"):
        Changed(coded, [(open_peft(folder, coded), 1.0)], merge=True)


def test_whole_tensors_stay_at_scale_1_and_cannot_be_had_twice(tmp_path: Path, base: Checkpoint) -> None:
    folders = [trained(tiny_model(**SMALL), tmp_path / name, modules_to_save=["lm_head"]) for name in "ab"]
    for text in (f"{folders[0]}:0.5", f"{folders[0]}:0"):
        with pytest.raises(UsageError, match=r"whole tensors of its own .*lm_head.weight.*leave its scale at 1"):
            Adapters.opened(base, [text])
    adapters = Adapters.opened(base, folders)
    with pytest.raises(UsageError, match="cannot be had together"):
        adapters.changed(base)
    one = Adapters.opened(base, folders[:1])
    assert [*one.changed(base).files] == [*base.files, folders[0] / CONFIG, folders[0] / WEIGHTS]
    with pytest.raises(UsageError, match="leave its scale at 1"):
        one.scale("a", 0.0)
    with pytest.raises(UsageError, match="start again with --lora"):
        Adapters(base).add(folders[0])


def test_what_names_an_adapter_may_end_in_a_scale(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd:2").mkdir()
    texts = [(f"{folder}", 1.0), (f"{folder}:0.5", 0.5), (f"{folder}:-3", -3.0), (f"{tmp_path}/odd:2", 1.0)]
    assert [reference(text).scale for text, _ in texts] == [scale for _, scale in texts]
    assert reference(f"{tmp_path}/odd:2:3").scale == 3 and reference((folder, 0.25)).scale == 0.25
    for bad in (f"{folder}:x", f"{folder}:nan", f"{folder}:1e9", f"{folder}:"):
        with pytest.raises(UsageError):
            reference(bad)


def test_an_adapter_names_its_base(folder: Path) -> None:
    assert is_adapter(folder)
    assert base_named(reconfigured(folder, base_model_name_or_path=" owner/repo ", revision="v1")) == (
        "owner/repo",
        "v1",
    )
    assert base_named(reconfigured(folder, base_model_name_or_path=None, revision=None)) == ("", None)
    with pytest.raises(LlamachatError, match="base_model_name_or_path is 3"):
        base_named(reconfigured(folder, base_model_name_or_path=3))
