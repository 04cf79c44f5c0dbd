"""A finished conversion is opened again and compared with its source before anyone is told that it succeeded."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from llamachat.checks import shown
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, LlamachatError, ModelError
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from quantize.recipe import Recipe

TOKENIZER_FACTS = ("vocab_size", "bos_id", "frames", "eos_ids", "specials", "names", "dummy_prefix")
PROBE = "The quick\tbrown fox, 12345 × <s> déjà\n  vu 🦊"  # spaces, digits, bytes, what looks like a control token


def verify(source: Checkpoint, recipe: Recipe, folder: Path) -> None:
    """Raises ModelError unless the folder opens as the same model: configuration, sampling, template, tokenizer."""
    try:
        opened = open_checkpoint(folder)
        differences = [*_differences(source, recipe, opened)]
    except LlamachatError as error:
        raise _refusal(f"would not open again ({error})") from error
    if differences:
        name, wanted, found = differences[0]
        raise _refusal(f"would have {name} {shown(found)}, the source has {shown(wanted)}")


def _refusal(cause: str) -> ModelError:
    return ModelError(
        f"the converted model {cause}", "it was deleted", "this is a fault of llamachat; please report it"
    )


def _differences(source: Checkpoint, recipe: Recipe, opened: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """What is not as it was: its name, what it was, what it is."""
    for name in (field.name for field in fields(source.config) if field.name != "quantization"):
        yield from _difference(name, getattr(source.config, name), getattr(opened.config, name))
    quantized = opened.config.quantization
    found = (quantized.scheme, quantized.kv_bits) if quantized else None
    yield from _difference("quantization", (recipe.scheme, recipe.kv_bits), found)
    yield from _difference("sampling defaults", _set(source), _set(opened))
    yield from _difference("pooling", source.pooling, opened.pooling)
    yield from _difference("labels", source.labels, opened.labels)
    yield from _difference("chat template", source.chat_template, opened.chat_template)
    ours, theirs = _tokenizer(opened), _tokenizer(source)
    yield from _difference("tokenizer", theirs is not None, ours is not None)
    if ours and theirs:
        for name in TOKENIZER_FACTS:
            yield from _difference(f"tokenizer {name}", getattr(theirs, name), getattr(ours, name))
        yield from _difference("token ids", theirs.encode(PROBE), ours.encode(PROBE))


def _difference(name: str, wanted: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    if wanted != found:
        yield name, wanted, found


def _set(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: value for name, value in checkpoint.sampling.items() if value is not None}


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """None for weights without one, which can be converted all the same."""
    try:
        return checkpoint.tokenizer()
    except FormatError:
        return None
