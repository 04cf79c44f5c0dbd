"""The plan of what each process has of a model: nothing twice that is not meant to be, nothing missing, and little more each."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from family_files import BASE, CASES, case_of

from llamachat.core.spec import ModelSpec
from llamachat.engines.shards import Shard, local_spec, shards, share
from llamachat.errors import UsageError
from llamachat.families.t5 import EncoderDecoderSpec
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
@pytest.mark.parametrize("case", [*SPECS, *CASES])
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
@pytest.mark.parametrize("case", [*SPECS, *CASES])
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
