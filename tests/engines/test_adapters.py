"""Adapters in both engines, beside weights of any kind, and merged: PEFT's logits, by families and by ways to train."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_files import BASE, IDS, model_of
from numpy.typing import NDArray
from peft_folders import LINEARS, right, trained
from test_every_spec import divergence, random_tensors
from test_native import KERNELS

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine
from llamachat.core.spec import Experts, ModelSpec, QuantConfig
from llamachat.core.tensors import FloatTensor, dequantize
from llamachat.engines.native.engine import NativeEngine
from llamachat.engines.native.lowrank import packed
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.engines.torch.engine import TorchEngine
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import Adapter, Changed, LowRank, merged
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import open_peft
from quantize.once import Quantized

Floats = NDArray[np.float32]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
STACKS = {
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "target_modules": ["q_proj", "o_proj"],
}
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # family, changes of its settings, LoraConfig's options
    "mistral": ("mistral", {}, {}),
    "qwen3": ("qwen3", {}, {"r": 16}),
    "phi-3, joined matrices": ("phi3", {}, {"target_modules": FUSED}),
    "gemma 3": ("gemma3", {}, {"target_modules": "all-linear"}),
    "glm-4, interleaved pairs": ("glm4", {}, {"target_modules": "all-linear"}),
    "granite, multipliers": ("granite", {}, {"target_modules": [*LINEARS, "embed_tokens", "lm_head"]}),
    "olmo 2, norms behind": ("olmo2", {}, {}),
    "mixtral, stacks of experts": ("mixtral", {}, STACKS),
    "mixtral, all linears and the router": ("mixtral", {}, {"target_modules": "all-linear"}),
    "qwen3 mixture": ("qwen3 moe", {}, STACKS | {"rank_pattern": {"experts.down_proj": 2}}),
    "gpt-oss, alternating rows": ("gpt-oss", {}, STACKS),
    "rank-stabilized": ("mistral", {}, {"use_rslora": True, "r": 9}),
    "rank and alpha patterns": (
        "qwen3", {}, {"rank_pattern": {"q_proj": 2, r"layers\.[12]\.mlp\.down_proj": 7}, "alpha_pattern": {"^.*o_proj": 1}},
    ),
    "fan_in_fan_out": ("mistral", {}, {"fan_in_fan_out": True}),
    "some layers": ("qwen3", {}, {"layers_to_transform": [1, 3], "layers_pattern": "layers"}),
    "a regular expression": ("qwen3", {}, {"target_modules": r".*\.(q_proj|up_proj)"}),
    "whole tensors": ("qwen3", {}, {"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm", "q_norm"]}),
    "a whole embedding, tied": ("gemma3", {}, {"modules_to_save": ["embed_tokens"]}),
    "a whole embedding, tied, both": ("gemma3", {}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "joined matrices as a whole": ("phi3", {}, {"target_modules": ["o_proj"], "modules_to_save": ["qkv_proj"]}),
    "embedding and head": ("mistral", {}, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "embedding, tied": ("gemma3", {}, {"target_modules": ["embed_tokens", "k_proj"]}),
    "embedding and head, tied": ("gemma3", {}, {"target_modules": ["embed_tokens", "k_proj"], "ensure_weight_tying": True}),
    "biases of its modules": ("qwen3", {"attention_bias": True}, {"bias": "lora_only", "target_modules": ["q_proj", "o_proj"]}),
    "all biases": ("granite", {"attention_bias": True, "mlp_bias": True}, {"bias": "all"}),
}  # fmt: skip


@cache
def model(family: str, **changes: Any) -> Any:
    return model_of(family, **changes)


def saved(family: str, folder: Path, **changes: Any) -> tuple[Any, Checkpoint]:
    made = model(family, **changes)
    made.save_pretrained(folder)
    return made, open_checkpoint(folder)


def in_parts(engine: Engine, ids: Sequence[int], *sizes: int) -> Floats:
    cache, ends = Cache(engine.slots), np.cumsum([0, *sizes, len(ids) - sum(sizes)]).tolist()
    return np.concatenate([advance(engine, cache, list(ids[a:b]), "all") for a, b in pairwise(ends) if b > a])


def engines(checkpoint: Checkpoint) -> list[Any]:
    native = NativeEngine.build(checkpoint.config, checkpoint.tensors(), slots=64, kv="float32", threads=2)
    return [TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=64, dtype="float32"), native]


def close(ours: Floats, theirs: Floats) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()), rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_pefts(way: str, tmp_path: Path) -> None:
    family, changes, options = WAYS[way]
    base, checkpoint = saved(family, tmp_path / "base", **changes)
    folder = trained(copy.deepcopy(base), tmp_path / "adapter", **options)
    theirs = right(copy.deepcopy(base), IDS, (folder, 1.0))
    adapter = open_peft(folder, checkpoint)
    assert np.abs(theirs - right_alone(base)).max() > 0.1
    whole = Changed(checkpoint, [(adapter, 1.0)], merge=True)
    close(in_parts(PlainEngine.build(whole.config, whole.tensors(), 64), IDS), theirs)
    kept = Changed(checkpoint, [(adapter, 1.0)], merge=False)
    assert {name: info.shape for name, info in kept.index().items()} == kept.config.tensor_shapes()
    for engine in engines(kept):
        engine.adapt([(adapter, 1.0)])
        close(in_parts(engine, IDS, 9, 1), theirs)
        engine.adapt([])
        if not adapter.replaced:
            close(in_parts(engine, IDS, 20), right_alone(base))


def right_alone(base: Any) -> Floats:
    with torch.no_grad():
        rows: Floats = base(torch.tensor([IDS])).logits[0].numpy()
    return rows


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint, list[Path]]:
    """A model, and three adapters of it."""
    folder = tmp_path_factory.mktemp("mistral")
    base, checkpoint = saved("mistral", folder / "base")
    paths = [trained(copy.deepcopy(base), folder / f"a{seed}", seed, r=3 * seed, bias="none") for seed in (1, 2, 3)]
    return base, checkpoint, paths


def test_several_add_up_each_scaled_and_are_switched_without_building_anew(
    mistral: tuple[Any, Checkpoint, list[Path]],
) -> None:
    base, checkpoint, paths = mistral
    opened = [open_peft(path, checkpoint) for path in paths]
    made = engines(checkpoint)
    for scales in ((1.0, 0.5, -1.5), (0.0, 2.0, 1.0), (1.0, 0.0, 0.0)):
        wanted = [(number, scale) for number, scale in enumerate(scales) if scale]
        theirs = right(copy.deepcopy(base), IDS, *((paths[number], scale) for number, scale in wanted))
        whole = Changed(checkpoint, [(opened[number], scale) for number, scale in wanted], merge=True)
        close(in_parts(PlainEngine.build(whole.config, whole.tensors(), 64), IDS), theirs)
        for engine in made:
            engine.adapt([(opened[number], scale) for number, scale in wanted])
            close(in_parts(engine, IDS, 3, 20), theirs)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_coded_weights_are_adapted_as_their_values_are(family: str, scheme: str, tmp_path: Path) -> None:
    """The torch engine's logits are those of the values with what is added; the native one's are as near as without."""
    base, checkpoint = saved(family, tmp_path / "base")
    adapter = open_peft(trained(copy.deepcopy(base), tmp_path / "a", target_modules="all-linear"), checkpoint)
    coded = Quantized(checkpoint, QuantConfig(scheme))
    values = {
        name: merged(dequantize(tensor), [adapter.matrices[module]])
        if (module := name.removesuffix(".weight")) in adapter.matrices
        else dequantize(tensor)
        for name, tensor in coded.tensors()
    }
    weights = [(name, FloatTensor(value)) for name, value in values.items()]
    theirs = in_parts(PlainEngine.build(coded.config, weights, 64, torch.float64), IDS)
    reference, native = engines(coded)
    for engine in (reference, native):
        engine.adapt([(adapter, 1.0)])
    close(in_parts(reference, IDS, 9, 1), theirs)
    assert divergence(theirs, in_parts(native, IDS, 9, 1)) < 0.002


WIDE = replace(BASE, hidden_size=96, intermediate_size=1120, num_hidden_layers=2)  # several blocks of columns
SPECS = {"dense": WIDE, "experts": replace(WIDE, experts=Experts(5, 2, 608))}


def noise(spec: ModelSpec, rank: int, seed: int = 0) -> Adapter:
    """An adapter on every matrix that can have one."""
    rng, matrices = np.random.default_rng(seed), dict[str, LowRank]()
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 2:
            a, b = (rng.normal(0, 0.1, size).astype(np.float32) for size in ((rank, shape[1]), (shape[0], rank)))
            matrices[name.removesuffix(".weight")] = LowRank(a, b, 0.7)
    return Adapter(Path("noise"), (), matrices, {})


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SPECS)
def test_chunks_batches_and_threads_do_not_change_a_bit(name: str, kernels: str) -> None:
    spec, rng = SPECS[name], np.random.default_rng(7)
    weights = PackedWeights.build(random_tensors(spec, "int4").items())
    adapters = [(noise(spec, 5), 1.0), (noise(spec, 33, 1), -0.5)]
    pieces = [rng.integers(0, 97, count).tolist() for count in (37, 1, 20, 2)]

    def made(threads: int) -> NativeEngine:
        engine = NativeEngine(spec, weights, slots=256, threads=threads, kernels=kernels)
        engine.adapt(adapters)
        return engine

    whole, texts = made(1), [Cache(64, first=64 * number) for number in range(4)]
    alone = [
        np.concatenate([advance(whole, text, [token], "all") for token in ids])
        for text, ids in zip(texts, pieces, strict=True)
    ]
    steps = [Cache(64, first=64 * number).plan(len(ids)) for number, ids in enumerate(pieces)]
    assert np.array_equal(made(3).forward_many(pieces, steps), [rows[-1] for rows in alone])
    for ids, rows in zip(pieces, alone, strict=True):
        assert np.array_equal(in_parts(made(2), ids, len(ids) // 3), rows)


@pytest.mark.parametrize("name", SPECS)
def test_blocks_of_columns_add_up(name: str) -> None:
    spec, adapters = SPECS[name], [noise(SPECS[name], 5), noise(SPECS[name], 33, 1)]
    tensors = random_tensors(spec)
    modules = [
        (key, key.removesuffix(".weight")) for key in tensors if key.removesuffix(".weight") in adapters[0].matrices
    ]
    whole = {
        key: FloatTensor(merged(dequantize(tensors[key]), [each.matrices[module] for each in adapters]))
        for key, module in modules
    }
    engine = NativeEngine.build(spec, tensors.items(), slots=64, kv="float32", threads=2)
    engine.adapt([(each, 1.0) for each in adapters])
    right = in_parts(PlainEngine.build(spec, {**tensors, **whole}.items(), 64, torch.float64), IDS)
    close(in_parts(engine, IDS, 5, 1), right)


def test_torch_runs_batches_with_adapters() -> None:
    tensors = random_tensors(WIDE)
    engine = TorchEngine.build(WIDE, tensors.items(), slots=128, dtype="float32")
    engine.adapt([(noise(WIDE, 5), 1.0)])
    pieces, caches = [[5, 6, 7], [8], [9, 10]], [Cache(40, first=40 * number) for number in range(3)]
    steps = [cache.plan(len(ids)) for cache, ids in zip(caches, pieces, strict=True)]
    rows = engine.forward_many(pieces, steps)
    for ids, row in zip(pieces, rows, strict=True):
        np.testing.assert_allclose(in_parts(engine, ids)[-1], row, atol=1e-4)


def test_numbers_that_16_bits_hold_are_kept_in_these() -> None:
    spec = replace(BASE, num_hidden_layers=1)
    fine = noise(spec, 8)
    sizes = []
    for round_to in (np.float32, np.float16):
        low = next(iter(fine.matrices.values()))
        a, b = (each.astype(round_to).astype(np.float32) for each in (low.a, low.b))
        held = packed(LowRank(a, b, 1.0))
        sizes.append(held.a.nbytes + held.b.nbytes)
    assert sizes[0] == 2 * sizes[1]


def test_what_does_not_fit_the_model_is_refused_in_c_and_what_was_in_force_stays() -> None:
    engine = NativeEngine.build(WIDE, random_tensors(WIDE).items(), slots=64)
    good = noise(WIDE, 5)
    engine.adapt([(good, 1.0)])
    before = in_parts(engine, IDS)
    low = good.matrices["model.layers.0.mlp.down_proj"]
    for a, b in ((low.a[:, :500], low.b), (low.a, low.b[:-16])):
        bad = Adapter(Path("bad"), (), {"model.layers.0.mlp.down_proj": LowRank(a, b, 1.0)}, {})
        with pytest.raises(ValueError, match="an addition that is cut off"):
            engine.adapt([(bad, 1.0)])
    with pytest.raises(ValueError, match="impossible rank"):
        engine.adapt([(good, 1.0)] * 65)
    assert np.array_equal(in_parts(engine, IDS), before)
