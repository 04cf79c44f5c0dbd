"""What a family file says, and what several of them share.

A family knows how the models of one `model_type` differ from a plain Llama: in config.json's keys and their defaults, in how a
folder of Hugging Face's names and joins its tensors, and in GGUF's metadata and names. What a layer may be at all is in
core/spec.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamachat.core.spec import LAYER_TYPES, Activation, Experts, LayerType, ModelSpec
from llamachat.system.metadata import Fields

Changes = dict[str, Any]  # fields of the spec, or keys of a config.json
Key = Callable[[str], str]  # a GGUF key without its architecture -> the whole key
SILU: Mapping[str, Activation] = {"silu": "silu", "swish": "silu"}
FUSED_QKV: dict[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
}
FUSED_MLP: dict[str, tuple[str, ...]] = {"mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}
GATE_UP, DOWN = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"), ("mlp.experts.{}.down_proj",)
STACKED: dict[str, tuple[str, ...]] = {  # experts as transformers 5 holds them, or with a number each
    **dict.fromkeys(("mlp.experts.gate_up_proj", "mlp.experts.{}.gate_up_proj"), GATE_UP),
    "mlp.experts.down_proj": DOWN,
}
TANH: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}


@dataclass(frozen=True)
class Layout:
    """How files hold a layer's tensors where they do not as here.

    `parts`: a file's name of a module -> ours; or, of rows that are those of several modules, one below the other, all of
    them. "{}" is an expert's number: where only ours has it, the experts are stacked along a first axis.
    """

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alternating: bool = False  # rows of modules joined take turns
    transposed: bool = False  # matrices in a stack are [in, out]
    interleaved: bool = False  # rows of query and key rotate in pairs (2i, 2i + 1)


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp's converter writes a family: `arch` is general.architecture, `said` what metadata leave unsaid."""

    arch: str
    layout: Layout = field(default_factory=Layout)
    said: Changes = field(default_factory=dict)
    read: Callable[[Fields, Key, int], Changes] = lambda own, key, layers: {}  # given the number of layers
    window_theta: float | None = None  # of layers with a window, unless the file says it; 0: that of the others
    partial: bool = False  # only a part of each head may rotate


@dataclass(frozen=True)
class Family:
    """`name` is config.json's model_type."""

    name: str
    read: Callable[[Fields, int], Changes]  # config.json's keys beyond the common ones; given the number of layers
    write: Callable[[ModelSpec], Changes]  # and back: those keys of a spec
    defaults: Changes = field(default_factory=dict)  # transformers', for absent keys
    architecture: str = ""  # transformers' class, without ForCausalLM; "": the name with a capital
    activations: Mapping[str, Activation] = field(default_factory=lambda: SILU)
    activation_key: str = "hidden_act"
    window_theta: str = ""  # the key of the theta of layers with a window, which then never have a scaling
    no_effect: frozenset[str] = frozenset()
    rope_no_effect: frozenset[str] = frozenset()  # the same of keys in rope_parameters, or read beforehand
    layout: Layout = field(default_factory=Layout)
    gguf: Gguf | None = None  # None: its files say they are another family's


def plain(*fields: str) -> Callable[[ModelSpec], Changes]:
    """A `write` of fields that config.json calls as we do."""
    return lambda spec: {name: getattr(spec, name) for name in fields}


# Attention's biases ---------------------------------------------------------------------------------------------------


def attention_bias(fields: Fields, default: bool = False) -> Changes:
    """On all four matrices, or none."""
    bias = fields.flag("attention_bias", default)
    return {"qkv_bias": bias, "attention_out_bias": bias}


def has_attention_bias(spec: ModelSpec) -> Changes:
    """`attention_bias` the other way round."""
    return {"attention_bias": spec.qkv_bias and spec.attention_out_bias}


def factor(fields: Fields, key: str, default: float = 1.0) -> float:
    """A number to multiply or to divide by."""
    value = fields.number(key, default)
    return value if value > 0 else fields.refuse(key, "a number above 0")


def named(fields: Fields, default: int, *names: str) -> int:
    """A count that writers call by one of these names, or by several."""
    found = {fields.whole(name, low=1): name for name in reversed(names) if fields.get(name) is not None}
    if len(found) > 1:
        fields.refuse(names[1], f"the same as {names[0]}")
    return next(iter(found), default)


# Windows --------------------------------------------------------------------------------------------------------------


def first_full(layers: int, full: int) -> tuple[LayerType, ...]:
    """The first `full` of so many layers see everything, the others have the window."""
    whole, short = LAYER_TYPES
    return (whole,) * full + (short,) * (layers - full) if full else ()


def every(layers: int, period: int) -> tuple[LayerType, ...]:
    """Each last layer of `period` sees everything, the others have the window; all of them where period is 0."""
    whole, short = LAYER_TYPES
    kinds = tuple(short if period == 0 or (layer + 1) % period else whole for layer in range(layers))
    return kinds if whole in kinds else ()


