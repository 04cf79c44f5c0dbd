"""What a model's first bytes say of it: what it is, whether it can run here, what it will take.

Cheap: no weight and no vocabulary is read; and quiet: of what cannot be read nothing is known.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamachat.checks import LARGEST, is_whole
from llamachat.errors import LlamachatError

MLX = "its weights are MLX's"
PICTURES = "its file holds a part that sees pictures"


@dataclass(frozen=True)
class Glance:
    """Counts are 0 where they are not known."""

    model: bool = True  # no adapter, no part of another model
    lacks: str = ""  # why it cannot run here; "": nothing is known against it
    chats: bool = True  # made to answer; no model for vectors or labels, and none that answers a source
    layers: int = 0
    hidden: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    context: int = 0  # tokens that it was made for


UNKNOWN = Glance()


def glance(path: Path) -> Glance:
    """Of a GGUF file, or of a folder with a config.json."""
    with suppress(LlamachatError, OSError):
        return _folder(path) if path.is_dir() else _gguf(path)
    return UNKNOWN


def architectures() -> Collection[str]:
    """Of GGUF files that are read, as these name them."""
    from llamachat.families import ARCHITECTURES
    from llamachat.formats.gguf_t5 import ARCH as T5

    return (*ARCHITECTURES, T5)


def _gguf(path: Path) -> Glance:
    from llamachat.formats.gguf_file import first_keys
    from llamachat.formats.gguf_t5 import ARCH as T5

    keys = first_keys(path)
    arch = keys.get("general.architecture")
    own = {key.removeprefix(f"{arch}."): keys[key] for key in keys if key.startswith(f"{arch}.")}
    heads, hidden = _count(own, "attention.head_count"), _count(own, "embedding_length")
    return Glance(
        keys.get("general.type", "model") == "model" and arch != "clip",
        _unread(arch, architectures()) or (PICTURES if any(key.startswith("vision.") for key in own) else ""),
        arch != T5 and not {"pooling_type", "classifier.output_labels"} & own.keys(),
        _count(own, "block_count"),
        hidden,
        _count(own, "attention.head_count_kv") or heads,
        _count(own, "attention.key_length") or (hidden // heads if heads else 0),
        _count(own, "context_length", "max_position_embeddings"),
    )


def _folder(path: Path) -> Glance:
    from llamachat.families.t5 import MODEL_TYPES
    from llamachat.formats.hf import CONFIG_READERS
    from llamachat.system.metadata import read_json

    config = read_json(path / "config.json")
    kind = config.get("model_type")
    inner = config.get("text_config")
    own: Mapping[str, Any] = inner if isinstance(inner, dict) else config
    heads, hidden = _count(own, "num_attention_heads"), _count(own, "hidden_size")
    classes = config.get("architectures")
    predicts = not isinstance(classes, list) or any(
        "CausalLM" in str(each) or "Conditional" in str(each) for each in classes
    )
    return Glance(
        True,
        MLX if isinstance(config.get("quantization"), dict) else _unread(kind, CONFIG_READERS),
        predicts and kind not in MODEL_TYPES,
        _count(own, "num_hidden_layers"),
        hidden,
        _count(own, "num_key_value_heads") or heads,
        _count(own, "head_dim") or (hidden // heads if heads else 0),
        _count(own, "max_position_embeddings", "max_position_embeddings"),
    )


def _unread(kind: object, known: Collection[str]) -> str:
    if not isinstance(kind, str) or not kind:
        return ""
    return "" if kind in known else f"{kind[:40]} is no architecture that runs here"


def _count(table: Mapping[str, Any], key: str, bound: str = "hidden_size") -> int:
    """The largest, where each layer has its own."""
    value = table.get(key)
    values = value if isinstance(value, list) else [value]
    return max((each for each in values if is_whole(each) and 0 < each <= LARGEST[bound]), default=0)
