"""Which tensor gets which scheme, and the files that say so."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamachat.core.spec import ModelSpec
from llamachat.errors import LlamachatError, ModelError, UsageError
from quantize.recipe import Recipe, read_recipe

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def bits(recipe: Recipe, name: str, shape: tuple[int, ...] = (64, 128)) -> int | None:
    scheme = recipe.scheme_for(name, shape)
    return scheme.bits if scheme else None


def test_embedding_is_int8_by_default_and_float_with_bitsandbytes() -> None:
    assert bits(Recipe("int4"), EMBEDDING) == 8
    assert bits(Recipe("bnb-nf4"), EMBEDDING) is None
    assert bits(Recipe("int4", embedding="float"), EMBEDDING) is None
    assert bits(Recipe("int4", embedding="int4"), EMBEDDING) == 4


def test_an_override_may_name_a_group() -> None:
    recipe = Recipe("int4", group_size=128, codebook="nf4", overrides=("*.up_proj=int4:64", "*.1.*=int8:96"))
    up, down, other = (recipe.scheme_for(name, (64, 384)) for name in (UP, DOWN, UP.replace("up", "gate")))
    assert up and down and other
    assert [(each.bits, each.group, each.codebook) for each in (up, down, other)] == [
        (4, 64, "nf4"), (8, 96, None), (4, 128, "nf4")
    ]  # fmt: skip
    assert recipe.scheme_for(UP, (64, 96)) is None
    assert Recipe("int4", overrides=("*.up_proj=int4-gptq:64",)).calibrated


def test_the_last_override_that_matches_holds() -> None:
    recipe = Recipe("int4", overrides=("*.mlp.*=int8", "model.layers.1.*=float"))
    assert bits(recipe, UP) == 8
    assert bits(recipe, DOWN) is None
    assert bits(recipe, "model.layers.0.self_attn.q_proj.weight") == 4


def test_vectors_and_odd_widths_stay_float() -> None:
    assert bits(Recipe(), "model.norm.weight", (64,)) is None
    assert bits(Recipe(), UP, (64, 48)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int3"}, "--scheme is 'int3'"),
        ({"scheme": "int8", "codebook": "nf4"}, "--codebook is only for"),
        ({"scheme": "int4", "double_quant": True}, "--double-quant is only for"),
        ({"scheme": "bnb-nf4", "head": "int8"}, "--head is only for our own"),
        ({"overrides": ("int8",)}, "has no pattern"),
        ({"overrides": ("*.down_proj",)}, "has no pattern; write PATTERN=SCHEME"),
        ({"overrides": ("*=int2",)}, "is 'int2'"),
        ({"overrides": ("*=int4:50",)}, "no group that int4 could have; write a multiple of 32, as in PATTERN=int4:64"),
        ({"overrides": ("*=int8:",)}, "no group that int8 could have"),
        ({"overrides": ("*=int4:00",)}, "no group that int4 could have"),
        ({"overrides": ("*=float:32",)}, "no group that float could have"),
        ({"scheme": "bnb-nf4", "overrides": ("*=int8",)}, "is 'int8'"),
        ({"group_size": 48}, "multiple of 32"),
        ({"embedding": "int4-gptq"}, "--embedding is 'int4-gptq'"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LlamachatError, match=message):
        Recipe(**options)


def test_options_that_find_nothing_in_the_model_are_refused() -> None:
    config = ModelSpec(320, 64, 256, 2, 4, 4, 16, 2048, tie_word_embeddings=True)
    with pytest.raises(UsageError, match="matches no module"):
        Recipe(overrides=("*.w1=int8",)).check(config)
    with pytest.raises(UsageError, match="head is its embedding"):
        Recipe(head="int8").check(config)


def config(hidden: int, inner: int) -> ModelSpec:
    return ModelSpec(320, hidden, inner, 2, 3, 3, 20, 2048)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-gptq"])
def test_a_model_that_no_group_fits_is_refused_with_its_widths(scheme: Any) -> None:
    with pytest.raises(ModelError, match=r"groups of 32 .*widths 60, 100.*has nothing to quantize") as caught:
        Recipe(scheme).check(config(60, 100))
    assert caught.value.exit_code == 3
    Recipe(scheme).check(config(60, 128))  # down_proj's columns
    with pytest.raises(ModelError, match=r"groups of 128 .*widths 60, 64, 96"):  # though the embedding would fit
        Recipe(scheme, group_size=128).check(config(64, 96))


@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-fp4", "bnb-int8"])
def test_bitsandbytes_takes_any_width(scheme: Any) -> None:
    Recipe(scheme).check(config(60, 100))
    assert Recipe(scheme).left(config(60, 100).tensor_shapes()) == [EMBEDDING, "lm_head.weight"]


def test_a_recipe_that_leaves_all_in_float_is_refused() -> None:
    with pytest.raises(UsageError, match="every matrix is to stay in float"):
        Recipe(overrides=("*=float",)).check(config(64, 64))
    with pytest.raises(UsageError, match="every matrix is to stay in float"):
        Recipe("bnb-nf4", skip=("model",)).check(config(64, 64))
    Recipe(overrides=("*.layers.*=float",)).check(config(64, 64))  # the embedding is asked for


@pytest.mark.parametrize(
    ("raw", "recipe"),
    [
        ({"scheme": "int8", "skip": ["o_proj"]}, Recipe("int8", skip=("o_proj",))),
        (
            {"quantization_config": Recipe("int4", codebook="nf4").quantization_config({})},
            Recipe("int4", codebook="nf4"),
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            Recipe("bnb-nf4"),
        ),
        ({"quant_config": {"quant_method": "rtn", "weight_dtype": "int8"}}, Recipe("int8")),
    ],
)
def test_the_vocabularies_of_others_are_understood(tmp_path: Path, raw: dict[str, Any], recipe: Recipe) -> None:
    path = tmp_path / "quant.json"
    path.write_text(json.dumps(raw))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    "wrong", [{"skip": "o_proj"}, {"overrides": [5]}, {"skip_modules": {}}, {"double_quant": 1}, {"kv_bits": 7}]
)
def test_a_value_of_another_type_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = tmp_path / "quant.json"
    path.write_text(json.dumps({"scheme": "bnb-nf4", **wrong}))
    with pytest.raises(LlamachatError, match=next(iter(wrong))):
        read_recipe(path)


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quant.json"
    path.write_text('{"scheme": "int4", "gruop_size": 64}')
    with pytest.raises(UsageError, match="gruop_size"):
        read_recipe(path)
