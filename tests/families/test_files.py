"""Every family from the files that people have: what transformers saves and llama.cpp's converter writes."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from checkpoints import same_coding
from family_files import CASES, IDS, logits, microscaled, model_of, save_family_gguf
from safetensors.torch import load_file, save_file

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.tensors import dequantize
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.formats.detect import open_checkpoint
from quantize.convert import convert
from quantize.recipe import Recipe


def ours(path: Path, slots: int = 64) -> Any:
    checkpoint = open_checkpoint(path)
    engine = TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=slots, dtype="float32")
    return advance(engine, Cache(slots), IDS, "all")


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2]])
def test_a_gguf_file_gives_the_logits_of_the_model_that_it_was_made_of(case: str, tmp_path: Path) -> None:
    arch, changes = CASES[case][2] or ("", {})
    model = model_of(case, **changes)
    path = save_family_gguf(model, arch, tmp_path / "model.gguf")
    np.testing.assert_allclose(ours(path), logits(model, IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("case", "quant", "bits"), [("gpt-oss", "MXFP4", 4), ("mixtral", "Q8_0", 8)])
def test_each_expert_of_a_packed_stack_is_read_by_itself(case: str, quant: str, bits: int, tmp_path: Path) -> None:
    arch, changes = CASES[case][2] or ("", {})
    path = save_family_gguf(model_of(case, **changes), arch, tmp_path / "model.gguf", quant)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    checkpoint = open_checkpoint(path)
    for ours, theirs in (("gate_proj", "ffn_gate_exps"), ("down_proj", "ffn_down_exps")):
        tensor = stored[f"blk.1.{theirs}.weight"]
        stack = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for number, right in enumerate(stack):
            name = f"model.layers.1.mlp.experts.{number}.{ours}.weight"
            packed = checkpoint.entries[name].read()
            same_coding(checkpoint.index()[name].packing, packed)
            assert packed.bits == bits
            np.testing.assert_array_equal(dequantize(packed), right)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_folder_opens_as_the_same_model_near_its_logits(case: str, tmp_path: Path) -> None:
    model = model_of(case)
    model.save_pretrained(tmp_path / "hf")
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe("int8"))
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw["model_type"] == model.config.model_type and "llamachat" not in raw
    report = json.loads((tmp_path / "out/quantization.json").read_text())["tensors"]
    checkpoint = open_checkpoint(tmp_path / "out")
    assert report.keys() == checkpoint.config.tensor_shapes().keys()
    right, rows = logits(model, IDS), ours(tmp_path / "out")
    assert kl(right, rows) < 0.02


@pytest.mark.parametrize("case", ["gemma3", "gpt-oss", "granite", "glm4"])
def test_a_gguf_file_converts_to_a_folder_that_says_all_of_it(case: str, tmp_path: Path) -> None:
    arch, changes = CASES[case][2] or ("", {})
    model = model_of(case, **changes)
    path = save_family_gguf(model, arch, tmp_path / "model.gguf")
    convert(open_checkpoint(path), tmp_path / "out", Recipe("int8"))
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == model.config.model_type
    assert kl(logits(model, IDS), ours(tmp_path / "out")) < 0.01


@pytest.mark.parametrize("case", ["gemma3", "gpt-oss", "qwen3 moe"])
def test_calibration_reaches_every_expert_or_rounds_it_plainly(case: str, tmp_path: Path) -> None:
    model = model_of(case)
    model.save_pretrained(tmp_path / "hf")
    text = [np.random.default_rng(n).integers(3, 97, 48).tolist() for n in range(4)]
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe("int4-gptq"), calibration=text)
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "plain", Recipe("int4"))
    right = logits(model, IDS)
    assert kl(right, ours(tmp_path / "out")) < 1.2 * kl(right, ours(tmp_path / "plain"))


@pytest.mark.parametrize("case", ["phi3", "glm4", "mixtral"])
def test_what_transformers_joins_is_not_packed_for_bitsandbytes(case: str, tmp_path: Path) -> None:
    model_of(case).save_pretrained(tmp_path / "hf")
    with pytest.raises(ModelError, match="joins or stacks"):
        convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe("bnb-nf4"))


@pytest.mark.parametrize(("kind", "case"), [("Gemma3", "gemma3"), ("Mistral3", "ministral3")])
def test_of_a_model_that_sees_pictures_the_text_is_read_and_the_rest_is_named(
    kind: str, case: str, tmp_path: Path
) -> None:
    text, vision = model_of(case).config.to_dict(), {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if kind == "Mistral3":
        vision |= {"model_type": "pixtral", "head_dim": 8}
    ends = {"text_config": text, "vision_config": vision, "tie_word_embeddings": text["tie_word_embeddings"]}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(getattr(transformers, f"{kind}Config")(**ends))
    model.eval().save_pretrained(tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    assert "vision_config" in checkpoint.ignored
    np.testing.assert_allclose(ours(tmp_path / "hf"), logits(model, IDS), atol=1e-4, rtol=1e-4)
    convert(checkpoint, tmp_path / "out", Recipe("int8"))
    assert "vision_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_gpt_oss_in_mxfp4_is_what_its_blocks_stand_for_and_stays_in_4_bits(tmp_path: Path) -> None:
    model = model_of("gpt-oss")
    model.save_pretrained(tmp_path)
    meant = microscaled(tmp_path)
    model.load_state_dict({name: torch.from_numpy(data) for name, data in meant.items()}, strict=False)
    checkpoint = open_checkpoint(tmp_path)
    packed = {name for name, info in checkpoint.index().items() if info.packing}
    assert packed == {name for name in checkpoint.index() if ".experts." in name and name.endswith("weight")}
    tensors = dict(checkpoint.tensors())
    assert all(tensors[name].bits == 4 for name in packed)
    np.testing.assert_allclose(ours(tmp_path), logits(model, IDS), atol=2e-4, rtol=1e-4)
    convert(checkpoint, tmp_path / "out", Recipe("int8"))
    quantized = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert quantized["quant_method"] == "llamachat"


def test_mxfp4_parts_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    model_of("gpt-oss").save_pretrained(tmp_path)
    microscaled(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    scales = next(name for name in arrays if name.endswith("_scales"))
    save_file(arrays | {scales: arrays[scales][:, 1:].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="do not fit together"):
        open_checkpoint(tmp_path)


def test_a_family_that_is_not_known_is_named_beside_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match=r"model_type is 'mamba'.*llama, mistral, .*gpt_oss") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"general\.architecture is 'rwkv7'.*llama, .*gpt-oss") as caught:
        open_checkpoint(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


def kl(right: Any, rows: Any) -> float:
    """Median KL divergence, in nats; a mean would be that of the few tokens for which another expert is picked."""
    p, q = (torch.from_numpy(each).log_softmax(-1) for each in (right, rows))
    return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).median())
