"""The plan of what each process has of a model: nothing twice that is not meant to be, nothing missing, and little more each."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from family_files import BASE, case_of

from llamachat.core.spec import Experts, ModelSpec
from llamachat.core.tensors import TensorInfo
from llamachat.engines.shards import Shard, local_indices, local_spec, shards, share
from llamachat.engines.torch import encoder_decoder, engine
from llamachat.errors import UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.lazy import packing
from llamachat.formats.parts import WHOLE, Part

T5 = EncoderDecoderSpec(
    vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
    num_key_value_heads=4, max_position_embeddings=64, encoder_layers=2, gated=True, qkv_bias=True, attention_out_bias=True,
    mlp_bias=True, norm_kind="layer", head_bias=True,
)  # fmt: skip
SPECS = {
    "t5": T5,
    "t5 learned": replace(T5, positions="learned_absolute", gated=False, tie_word_embeddings=True),
    "labels": replace(BASE, head="token_labels", num_labels=5),
    "no head": replace(BASE, head="none"),
    "tied": replace(BASE, tie_word_embeddings=True, qkv_bias=True, attention_out_bias=True, mlp_bias=True),
}  # fmt: skip
FAMILIES = ("gemma3", "olmo2", "qwen3", "qwen3 moe", "gpt-oss")
HEADED = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias")


@cache
def spec_of(case: str) -> ModelSpec:
    return SPECS[case] if case in SPECS else case_of(case)[0]


def counted(shape: tuple[int, ...], parts: list[Part]) -> np.ndarray:
    """How many ranks have each element."""
    times = np.zeros(shape, int)
    for part in parts:
        where = (part.rows or slice(None), part.columns or slice(None))
        times[where[: len(shape)]] += not part.zero
    return times


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", [*SPECS, *FAMILIES])
def test_every_element_is_with_one_rank_or_with_all_that_need_it(case: str, size: int) -> None:
    spec = spec_of(case)
    plans = [shards(spec, rank, size) for rank in range(size)]
    sharing = max(1, size // spec.num_key_value_heads)
    for name, shape in spec.tensor_shapes().items():
        times = counted(shape, [plan[name] for plan in plans])
        assert len(set(times.flat)) == 1, name
        keys = any(f".{part}_proj." in name for part in "kv") or ("k_norm" in name and spec.qk_norm == "projection")
        expected = {sharing} if keys else {1, size} if len(shape) == 1 or _whole(name, spec) else {1}
        assert times.flat[0] in expected, name


def _whole(name: str, spec: ModelSpec) -> bool:
    router = name.endswith("mlp.gate.weight")
    return router or "embed_positions" in name or (spec.num_labels > 0 and name.startswith("score"))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", [*SPECS, *FAMILIES])
def test_parts_have_the_shapes_of_the_local_model(case: str, size: int) -> None:
    spec = spec_of(case)
    for rank in range(size):
        parts, local = shards(spec, rank, size), local_spec(spec, rank, size)
        found = {name: parts[name].shape(shape) for name, shape in spec.tensor_shapes().items()}
        vocabulary = parts["model.embed_tokens.weight"].shape((spec.vocab_size,))
        for name, shape in local.tensor_shapes().items():
            assert found.pop(name) == ((*vocabulary, *shape[1:]) if name.endswith(HEADED) else shape), name
        assert not found


def test_biases_of_what_is_added_up_are_the_first_rank_s() -> None:
    for name in ("self_attn.o_proj.bias", "mlp.down_proj.bias"):
        found = [shards(spec_of("tied"), rank, 4)[f"model.layers.1.{name}"] for rank in range(4)]
        assert found == [WHOLE, *[Part(zero=True)] * 3]
    experts = [shards(spec_of("gpt-oss"), rank, 2)["model.layers.0.mlp.experts.1.down_proj.bias"] for rank in range(2)]
    assert experts == [WHOLE, Part(zero=True)]


def model(heads: int, groups: int, **changes: int) -> ModelSpec:
    return replace(BASE, num_attention_heads=heads, num_key_value_heads=groups, **changes)


@pytest.mark.parametrize(
    ("heads", "groups", "size", "expected"),
    [(32, 8, 4, [8] * 4), (9, 3, 2, [3, 6]), (9, 3, 6, [1, 2] * 3), (32, 2, 8, [4] * 8), (7, 1, 2, [3, 4])],
)
def test_queries_are_with_their_keys(heads: int, groups: int, size: int, expected: list[int]) -> None:
    spec, each = model(heads, groups), heads // groups
    found = [Shard(spec, rank, size) for rank in range(size)]
    assert [shard.heads.stop - shard.heads.start for shard in found] == expected
    assert [shard.heads.start for shard in found[1:]] == [shard.heads.stop for shard in found[:-1]]
    for shard in found:
        wanted = {head // each for head in range(shard.heads.start, shard.heads.stop)}
        assert wanted == set(range(shard.groups.start, shard.groups.stop))
        local = shard.local_spec()
        assert (local.num_attention_heads, local.num_key_value_heads) == (
            sum(1 for _ in range(heads)[shard.heads]),
            len(wanted),
        )


@pytest.mark.parametrize(
    ("heads", "groups", "size", "fitting"),
    [(9, 3, 4, "use 1 to 3, 6 or 9"), (9, 3, 5, "use 1 to 3, 6 or 9"), (8, 1, 16, "use 1 to 8"),
     (4, 4, 5, "use 1 to 4"), (4, 2, 3, "use 1 to 2 or 4"), (4, 2, 0, "use 1 to 2 or 4")],
)  # fmt: skip
def test_a_number_of_processes_that_cannot_be_is_refused_with_those_that_can(
    heads: int, groups: int, size: int, fitting: str
) -> None:
    with pytest.raises(
        UsageError, match=f"{heads} heads, {groups} of keys and values.* over {size} processes.*; {fitting}$"
    ):
        shards(model(heads, groups), 0, size)


@pytest.mark.parametrize("narrow", ["vocab_size", "intermediate_size"])
def test_each_process_has_a_row_of_everything(narrow: str) -> None:
    with pytest.raises(UsageError, match=r"a model that is 3 wide cannot be split over 4 processes.*; use 1 to 3$"):
        shards(model(8, 8, **{narrow: 3}), 0, 4)
    assert shards(model(8, 8, **{narrow: 4}), 3, 4)


@pytest.mark.parametrize(
    ("total", "size", "longest", "unit"),
    [(14336, 4, 3584, 128), (11008, 8, 1408, 128), (2880, 4, 736, 32), (768, 4, 192, 64), (128256, 2, 64128, 64),
     (97, 4, 25, 1), (64, 4, 16, 1), (96, 2, 64, 32), (49153, 2, 24577, 64)],
)  # fmt: skip
def test_shares_are_whole_units_and_nearly_equal(total: int, size: int, longest: int, unit: int) -> None:
    found = [share(total, rank, size) for rank in range(size)]
    assert [found[0].start, found[-1].stop] == [0, total]
    assert all(one.stop == other.start and one.start % unit == 0 for one, other in pairwise(found))
    lengths = [each.stop - each.start for each in found]
    assert max(lengths) == longest and min(lengths) > 0


# Memory ---------------------------------------------------------------------------------------------------------------

SHAPES = {  # of mixtures a twelfth of the layers, as these have many tensors
    "Llama 3 8B": (ModelSpec(128256, 4096, 14336, 32, 32, 8, 128, 8192), (2, 4, 8)),
    "Llama 2 7B": (ModelSpec(32000, 4096, 11008, 32, 32, 32, 128, 4096), (2, 4, 8)),
    "Qwen3 30B A3B": (
        ModelSpec(151936, 2048, 6144, 4, 32, 4, 128, 40960, qk_norm="head", experts=Experts(128, 8, 768)), (2, 4, 8),
    ),
    "gpt-oss 20B": (
        ModelSpec(
            201088, 2880, 2880, 2, 64, 8, 64, 131072, qkv_bias=True, attention_out_bias=True, attention_sinks=True,
            experts=Experts(32, 4, 2880, bias=True), hidden_act="clamped_swiglu",
        ), (2, 4, 8),
    ),
    "SmolLM2 135M": (ModelSpec(49152, 576, 1536, 30, 9, 3, 64, 8192, tie_word_embeddings=True), (2, 3)),
    "flan-T5 base": (EncoderDecoderSpec(32128, 768, 2048, 12, 12, 12, 64, 512, encoder_layers=12, gated=True), (2, 4)),
}  # fmt: skip


def index_of(spec: ModelSpec, bits: Literal[4, 8] | None) -> dict[str, TensorInfo]:
    """Of matrices in groups of 32, or in float16."""
    index, table = dict[str, TensorInfo](), np.arange(16, dtype=np.float32) if bits == 4 else None
    for name, shape in spec.tensor_shapes().items():
        coded = bits is not None and len(shape) == 2 and "relative" not in name
        like = packing(shape[1], 32, bits, table) if bits and coded else None
        index[name] = TensorInfo(shape, 2 * math.prod(shape), like)
    return index


def shares_of(spec: ModelSpec, bits: Literal[4, 8] | None, size: int) -> tuple[float, float]:
    """The largest rank's weights, and its keys and values, by the whole model's."""

    def planned(spec: ModelSpec, index: Mapping[str, TensorInfo]) -> engine.Bytes:
        if isinstance(spec, EncoderDecoderSpec):
            return encoder_decoder.planned_bytes(spec, index, slots=4096, dtype="bfloat16")
        return engine.planned_bytes(spec, index, slots=4096, dtype="bfloat16")

    index = index_of(spec, bits)
    whole, ranks = planned(spec, index), (local_spec(spec, rank, size) for rank in range(size))
    each = [planned(*pair) for pair in zip(ranks, local_indices(spec, index, size), strict=True)]
    return max(one.weights for one in each) / whole.weights, max(one.kv for one in each) / whole.kv


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_a_rank_takes_at_most_a_tenth_more_than_its_share(name: str, bits: Literal[4, 8] | None) -> None:
    """Of weights; of keys and values the share of the heads that it has, in whole."""
    spec, sizes = SHAPES[name]
    for size in sizes:
        weights, kept = shares_of(spec, bits, size)
        assert weights * size <= 1.07, size
        groups = spec.num_key_value_heads
        assert kept == pytest.approx(-(-groups // size) / groups)
