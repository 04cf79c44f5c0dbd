"""The checks of the configuration classes: what no model can have is refused, by name, before anything is allocated."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.checks import shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Dtypes, ModelSpec, QuantConfig, RopeScaling
from llamachat.errors import ConfigError, UsageError

TINY = ModelSpec(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(
            (name, bad)
            for name in ("vocab_size", "hidden_size", "head_dim")
            for bad in (0, -1, 2.0, True, None, "8", 2**40)
        ),
        ("num_hidden_layers", 1025),
        ("num_key_value_heads", 3),
        ("head_dim", 5),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", math.nan),
        ("rope_theta", -1.0),
        ("rope_theta", math.inf),
        ("rope_theta", 10**400),
        ("sliding_window", 0),
        ("layer_types", ("full_attention",)),
        ("tie_word_embeddings", 1),
        ("bos_token_id", 32),
        ("bos_token_id", -1),
        ("eos_token_ids", (2, -1)),
        ("eos_token_ids", (None,)),
        ("pad_token_id", 1.5),
        ("rope_scaling", RopeScaling("longrope", 4, 16, short_factor=(1.0,), long_factor=(1.0, 2.0))),
        ("rope_scaling", RopeScaling("factors", factors=(1.0, 2.0, 3.0))),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_name(field: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match="RoPE" if field == "rope_scaling" else field.removesuffix("s")):
        replace(TINY, **{field: bad})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"kind": "mrope"}, "RoPE scaling"),
        ({"kind": "linear", "factor": 0}, "factor"),
        ({"kind": "linear", "factor": math.nan}, "factor"),
        ({"kind": "linear", "factor": True}, "factor"),
        ({"kind": "llama3", "factor": 8}, "original_max_position_embeddings"),
        ({"kind": "llama3", "original_max_position_embeddings": 8, "high_freq_factor": 1}, "high_freq_factor"),
        ({"kind": "yarn", "original_max_position_embeddings": 8, "mscale": -1}, "mscale"),
        ({"kind": "yarn", "original_max_position_embeddings": 8, "attention_factor": 0}, "attention_factor"),
        ({"kind": "longrope", "original_max_position_embeddings": 8, "short_factor": (0.0,)}, "short_factor"),
    ],
)
def test_a_rope_scaling_that_cannot_be_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        RopeScaling(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scheme": ""}, "scheme"),
        ({"scheme": 4}, "scheme"),
        ({"scheme": "int4", "group_size": 48}, "group_size"),
        ({"scheme": "int4", "group_size": 0}, "group_size"),
        ({"scheme": "int8", "kv_bits": 5}, "kv_bits"),
    ],
)
def test_a_quantization_that_cannot_be_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        QuantConfig(**options)


@pytest.mark.parametrize("options", [{"compute": "float64"}, {"norm": None}, {"softmax": "int8"}])
def test_a_dtype_that_no_engine_has_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} dtype"):
        Dtypes(**options)


@pytest.mark.parametrize(
    ("field", "bad", "allowed"),
    [
        ("temperature", -0.1, "0 to 100"),
        ("temperature", math.nan, "0 to 100"),
        ("temperature", None, "0 to 100"),
        ("temperature", "1", "0 to 100"),
        ("top_p", 1.01, "0 to 1"),
        ("min_p", -1, "0 to 1"),
        ("top_k", -1, "0 to"),
        ("top_k", 1.0, "whole"),
        ("top_k", True, "whole"),
        ("repetition_penalty", 0, "0.01 to 100"),
        ("frequency_penalty", 2.5, "-2 to 2"),
        ("presence_penalty", math.inf, "-2 to 2"),
        ("seed", -1, "0 to"),
        ("seed", 2**64, "0 to"),
        ("logit_bias", {-1: 0.0}, "0 to"),
        ("logit_bias", {1: math.inf}, "-1e"),
        ("logit_bias", {1: "a"}, "-1e"),
    ],
)
def test_a_sampling_value_out_of_range_names_field_value_and_range(field: str, bad: Any, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams().replace(**{field: bad})
    assert field in str(caught.value)
    assert allowed in str(caught.value)
    assert shown(next(iter(bad)) if bad == {-1: 0.0} else bad[1] if isinstance(bad, dict) else bad) in str(caught.value)


def test_replace_changes_only_what_it_names() -> None:
    changed = SamplingParams().replace(temperature=0, seed=3, logit_bias={5: -math.inf})
    assert changed == SamplingParams(logit_bias={5: -math.inf}, temperature=0, seed=3)


def test_replace_of_an_unknown_parameter_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="temprature"):
        SamplingParams().replace(temprature=1)


def test_the_window_applies_from_the_first_layer_that_has_one() -> None:
    config = replace(TINY, sliding_window=8, layer_types=("full_attention", "sliding_attention"))
    assert [config.window(layer) for layer in range(2)] == [None, 8]


def test_tensor_shapes_follow_biases_tying_and_grouped_heads() -> None:
    plain = TINY.tensor_shapes()
    assert plain["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    biased = replace(TINY, qkv_bias=True, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True)
    extra = {name for name in biased.tensor_shapes() if name not in plain}
    assert len(extra) == 2 * 7
    assert all(name.endswith(".bias") for name in extra)
    assert plain.keys() - biased.tensor_shapes().keys() == {"lm_head.weight"}


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)))
def test_shown_values_fit_on_a_line(value: Any) -> None:
    assert len(shown(value)) < 2000
    assert shown(value).isprintable()


def test_shown_copes_with_integers_that_python_will_not_print() -> None:
    assert shown([1 << 100_000]) == "[a number of 100001 bits]"