def windowed(window: int | None, kinds: Sequence[LayerType]) -> Changes:
    """The spec's two fields, in their plainest form: no window at all where no layer has it."""
    whole, short = LAYER_TYPES
    if window is None or (kinds and short not in kinds):
        return {"sliding_window": None, "layer_types": ()}
    return {"sliding_window": window, "layer_types": tuple(kinds) if whole in kinds else ()}


def layer_types(fields: Fields) -> tuple[LayerType, ...]:
    """The key of that name, all of it known; () where it is absent."""
    known: dict[str, LayerType] = {kind: kind for kind in LAYER_TYPES}
    given = fields.strings("layer_types")
    if unknown := [kind for kind in given if kind not in known]:
        fields.refuse("layer_types", f"a list of {' and '.join(known)}, not {unknown[0]}")
    return tuple(known[kind] for kind in given)


def typed_layers(fields: Fields, layers: int, kinds: tuple[LayerType, ...]) -> Changes:
    """layer_types says which layers have sliding_window, and `kinds` where it does not."""
    return windowed(fields.whole("sliding_window", 0) or None, layer_types(fields) or kinds)


def types_layers(spec: ModelSpec) -> Changes:
    """`typed_layers` the other way round."""
    kinds = [LAYER_TYPES[spec.window(layer) is not None] for layer in range(spec.num_hidden_layers)]
    return {"sliding_window": spec.sliding_window, "layer_types": kinds}


def no_window(fields: Fields, layers: int) -> Changes:
    """The keys of a window must say that there is none."""
    fields.neutral("sliding_window")
    return _windows(fields, layers, None, 0)


def always_slides(fields: Fields, layers: int, default: int | None) -> Changes:
    """Every layer has the window, unless that is null."""
    fields.neutral("use_sliding_window", True)
    return _windows(fields, layers, _window(fields, default), 0)


def may_slide(fields: Fields, layers: int, default: int) -> Changes:
    """use_sliding_window, max_window_layers and layer_types say which of the last layers have the window."""
    window, full = _window(fields, default), min(fields.whole("max_window_layers", 28), layers)
    if not fields.flag("use_sliding_window", False):
        window = None
    kinds = fields.strings("layer_types")
    if kinds and window:
        full = (*kinds, "sliding_attention").index("sliding_attention")
    return _windows(fields, layers, window, full)


def _window(fields: Fields, default: int | None) -> int | None:
    window = fields.whole("sliding_window", 0, 1) or None
    return window if "sliding_window" in fields.raw else default  # absent is not the same as null


def _windows(fields: Fields, layers: int, window: int | None, full: int) -> Changes:
    fields.whole("max_window_layers", 28)
    fields.flag("use_sliding_window", False)
    if window is None or full >= layers:
        window, full = None, 0
    expected = ["sliding_attention" if window and layer >= full else "full_attention" for layer in range(layers)]
    if (kinds := fields.strings("layer_types")) and list(kinds) != expected:
        fields.refuse("layer_types", "full_attention for the first layers and sliding_attention for the rest")
    return {"sliding_window": window, "layer_types": first_full(layers, full)}


def slides(spec: ModelSpec) -> Changes:
    """`may_slide` the other way round."""
    if spec.sliding_window is None:
        return {"sliding_window": None}
    full = spec.layer_types.count("full_attention")
    return {"sliding_window": spec.sliding_window, "use_sliding_window": True, "max_window_layers": full}


# GGUF -----------------------------------------------------------------------------------------------------------------


def gguf_windows(own: Fields, key: Key, layers: int, period: int, default: int = 0) -> Changes:
    """attention.sliding_window, and its pattern: a flag for each layer, or how many layers until one sees everything."""
    window = own.whole(key("attention.sliding_window"), default) or None
    name = key("attention.sliding_window_pattern")
    pattern = own.get(name)
    if isinstance(pattern, list) and len(pattern) >= layers and set(map(type, pattern)) == {bool}:
        return windowed(window, [LAYER_TYPES[short] for short in pattern[:layers]])
    if isinstance(pattern, bool):  # the same for each layer
        return windowed(window if pattern else None, ())
    return windowed(window, every(layers, own.whole(name, period)))


def gguf_experts(own: Fields, key: Key, **ways: bool) -> Changes:
    """expert_count of them, if any; converters write their width only where layers without experts have another."""
    count, each = own.whole(key("expert_count"), 0), own.whole(key("expert_used_count"), 0)
    width = own.whole(key("expert_feed_forward_length"), 0)
    own.neutral(key("expert_shared_count"), 0)
    own.neutral(key("expert_group_count"), 0, 1)
    own.neutral(key("expert_group_used_count"), 0, 1)
    own.neutral(key("expert_gating_func"), 1)  # the softmax
    if not count:
        own.neutral(key("expert_used_count"), 0)
        return {}
    if not each:
        own.refuse(key("expert_count"), "0 where expert_used_count is")
    return {"experts": Experts(count, each, width or own.size(key("feed_forward_length"), "intermediate_size"), **ways)}
