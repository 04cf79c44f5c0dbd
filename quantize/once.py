"""Models that come in float and are to be quantized before they run: once, into the cache folder, or as they are read."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llamachat import paths
from llamachat.core.spec import QuantConfig
from llamachat.core.tensors import FloatTensor, Tensor, TensorInfo
from llamachat.errors import ConfigError, ModelError
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.parts import WHOLE, Part, Parts, covering, cut
from llamachat.formats.prequantized.ours import MANIFEST, expected
from llamachat.formats.prequantized.schemes import SCHEMES
from llamachat.models.fetch import silent
from llamachat.models.fetch.verified import is_intact, lock
from llamachat.models.keys import key, text_key, weights_key
from llamachat.system import private
from quantize.activity import activities
from quantize.convert import Progress, convert
from quantize.recipe import from_config
from quantize.schemes import quantize, quantize_tensor


def quantized_once(source: Checkpoint, config: QuantConfig, progress: Progress = silent) -> Checkpoint:
    """The converted model, made in the cache folder if it is not there whole; an interrupted conversion is gone on with.

    For schemes that are calibrated the text is Python's own docstrings.
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
    return listed.keys() == there and all(is_intact(out / name, listed[name], silent) for name in there)


def quantized_path(source: Checkpoint, config: QuantConfig) -> Path:
    """Where it is kept: a folder by what it is made from and how, so that a changed source is converted anew."""
    made = key([weights_key(source), text_key(source), asdict(from_config(config))])
    return paths.cache_dir() / "quantized" / made[:24]


def _calibration(source: Checkpoint) -> list[list[int]]:
    from quantize.texts import calibration_windows

    return calibration_windows(source.tokenizer())


class Quantized:
    """A checkpoint whose float matrices are quantized as they are read; see formats.Checkpoint."""

    def __init__(self, source: Checkpoint, config: QuantConfig) -> None:
        if SCHEMES[config.scheme].calibrated:
            cause = f"scheme {config.scheme} needs calibration"
            raise ConfigError(cause, "it cannot be applied while loading", "convert the model: `llamachat quantize`")
        self.path, self.config, self.sampling = source.path, source.config, source.sampling
        self.chat_template, self.ignored, self.tokenizer = source.chat_template, source.ignored, source.tokenizer
        self.files, self.tokenizer_files, self.labels = source.files, source.tokenizer_files, source.labels
        self.pooling, self.layout = source.pooling, source.layout
        self._source, self.recipe = source, from_config(config)

    def index(self) -> Mapping[str, TensorInfo]:
        return {name: self._info(name, info) for name, info in self._source.index().items()}

    def tensors(self, parts: Parts | None = None) -> Iterator[tuple[str, Tensor]]:
        """Of parts whole groups of columns are read, and whole rows where these are groups."""
        shapes = {name: info.shape for name, info in self._source.index().items()}
        schemes = {name: self.recipe.scheme_for(name, shape) for name, shape in shapes.items()}
        outer, rest = dict(parts or {}), dict[str, Part]()
        for name in outer.keys() & schemes.keys():  # an adapter may bring a head that is not among them
            if scheme := schemes[name]:
                columns = shapes[name][1]
                outer[name], rest[name] = covering(outer[name], columns, scheme.group or columns)
        known = activities(self._source)
        for name, tensor in self._source.tensors(outer):
            scheme, activity = schemes[name], known.get(name)
            if scheme and isinstance(tensor, FloatTensor):
                run = outer.get(name, WHOLE).columns or slice(None)
                tensor = quantize_tensor(name, tensor, scheme, activity=None if activity is None else activity[run])
            yield name, cut(tensor, rest.get(name, WHOLE))

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        scheme = self.recipe.scheme_for(name, info.shape)
        if scheme is None or info.packing is not None:
            return info
        row = quantize(np.zeros((1, info.shape[1]), np.float32), scheme)
        return TensorInfo(info.shape, row.nbytes * info.shape[0], row.rows(slice(0)))
