"""OLMo 3 (https://allenai.org/olmo): OLMo 2 with a window in three layers of four; the fourth alone has a RoPE scaling."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import (
    Changes,
    Family,
    attention_bias,
    every,
    has_attention_bias,
    typed_layers,
    types_layers,
)
from llamachat.families.olmo2 import DEFAULTS, NORMS
from llamachat.system.metadata import Fields


def read(fields: Fields, layers: int) -> Changes:
    return NORMS | attention_bias(fields) | typed_layers(fields, layers, every(layers, 4))


def write(spec: ModelSpec) -> Changes:
    return has_attention_bias(spec) | types_layers(spec)


FAMILY = Family(
    "olmo3",
    read,
    write,
    DEFAULTS | {"rope_theta": 500000.0, "sliding_window": 4096},
    window_theta="rope_theta",
)
