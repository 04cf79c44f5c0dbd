"""What each matrix becomes where only the size of all is given: never more bytes, spent where they save most."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from checkpoints import save_hf, tiny_model
from family_files import model_of
from headed import save_headed
from hypothesis import given, settings
from hypothesis import strategies as st
from t5_models import save_t5

from llamachat.core.tensors import QuantTensor
from llamachat.errors import LlamachatError, ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from quantize.convert import convert, silent
from quantize.mixing import Mixing, Way, spent
from quantize.recipe import Recipe
from quantize.sizes import output_bytes
from quantize.writer import WEIGHTS

TEXT = [[(i * i + 7 * seed) % 90 + 3 for i in range(20)] for seed in range(4)]
WAYS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=4)
RECIPES = [
    Recipe(),
    Recipe("int8"),
    Recipe("int4", codebook="affine"),
    Recipe("int4", group_size=64, overrides=("*.down_proj=float", "*.o_proj=int4:96", "*.up_proj=int8:64")),
    Recipe("int4", embedding="int4", head="float", skip=("k_proj",)),
]


def coded(folder: Path) -> dict[str, tuple[int, int]]:
    """Bits and group of each matrix in the layers."""
    tensors = open_checkpoint(folder).tensors()
    return {
        name: (tensor.bits, tensor.group)
        for name, tensor in tensors
        if isinstance(tensor, QuantTensor) and ".layers." in name
    }


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", ["", "gpt-oss"])
def test_the_bytes_are_told_before(recipe: Recipe, case: str, tmp_path: Path) -> None:
    if case:
        model_of(case).save_pretrained(tmp_path / "source")
    else:
        save_hf(tiny_model(torch.bfloat16), tmp_path / "source")
    source = open_checkpoint(tmp_path / "source")
    convert(source, tmp_path / "out", recipe)
    assert (tmp_path / "out" / WEIGHTS).stat().st_size == output_bytes(source.index(), recipe)


@settings(max_examples=300, deadline=None)
@given(st.lists(WAYS, min_size=1, max_size=4), st.integers(0, 120))
def test_no_more_is_spent_than_there_is_and_almost_nothing_could_be_spent_better(
    drawn: list[list[tuple[int, int]]], room: int
) -> None:
    ways = {
        str(number): [Way(f"{number} {count}", count, cost) for count, cost in sorted(dict(each).items())]
        for number, each in enumerate(drawn)
    }
    chosen = spent(ways, room)
    first = {modules: each[0].named for modules, each in ways.items()}
    taken, cost = total(ways, first | chosen)
    least, _ = total(ways, first)
    assert taken - least <= room
    steps = [after.bytes - before.bytes for each in ways.values() for before in each for after in each]
    every = (total(ways, dict(zip(ways, names, strict=True))) for names in product(*map(names_of, ways.values())))
    assert cost <= min(cost for taken, cost in every if taken <= max(least, least + room - max(steps)))


def names_of(ways: list[Way]) -> list[str]:
    return [way.named for way in ways]


def total(ways: Mapping[str, list[Way]], chosen: Mapping[str, str]) -> tuple[int, float]:
    """Bytes, and nats."""
    picked = [way for modules, each in ways.items() for way in each if way.named == chosen[modules]]
    return sum(way.bytes for way in picked), sum(way.cost for way in picked)


@pytest.mark.parametrize("scheme", ["int4", "int4-gptq"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_model_takes_what_it_may_and_bytes_save_loss(tmp_path: Path, share: float, scheme: str) -> None:
    source = open_checkpoint(save_hf(tiny_model(hidden_size=128, intermediate_size=256), tmp_path / "source"))
    least, most = (
        output_bytes(source.index(), Recipe(scheme, overrides=(f"model.layers.*={named}",)))
        for named in (f"{scheme}:128", "int8")
    )
    room = least + int(share * (most - least))
    recipe = Mixing(source, Recipe(scheme)).fitting(room, TEXT, 2, silent)
    convert(source, tmp_path / "out", recipe, calibration=TEXT)
    kinds, taken = set(coded(tmp_path / "out").values()), (tmp_path / "out" / WEIGHTS).stat().st_size
    assert room - 0.1 * (most - least) <= taken <= room
    assert {bits for bits, _ in kinds} == {0.0: {4}, 0.4: {4, 8}, 1.0: {8}}[share]
    assert share or kinds == {(4, 128)}


def test_what_was_said_of_a_matrix_holds(tmp_path: Path) -> None:
    source = open_checkpoint(save_hf(tiny_model(), tmp_path / "source"))
    given = Recipe("int4", overrides=("*.o_proj=int4:64", "*.0.*.down_proj=float"), skip=("v_proj",))
    recipe = Mixing(source, given).fitting(10**9, TEXT, 2, silent)
    convert(source, tmp_path / "out", recipe)
    found = coded(tmp_path / "out")
    assert {found[name] for name in found if "o_proj" in name} == {(4, 64)}
    assert "model.layers.0.mlp.down_proj.weight" not in found
    assert not any("v_proj" in name for name in found)
    assert {found[name] for name in found if "q_proj" in name or "up_proj" in name} == {(8, 32)}


def test_experts_of_a_layer_are_one_choice(tmp_path: Path) -> None:
    model_of("qwen3 moe").save_pretrained(tmp_path / "source")
    source = open_checkpoint(tmp_path / "source")
    mixing = Mixing(source, Recipe("int4"))
    least = output_bytes(source.index(), Recipe("int4", group_size=32))
    recipe = mixing.fitting(least + 20_000, TEXT, 2, silent)
    convert(source, tmp_path / "out", recipe)
    found = coded(tmp_path / "out")
    for layer in (0, 2, 3):
        for kind in ("gate", "up", "down"):
            own = [f"model.layers.{layer}.mlp.experts.{number}.{kind}_proj.weight" for number in range(6)]
            assert len({found[name] for name in own}) == 1
    assert {bits for bits, _ in found.values()} == {4, 8}
    assert len(recipe.overrides) == 4 * 7


@pytest.mark.parametrize(
    ("recipe", "room", "error", "says"),
    [
        (Recipe("int8"), 10**9, UsageError, "bits are chosen between int8 and int4 or int4-gptq"),
        (Recipe("bnb-nf4"), 10**9, UsageError, "bnb-nf4 was named"),
        (Recipe("int4"), 60_000, UsageError, r"60 kB \(.*\) was allowed, and the least that this model takes is"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_a_line(
    tmp_path: Path, recipe: Recipe, room: int, error: type[LlamachatError], says: str
) -> None:
    source = open_checkpoint(save_hf(tiny_model(), tmp_path / "source"))
    with pytest.raises(error, match=says):
        Mixing(source, recipe).fitting(room, TEXT, 2, silent)


def test_a_model_without_next_tokens_is_refused(tmp_path: Path) -> None:
    save_headed(tmp_path / "labels", "sequence_labels", ["a", "b"])
    save_t5(tmp_path / "t5")
    for name in ("labels", "t5"):
        with pytest.raises(ModelError, match="this model is none"):
            Mixing(open_checkpoint(tmp_path / name), Recipe("int4"))
