"""What a family file says, and what several of them share.

A family knows how the models of one `model_type` differ from a plain Llama: in config.json's keys and their defaults, and in
GGUF's metadata and tensor names. What a layer may be at all is in core/spec.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamachat.core.spec import LAYER_TYPES, LayerType, ModelSpec
from llamachat.system.metadata import Fields

Changes = dict[str, Any]  # fields of the spec


@dataclass(frozen=True)
class Family:
    """`name` is config.json's model_type and GGUF's general.architecture. Defaults are transformers', for absent keys."""

    name: str
    read: Callable[[Fields, int], Changes]  # config.json's keys beyond the common ones; given the number of layers
    write: Callable[[ModelSpec], Changes]  # and back: those keys of a spec
    max_position_embeddings: int
    num_key_value_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: the hidden size shared out
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    gguf_parts: Mapping[str, str] = field(default_factory=dict)  # its tensors in a layer beyond the common ones
    gguf_interleaved: bool = False  # rows of query and key are in Meta's order there
    gguf: Changes = field(default_factory=dict)  # what GGUF's metadata leave unsaid


def first_full(layers: int, full: int) -> tuple[LayerType, ...]:
    """The first `full` of so many layers see everything, the others have the window."""
    whole, short = LAYER_TYPES
    return (whole,) * full + (short,) * (layers - full) if full else ()


def no_window(fields: Fields, layers: int) -> Changes:
    """The keys of a window must say that there is none."""
    fields.neutral("sliding_window")
    return _windows(fields, layers, None, 0)


def always_slides(fields: Fields, layers: int, default: int) -> Changes:
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


def _window(fields: Fields, default: int) -> int | None:
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
