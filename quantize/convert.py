"""A checkpoint of any format -> a folder of quantized weights, one tensor at a time."""

import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Tensor
from llamachat.errors import FormatError
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import SPLIT
from llamachat.models.keys import key
from llamachat.version import VERSION
from quantize.activity import activities
from quantize.coding import Coded, code, release
from quantize.folder import COPIED, tokenizer_folder, write_metadata
from quantize.recipe import FLOAT, Recipe
from quantize.report import Conversion, measured
from quantize.sizes import header_room
from quantize.verify import verify
from quantize.writer import FolderWriter, disk_errors, writing

REPORT = "quantization.json"
Progress = Callable[[str, int, int], None]  # tensor, weights done, weights in all


def silent(name: str, done: int, total: int) -> None:
    pass


def convert(
    source: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    calibration: list[list[int]] | None = None,
    resume: bool = False,
    progress: Progress = silent,
    threads: int | None = None,
) -> Conversion:
    """Write the folder `out`, which opens as any checkpoint does. `calibration`: sequences of token ids, for int4-gptq.

    The same source and recipe give the same bytes. Raises UsageError, FormatError for weights that are missing or not
    finite, ModelError when there is nothing to quantize, when the disk is full, or when what was written does not open
    as the same model; `out` is then as it was.
    """
    recipe = _as_used(recipe, source.config)
    recipe.check(source.config)
    index = source.index()
    if missing := sorted(source.config.tensor_shapes().keys() - index.keys()):
        raise FormatError(f"{source.path} lacks {missing[0]}", "nothing was converted", "fetch its files again")
    room = header_room(index, recipe)
    total, done = sum(prod(info.shape) for info in index.values()), 0
    made = making(source, recipe, calibration if recipe.calibrated else None)
    with writing(out, made, room, resume, check=lambda folder: verify(source, recipe, folder)) as writer:
        for name, tensor, arrays, coded in _coded(source, recipe, writer, calibration, threads):
            progress(name, done, total)
            if name not in writer.done:
                writer.add(name, arrays, measured(tensor, coded, arrays, _label(recipe, name, tensor), threads))
            release(tensor)
            done += prod(tensor.shape)
        with disk_errors(out):
            write_metadata(source, recipe, writer.folder)
            tensors = {name: entry["facts"] for name, entry in writer.done.items()}
            (writer.folder / REPORT).write_text(json.dumps({"tensors": tensors}, indent=1) + "\n", encoding="utf-8")
    return Conversion(source, out, recipe, tensors)


def _as_used(recipe: Recipe, config: ModelSpec) -> Recipe:
    """The recipe with the bits of the cache that the source asks for, unless it asks for others."""
    return replace(recipe, kv_bits=recipe.kv_bits or (config.quantization.kv_bits if config.quantization else None))


def making(source: Checkpoint, recipe: Recipe, calibration: list[list[int]] | None) -> dict[str, Any]:
    """What a resumed conversion must agree on: every file that the model comes from, what they were read as, and a key of the
    text that weights are rounded by, if any."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(source)]
    read = {"config": asdict(source.config), "sampling": dict(source.sampling), "template": source.chat_template}
    version = VERSION
    merged = {"merged": source.recipe} if isinstance(source, Changed) else {}
    text = None if calibration is None else key(calibration)
    return {"files": stats, **read, **merged, "recipe": asdict(recipe), "calibration": text, "version": version}


def _files(source: Checkpoint) -> list[Path]:
    """The file and those split off it, or all of the folder; and the tokenizer's, which may lie beside or above."""
    path = source.path
    split = SPLIT.fullmatch(path.name)
    siblings = path.parent.glob(f"{glob.escape(split[1])}-*-of-{split[2]}.gguf") if split else [path]
    adapters = source.files if isinstance(source, Changed) else ()
    own = siblings if path.is_file() else (file for file in path.iterdir() if file.is_file())
    beside = (file for name in COPIED if (file := tokenizer_folder(source) / name).is_file())
    return sorted({*own, *beside, *adapters})


def _coded(
    source: Checkpoint,
    recipe: Recipe,
    writer: FolderWriter,
    calibration: list[list[int]] | None,
    threads: int | None,
) -> Iterator[Coded]:
    """Every tensor, quantized unless it is in the file already."""
    if recipe.calibrated:
        from quantize.gptq import calibrated

        yield from calibrated(source, recipe, writer, calibration, threads)
        return
    known = activities(source)
    for name, tensor in source.tensors():
        arrays, coded = ({}, None) if name in writer.done else code(name, tensor, recipe, threads, known.get(name))
        yield name, tensor, arrays, coded


def _label(recipe: Recipe, name: str, tensor: Tensor) -> str:
    """What a matrix becomes, for people."""
    scheme = recipe.scheme_for(name, tensor.shape)
    if scheme is None:
        return FLOAT
    return recipe.name_for(name) + (f" {scheme.codebook}" if scheme.codebook and not scheme.foreign else "")
