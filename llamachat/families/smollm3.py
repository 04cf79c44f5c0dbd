"""SmolLM3 (https://huggingface.co/blog/smollm3): every fourth layer does not rotate."""

from llamachat.core.spec import LAYER_TYPES, ModelSpec
from llamachat.families.family import (
    Changes,
    Family,
    Gguf,
    Key,
    Layout,
    attention_bias,
    has_attention_bias,
    typed_layers,
    types_layers,
    windowed,
)
from llamachat.system.metadata import Fields

STEP = 4


def unrotated(layers: int, step: int) -> tuple[int, ...]:
    """Each last layer of so many."""
    return tuple(range(step - 1, layers, step))


def read(fields: Fields, layers: int) -> Changes:
    """Where the window is used, and not said of which layers, those that do not rotate have it."""
    rotates, step = fields.wholes("no_rope_layers"), fields.whole("no_rope_layer_interval", STEP, 1)
    still = tuple(n for n, turns in enumerate(rotates[:layers]) if not turns) if rotates else unrotated(layers, step)
    slide, (whole, short) = fields.flag("use_sliding_window", False), LAYER_TYPES
    kinds = tuple(short if slide and layer in still else whole for layer in range(layers))
    ways = {"unrotated_layers": still, "mlp_bias": fields.flag("mlp_bias", False)}
    windows = typed_layers(fields, layers, kinds)
    return ways | attention_bias(fields) | (windows if slide else windowed(None, ()))


def write(spec: ModelSpec) -> Changes:
    rotates = [int(spec.rope(layer) is not None) for layer in range(spec.num_hidden_layers)]
    used = {"use_sliding_window": spec.sliding_window is not None, "no_rope_layers": rotates}
    return used | {"mlp_bias": spec.mlp_bias} | has_attention_bias(spec) | types_layers(spec)


def read_gguf(own: Fields, key: Key, layers: int) -> Changes:
    return {"unrotated_layers": unrotated(layers, STEP)}


FAMILY = Family(
    "smollm3",
    read,
    write,
    {
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "pad_token_id": 128004,
    },
    "SmolLM3",
    no_effect=frozenset({"max_window_layers"}),
    gguf=Gguf("smollm3", Layout(interleaved=True), read=read_gguf),
)
