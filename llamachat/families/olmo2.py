"""OLMo 2 (arXiv 2501.00656): norms after attention and feed-forward part, and of whole queries and keys."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import (
    Changes,
    Family,
    Gguf,
    Key,
    attention_bias,
    gguf_windows,
    has_attention_bias,
    no_window,
)
from llamachat.system.metadata import Fields

NORMS: Changes = {"norms": "after", "qk_norm": "projection"}
DEFAULTS: Changes = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279, "pad_token_id": 1}


def read(fields: Fields, layers: int) -> Changes:
    return NORMS | attention_bias(fields) | no_window(fields, layers)


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    """OLMo 3's too: it is the same architecture there."""
    return gguf_windows(own, key, layers, 4)


def write(spec: ModelSpec) -> Changes:
    return has_attention_bias(spec)


FAMILY = Family("olmo2", read, write, DEFAULTS, gguf=Gguf("olmo2", said=NORMS, read=read_gguf, window_theta=0))
