"""What each of several processes reads of every format: its part of the whole, bit for bit, and nothing beside it."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import as_wholes, save_gguf, save_hf, tiny_model
from family_files import CASES, microscaled, model_of, save_family_gguf
from gguf_files import write_gguf
from peft_folders import trained
from t5_models import save_t5, save_t5_gguf, t5_model
from test_bnb import quantize as save_bnb
from test_formats_agree import FORMATS
from test_formats_mindformers import write as write_yaml
from test_lit import save_gptq
from test_packed import model as packed_model
from test_packed import write as write_packed

from llamachat.core.spec import QuantConfig
from llamachat.core.tensors import dequantize
from llamachat.engines.shards import shards
from llamachat.formats import ggml, gguf_file
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.ggml import TYPES
from llamachat.formats.parts import Part, cut
from llamachat.formats.peft import open_peft
from quantize.once import Quantized

WIDE = {"hidden_size": 512, "intermediate_size": 768, "vocab_size": 96, "num_hidden_layers": 1, "head_dim": 128}
ODD = {"hidden_size": 60, "intermediate_size": 34, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 14}


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS.keys())
def test_float_formats(tmp_path: Path, save: Callable[[Any, Path], Path]) -> None:
    as_wholes(open_checkpoint(save(tiny_model(torch.bfloat16), tmp_path / "model")))


@pytest.mark.parametrize("quant", ["Q4_1", "Q8_0"])
def test_gguf_blocks(tmp_path: Path, quant: str) -> None:
    as_wholes(open_checkpoint(save_gguf(tiny_model(), tmp_path / "model", quant=quant)))


@pytest.mark.parametrize("quant", ["Q2_K", "Q4_K", "Q6_K"])
def test_gguf_blocks_that_a_part_cuts(tmp_path: Path, quant: str) -> None:
    as_wholes(open_checkpoint(save_blocks(tmp_path / "model.gguf", quant)))


def save_blocks(path: Path, quant: str, **shape: int) -> Path:
    """With random blocks, whose scales are finite."""
    model, random = tiny_model(**(WIDE | shape)), np.random.default_rng(0)
    kind = next(kind for kind in TYPES.values() if kind.name == quant)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    raw, names = {}, {"self_attn.q": "attn_q", "self_attn.o": "attn_output", "mlp.up": "ffn_up", "mlp.down": "ffn_down"}
    for ours, theirs in names.items():
        rows, columns = state[f"model.layers.0.{ours}_proj.weight"].shape
        raw[f"blk.0.{theirs}.weight"] = quant, random.integers(0, 120, (rows, kind.nbytes((1, columns))), np.uint8)
    return write_gguf(path, state, model.config.to_dict(), raw=raw)[0]


@pytest.mark.parametrize("case", ["phi3", "glm4", "olmo2", "qwen3 moe", "gpt-oss"])
def test_families_in_folders(tmp_path: Path, case: str) -> None:
    model_of(case).save_pretrained(tmp_path)
    as_wholes(open_checkpoint(tmp_path))


def test_experts_in_mxfp4(tmp_path: Path) -> None:
    model_of("gpt-oss").save_pretrained(tmp_path)
    microscaled(tmp_path)
    as_wholes(open_checkpoint(tmp_path))


@pytest.mark.parametrize("case", ["granite", "phi3", "mixtral", "gpt-oss"])
def test_families_in_gguf(tmp_path: Path, case: str) -> None:
    arch, changes = CASES[case][2] or ("", {})
    packed = "MXFP4" if case == "gpt-oss" else "Q8_0"
    as_wholes(open_checkpoint(save_family_gguf(model_of(case, **changes), arch, tmp_path / "model.gguf", packed)))


def test_two_stacks(tmp_path: Path) -> None:
    as_wholes(open_checkpoint(save_t5(tmp_path / "t5")))
    as_wholes(open_checkpoint(save_t5_gguf(t5_model(), tmp_path / "t5.gguf")))


@pytest.mark.parametrize("kind", ["nested", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [{"hidden_size": 128, "intermediate_size": 160}, ODD], ids=["packed", "odd"])
def test_bitsandbytes(tmp_path: Path, kind: str, shape: dict[str, int]) -> None:
    """Rows of 160 are cut by blocks of 64 anywhere; those of odd widths are floats."""
    save_bnb(tmp_path, kind, **shape)
    as_wholes(open_checkpoint(tmp_path))


def test_lit_llama_s_gptq(tmp_path: Path) -> None:
    as_wholes(open_checkpoint(save_gptq(tmp_path)[0]))


def test_mindformers(tmp_path: Path) -> None:
    as_wholes(open_checkpoint(write_yaml(tmp_path)))


def test_our_own_format(tmp_path: Path) -> None:
    as_wholes(open_checkpoint(write_packed(tmp_path, packed_model(tmp_path))))


@pytest.mark.parametrize("group", [None, 128])
def test_what_is_quantized_as_it_is_read(tmp_path: Path, group: int | None) -> None:
    source = open_checkpoint(save_hf(tiny_model(), tmp_path / "model"))
    as_wholes(Quantized(source, QuantConfig("int4", group, skip=("k_proj",))))


def test_what_adapters_replaced_is_cut_and_what_they_add_to_parts_adds_up(tmp_path: Path) -> None:
    model = tiny_model()
    source = open_checkpoint(save_hf(model, tmp_path / "model"))
    adapter = open_peft(trained(model, tmp_path / "adapter", modules_to_save=["lm_head"]), source)
    as_wholes(Changed(source, [(adapter, 1.0)], merge=False))
    merged = Changed(source, [(adapter, 1.0)], merge=True)
    whole = dict(merged.tensors())
    for rank in range(2):
        parts = shards(source.config, rank, 2)
        for name, tensor in merged.tensors(parts):
            right = dequantize(cut(whole[name], parts[name]))
            np.testing.assert_allclose(dequantize(tensor), right, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("own", ["lm_head", "embed_tokens"])
def test_what_unties_a_model_that_is_quantized_as_it_is_read(tmp_path: Path, own: str) -> None:
    """The parts that are asked for have a head, which what is quantized has not."""
    model = tiny_model(tie_word_embeddings=True)
    source = Quantized(open_checkpoint(save_hf(model, tmp_path / "model")), QuantConfig("int8"))
    adapter = open_peft(trained(model, tmp_path / "adapter", modules_to_save=[own]), source)
    changed = Changed(source, [(adapter, 1.0)], merge=False)
    whole, parts = dict(changed.tensors()), shards(changed.config, 1, 2)
    found = dict(changed.tensors(parts))
    assert "lm_head.weight" in found and found.keys() == whole.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(dequantize(tensor), dequantize(cut(whole[name], parts[name])), name)


def test_a_low_rank_addition_to_a_part_is_the_part_of_the_addition(tmp_path: Path) -> None:
    model = tiny_model()
    source = open_checkpoint(save_hf(model, tmp_path / "model"))
    low = open_peft(trained(model, tmp_path / "adapter"), source).matrices["model.layers.0.mlp.down_proj"]
    part = low.part(Part(slice(3, 9), slice(32, 96)))
    np.testing.assert_allclose(part.b @ part.a, (low.b @ low.a)[3:9, 32:96], rtol=1e-5, atol=1e-6)
    assert part.scale == low.scale


SLAB = 4096  # bytes; all that is unpacked at a time


# Nothing beside it ----------------------------------------------------------------------------------------------------


@contextmanager
def counted() -> Iterator[SimpleNamespace]:
    """The bytes that this process reads from files, and the most that it has in memory at once meanwhile."""

    def read() -> int:
        found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
        assert found is not None
        return int(found[1])

    result, before = SimpleNamespace(), read()
    tracemalloc.start()
    yield result
    result.peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result.read = read() - before


@pytest.mark.parametrize("quant", ["Q4_0", "Q6_K"])
def test_of_packed_blocks_only_those_are_read_that_hold_the_part(
    tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows through a stream; columns from the map, whose bytes are copied some at a time and unpacked."""
    for module in (ggml, gguf_file):
        monkeypatch.setattr(module, "SLAB", SLAB)
    checkpoint = open_checkpoint(save_blocks(tmp_path / "model.gguf", quant))
    packed = {name: info for name, info in checkpoint.index().items() if info.packing is not None}
    whole = {name: checkpoint.entries[name].read().nbytes for name in packed}
    for (name, info), rank in product(packed.items(), range(4)):
        part = shards(checkpoint.config, rank, 4)[name]
        with counted() as count:
            size = checkpoint.entries[name].read(part).nbytes
        read = info.nbytes // 4 if part.columns is None else 0
        assert read <= count.read < read + 1000
        within = (
            1 if quant == "Q4_0" else 3
        )  # a part that ends within blocks is cut of them: for a moment there are both
        assert count.peak < within * size + 24 * SLAB
        assert size * 4 <= 1.1 * whole[name]


