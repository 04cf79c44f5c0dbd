"""Models of the catalog that come in float and are to be quantized: converted at their first use, then kept."""

import hashlib
import json
from pathlib import Path

from llamachat import paths
from llamachat.config import QuantConfig
from llamachat.fetch.verified import lock
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.packed import MANIFEST
from quantize.convert import Progress, convert, making, silent
from quantize.recipe import from_config


def quantized_once(source: Checkpoint, config: QuantConfig, progress: Progress = silent) -> Checkpoint:
    """The converted model, made in the cache folder if it is not there yet; an interrupted conversion is gone on with.

    For int4-gptq the text is Python's own docstrings.
    """
    out = quantized_path(source, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(out.with_suffix(".lock")):
        if not (out / MANIFEST).is_file():
            recipe = from_config(config)
            text = _calibration(source) if recipe.calibrated else None
            convert(source, out, recipe, calibration=text, resume=True, progress=progress)
    return open_checkpoint(out)


def quantized_path(source: Checkpoint, config: QuantConfig) -> Path:
    """Where it is kept: a folder by what it is made from and how, so that a changed source is converted anew."""
    text = json.dumps([str(source.path.resolve()), making(source, from_config(config), None)])
    return paths.cache_dir() / "quantized" / hashlib.sha256(text.encode()).hexdigest()[:24]


def _calibration(source: Checkpoint) -> list[list[int]]:
    from quantize.gptq import calibration_windows

    return calibration_windows(source.tokenizer())
