"""Gemma 2 (arXiv 2408.00118): four norms a layer, soft caps on scores and logits, a window in every other layer."""

from llamachat.core.spec import ModelSpec
from llamachat.families.family import (
    TANH,
    Changes,
    Family,
    Gguf,
    Key,
    every,
    factor,
    gguf_windows,
    typed_layers,
    types_layers,
)
from llamachat.system.metadata import Fields

ACTIVATION = "hidden_activation"  # hidden_act stands beside it, and is not heeded
NO_EFFECT = frozenset({"hidden_act", "cache_implementation", "sliding_window_size"})
SAID: Changes = {"norms": "both", "hidden_act": "gelu_pytorch_tanh"}
WIDEST = 46  # layers of the 27B model, whose GGUF files do not say that its scores are scaled by another size


def common(fields: Fields) -> Changes:
    """Of Gemma 2 and 3. Norms are stored less 1, and the embedding is scaled by the root of its width."""
    fields.neutral("use_bidirectional_attention", False)
    fields.neutral("attention_bias", False)
    attention, final = softcap(fields, "attn_logit_softcapping"), softcap(fields, "final_logit_softcapping")
    hidden, size = fields.size("hidden_size", "hidden_size"), fields.size("head_dim", "head_dim")
    return {
        "norms": "both",
        "norm_offset": 1.0,
        "embedding_multiplier": hidden**0.5,
        "attention_scale": scale(factor(fields, "query_pre_attn_scalar", 256), size),
        "attention_softcap": attention,
        "logit_softcap": final,
    }


def softcap(fields: Fields, key: str) -> float | None:
    return fields.number(key, 0) or None


def scale(scalar: float, head_dim: int) -> float | None:
    """Of scores; None where it is the usual one."""
    return None if scalar == head_dim else scalar**-0.5


def write_common(spec: ModelSpec) -> Changes:
    scalar = (spec.attention_scale or spec.head_dim**-0.5) ** -2
    whole = round(scalar)
    return {
        ACTIVATION: "gelu_pytorch_tanh",
        "query_pre_attn_scalar": whole if scale(whole, spec.head_dim) == spec.attention_scale else scalar,
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
    } | types_layers(spec)


def gguf_common(own: Fields, key: Key, layers: int, widest: int) -> Changes:
    """As llama.cpp: scores are scaled by the size of a head, in the model of so many layers by the width shared out."""
    hidden, heads = (own.size(key(name), "hidden_size") for name in ("embedding_length", "attention.head_count"))
    size = own.whole(key("attention.key_length"), hidden // heads, 2)
    return {
        "embedding_multiplier": hidden**0.5,
        "attention_scale": scale(hidden // heads if layers == widest else size, size),
        "attention_softcap": softcap(own, key("attn_logit_softcapping")),
        "logit_softcap": softcap(own, key("final_logit_softcapping")),
    }


def read(fields: Fields, layers: int) -> Changes:
    return common(fields) | typed_layers(fields, layers, every(layers, 2))


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return gguf_common(own, key, layers, WIDEST) | gguf_windows(own, key, layers, 2, 4096)


FAMILY = Family(
    "gemma2",
    read,
    write_common,
    {
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        ACTIVATION: "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    activations=TANH,
    activation_key=ACTIVATION,
    no_effect=NO_EFFECT,
    gguf=Gguf("gemma2", said=SAID, read=read_gguf),
)
