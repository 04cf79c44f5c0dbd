"""A MindFormers YAML file as a model: its configuration, over the weights that `load_checkpoint` (or `pretrained_model_dir`)
names in any format read here. Its paths are relative to the file. Source: MindFormers' predict_llama*.yaml."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamachat.errors import ConfigError, reader
from llamachat.formats import Checkpoint
from llamachat.formats.gguf import GGUFCheckpoint
from llamachat.formats.lazy import LazyCheckpoint, matched
from llamachat.formats.mindformers_config import translate
from llamachat.system.metadata import read_yaml

WEIGHTS = ("load_checkpoint", "pretrained_model_dir")


@reader
def open_mindformers(file: Path, open_weights: Callable[[Path], Checkpoint]) -> Checkpoint:
    """`open_weights` opens what is in another format.

    Raises ConfigError for a key that is not understood, FormatError when the weights are not those of the configuration.
    """
    source = read_yaml(file)
    named = next((source[key] for key in WEIGHTS if source.get(key)), None)
    if not isinstance(named, str):
        raise ConfigError(f"{file} names no weights", "there is nothing to run", f"set {WEIGHTS[0]} to their folder")
    translated = translate(source, str(file))
    weights = open_weights(file.parent / os.path.expanduser(named))  # noqa: PTH111 (never raises)
    assert isinstance(weights, LazyCheckpoint | GGUFCheckpoint)
    return replace(
        weights,
        config=translated.config,
        entries=matched(weights.entries, translated.config, weights.path),
        sampling={**translated.sampling, "max_length": translated.max_length},
        ignored=translated.ignored,
        files=(file, *weights.files),
    )
