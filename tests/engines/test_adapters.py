"""Adapters in both engines, beside weights of any kind, and merged: PEFT's logits, by families and by ways to train."""

import copy
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_files import IDS, model_of
from numpy.typing import NDArray
from peft_folders import LINEARS, right, trained

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine
from llamachat.engines.native.engine import NativeEngine
from llamachat.engines.torch.engine import TorchEngine
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import open_peft

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
