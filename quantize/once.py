"""Models of the catalog that come in float and are to be quantized: converted at their first use, then kept."""

from dataclasses import asdict
from pathlib import Path

from llamachat import paths, private
from llamachat.config import QuantConfig
from llamachat.errors import ModelError
from llamachat.fetch.verified import is_intact, lock
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.packed import MANIFEST, expected
from llamachat.keys import key, text_key, weights_key
from quantize.convert import Progress, convert, silent
from quantize.recipe import from_config


def quantized_once(source: Checkpoint, config: QuantConfig, progress: Progress = silent) -> Checkpoint:
    """The converted model, made in the cache folder if it is not there whole; an interrupted conversion is gone on with.

    For int4-gptq the text is Python's own docstrings.
    """
    out = quantized_path(source, config)
    private.folder(out.parent)
    with lock(out.with_suffix(".lock")):
        if not _is_whole(out):
            recipe = from_config(config)
            text = _calibration(source) if recipe.calibrated else None
            convert(source, out, recipe, calibration=text, resume=True, progress=progress)
            private.close_tree(out)
    return open_checkpoint(out)


def _is_whole(out: Path) -> bool:
    """Whether everything is there as it was written; files are read whole once, and again when they may have changed."""
    if not (out / MANIFEST).is_file() or private.trouble(out) or private.trouble(out / MANIFEST):
        return False
    try:
        listed = expected(out)
    except ModelError:
        return False
    there = {path.name for path in out.iterdir()} - {MANIFEST}
    return listed.keys() == there and all(is_intact(out / name, listed[name], unseen) for name in there)


def unseen(what: str, done: int, total: int | None) -> None:
    """Progress of reading, which takes a moment."""


def quantized_path(source: Checkpoint, config: QuantConfig) -> Path:
    """Where it is kept: a folder by what it is made from and how, so that a changed source is converted anew."""
    made = key([weights_key(source), text_key(source), asdict(from_config(config))])
    return paths.cache_dir() / "quantized" / made[:24]


def _calibration(source: Checkpoint) -> list[list[int]]:
    from quantize.gptq import calibration_windows

    return calibration_windows(source.tokenizer())
