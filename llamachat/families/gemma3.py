"""Gemma 3's text model (arXiv 2503.19786): Gemma 2 with normed queries and keys, no caps, and two thetas.

Five layers with a window and theta 10,000 stand between two that see everything, with theta 1,000,000 and perhaps a scaling.
"""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import TANH, Changes, Family, Gguf, Key, every, gguf_windows, typed_layers
from llamachat.families.gemma2 import ACTIVATION, NO_EFFECT, SAID, common, gguf_common, write_common
from llamachat.system.metadata import Fields

LOCAL_THETA = "rope_local_base_freq"
WIDEST = 62  # see gemma2


def read(fields: Fields, layers: int) -> Changes:
    key = "sliding_window_pattern" if fields.get("sliding_window_pattern") else "_sliding_window_pattern"
    period = fields.whole(key, 6, 1)
    return common(fields) | {"qk_norm": "head"} | typed_layers(fields, layers, every(layers, period))


def write(spec: ModelSpec) -> Changes:
    theta = spec.sliding_rope.theta if spec.sliding_rope else spec.rope_theta
    return write_common(spec) | {LOCAL_THETA: theta}


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return gguf_common(own, key, layers, WIDEST) | gguf_windows(own, key, layers, 6)


FAMILY = Family(
    "gemma3_text",
    read,
    write,
    {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        ACTIVATION: "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "rope_theta": 1e6,
        LOCAL_THETA: 1e4,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "Gemma3",
    activations=TANH,
    activation_key=ACTIVATION,
    window_theta=LOCAL_THETA,
    no_effect=NO_EFFECT,
    gguf=Gguf("gemma3", said=SAID | {"qk_norm": "head"}, read=read_gguf, window_theta=1e4),
)
