"""What the configuration readers share. Each format has its own: hf_config.py, mindformers_config.py, meta.py, lit.py, gguf.py.

A reader honours a key, or knows by name that it has no effect on what the model computes, or refuses it: a setting that is
silently dropped gives a model that is subtly wrong.
"""

from dataclasses import dataclass, field
from typing import Any

from llamachat.core.spec import ModelSpec
from llamachat.errors import ConfigError
from llamachat.families.family import Layout
from llamachat.formats.labels import Labels
from llamachat.system.metadata import Fields


@dataclass(frozen=True)
class Translated:
    """What a configuration says."""

    config: ModelSpec
    sampling: dict[str, Any]  # fields of SamplingParams that it sets
    ignored: tuple[str, ...]  # its keys that have no effect at inference
    max_length: int | None = None  # tokens of prompt and answer together, where it sets a limit
    layout: Layout = field(default_factory=Layout)  # of the weights beside it
    pooling: str | None = None  # see Checkpoint
    labels: Labels | None = None  # of a head that classifies


def head_share(fields: Fields, hidden: int, heads: int) -> int:
    """The hidden size shared out among the heads."""
    if hidden % heads:
        raise ConfigError(f"{fields.where}: {heads} heads do not divide a width of {hidden}", "it cannot be built")
    return hidden // heads


def feed_forward(fields: Fields, width: int, multiple: int) -> int:
    """A feed-forward width rounded up to `multiple_of` (or its default)."""
    multiple = fields.whole("multiple_of", multiple, 1, 2**20)
    return -(-width // multiple) * multiple