BIG = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 512, "num_hidden_layers": 1, "head_dim": 128}


def save_mxfp4(folder: Path) -> Path:
    model_of("gpt-oss", hidden_size=512, intermediate_size=512, head_dim=128).save_pretrained(folder)
    microscaled(folder)
    return folder


MAPPED: dict[str, Callable[[Path], Path]] = {
    **{name: lambda folder, save=save: save(tiny_model(**BIG), folder / "m") for name, save in FORMATS.items()},
    **{kind: lambda folder, kind=kind: save_bnb(folder, kind, **BIG) and folder for kind in ("nested", "int8")},
    "mxfp4": save_mxfp4,
}


@pytest.mark.parametrize("name", MAPPED)
def test_of_mapped_files_only_the_part_is_copied_or_unpacked(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(MAPPED[name](tmp_path))
    for each in (each for each in checkpoint.index() if re.search(r"layers\.0\..*(q|o|up|down)_proj\.weight", each)):
        lazy, part = checkpoint.entries[each], shards(checkpoint.config, 1, 4)[each]
        with counted() as whole:
            size = lazy.read().nbytes
        with counted() as some:
            found = lazy.read(part)
        assert found.nbytes <= 0.26 * size
        assert some.peak < 0.3 * max(whole.peak, size) + 10_000 and some.read < 1000
