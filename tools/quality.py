"""What each scheme costs: `python tools/quality.py REFERENCE` prints the table of the README for any float model.

Only the linear layers are quantized; embedding and head stay float. Every scheme is run in float32 on the same tokens
and compared with the reference by KL divergence. Beside ours: ggml's block types, bitsandbytes' and HQQ's iteration (Badri
and Shaji, 2023), each as its own project rounds.
"""

import argparse
import inspect
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep
from llamachat.core.engine import Engine
from llamachat.core.tensors import Array, FloatTensor, Tensor, dequantize, to_float32
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.generation.perplexity import Estimate, evaluate, manual, summary, windows
from quantize.activity import activities
from quantize.convert import convert, silent
from quantize.mixing import Mixing
from quantize.recipe import Recipe
from quantize.schemes import SCHEMES, Scheme, quantize_tensor
from quantize.sizes import output_bytes
from quantize.texts import calibration_windows

Rounding = Callable[[Array], Array]  # float32 [n, group] -> what is left of it


def q8_0(blocks: Array) -> Array:
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    return np.rint(blocks / _nonzero(scale)) * _half(scale)


def q4_0(blocks: Array) -> Array:
    return _signed(blocks, 8)


def q5_0(blocks: Array) -> Array:
    return _signed(blocks, 16)


def q4_1(blocks: Array) -> Array:
    low = blocks.min(1, keepdims=True)
    scale = (blocks.max(1, keepdims=True) - low) / np.float32(15)
    return np.asarray(np.floor((blocks - low) / _nonzero(scale) + np.float32(0.5)) * _half(scale) + _half(low))


def hqq(groups: Array) -> Array:
    """Evenly spaced with a zero point that is moved to serve all but the outliers: the error's p-norm with p = 0.7."""
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    inverse = 15 / _nonzero(high - low)
    zero, strength = -low * inverse, 10.0
    for _ in range(20):
        codes = np.clip(np.rint(groups * inverse + zero), 0, 15)
        error = groups - (codes - zero) / inverse
        size = np.abs(error)
        outlying = np.sign(error) * np.maximum(size - np.maximum(size, 1e-8) ** (0.7 - 1) / strength, 0)
        zero = (codes - (groups - outlying) * inverse).mean(1, keepdims=True)
        strength *= 1.01
    inverse, zero = 1 / _nonzero(_half(1 / inverse)), _half(zero)
    return np.asarray((np.clip(np.rint(groups * inverse + zero), 0, 15) - zero) / inverse, np.float32)


def _signed(blocks: Array, half: int) -> Array:
    """ggml's: the largest weight gets the code that has no opposite."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = peak / np.float32(-half)
    codes = np.clip(np.floor(blocks / _nonzero(scale) + half + np.float32(0.5)), 0, 2 * half - 1)
    return np.asarray((codes - half) * _half(scale))


def _nonzero(scale: Array) -> Array:
    return np.where(scale == 0, np.float32(1), scale)


def _half(scale: Array) -> Array:
    return scale.astype(np.float16).astype(np.float32)


ROUNDED: dict[str, tuple[float, int, Rounding]] = {  # bits a weight, group
    "Q8_0 (ggml)": (8.5, 32, q8_0),
    "Q5_0 (ggml)": (5.5, 32, q5_0),
    "Q4_1 (ggml)": (5.0, 32, q4_1),
    "Q4_0 (ggml)": (4.5, 32, q4_0),
    "HQQ-style, groups of 64": (4.5, 64, hqq),
}
CODED = {
    "NF4 (bitsandbytes)": SCHEMES["bnb-nf4"],
    "FP4 (bitsandbytes)": SCHEMES["bnb-fp4"],
    "NF4 values, groups of 32, searched": Scheme(4, 32, "nf4"),
    "IQ4_NL values, groups of 32, searched": Scheme(4, 32, "iq4nl"),
    "LLM.int8() (bitsandbytes)": SCHEMES["bnb-int8"],
    "int8": SCHEMES["int8"],
    "int4": SCHEMES["int4"],
}
CALIBRATED = {"int4-gptq, Q4_0's values": "int4", "int4-gptq": "gauss"}
CHOSEN = {f"{scheme}, chosen by cost": (scheme, bits) for scheme, bits in (("int4", 4.5), ("int4-gptq", 4.5))} | {
    "int4, chosen by cost, 5 bits": ("int4", 5.0)
}


def versions(source: Checkpoint, wanted: str) -> Iterator[tuple[str, float, Callable[[str], Tensor | None]]]:
    """Label, bits a weight, and what becomes of a linear layer's matrix by name (None: nothing)."""
    weights = {name: tensor for name, tensor in source.tensors() if _linear(name, tensor)}
    for label, (bits, group, rounding) in ROUNDED.items():
        if wanted in label:
            yield label, bits, lambda name, g=group, r=rounding: _rounded(weights.get(name), g, r)  # type: ignore[misc]
    for label, scheme in CODED.items():
        if wanted in label:
            known = activities(source) if label in SCHEMES else {}
            bits = scheme.bits + (16 if scheme.search else 32) / scheme.group if scheme.group else 8.0
            yield label, bits, lambda name, s=scheme, k=known: _coded(name, weights.get(name), s, k.get(name))  # type: ignore[misc]
    for label, codebook in CALIBRATED.items():
        if wanted in label:
            with tempfile.TemporaryDirectory() as folder:
                recipe = Recipe("int4-gptq", codebook=codebook, embedding="float")
                yield label, 4.5, _converted(source, recipe, Path(folder) / "out").get
    for label, (scheme, bits) in CHOSEN.items():
        if wanted in label:
            with tempfile.TemporaryDirectory() as folder:
                recipe = _chosen(source, Recipe(scheme, embedding="float"), bits, sum(map(_weights, weights.values())))
                yield label, bits, _converted(source, recipe, Path(folder) / "out").get


def _linear(name: str, tensor: Tensor) -> bool:
    return ".layers." in name and len(tensor.shape) == 2


def _rounded(tensor: Tensor | None, group: int, rounding: Rounding) -> Tensor | None:
    if tensor is None:
        return None
    data = dequantize(tensor)
    return FloatTensor(rounding(data.reshape(-1, group)).reshape(data.shape).astype(np.float32))


def _coded(name: str, tensor: Tensor | None, scheme: Scheme, activity: Array | None) -> Tensor | None:
    return tensor and quantize_tensor(name, FloatTensor(dequantize(tensor)), scheme, activity=activity)


def _weights(tensor: Tensor) -> int:
    return prod(tensor.shape)


def _chosen(source: Checkpoint, recipe: Recipe, bits: float, weights: int) -> Recipe:
    """With so many bits a weight of the linear layers; what is not in these is as it was."""
    room = output_bytes(source.index(), recipe) + int((bits - 4.5) / 8 * weights)
    return Mixing(source, recipe).fitting(room, calibration_windows(source.tokenizer()), None, silent)


def _converted(source: Checkpoint, recipe: Recipe, out: Path) -> dict[str, Tensor]:
    convert(source, out, recipe, calibration=calibration_windows(source.tokenizer()))
    return {name: tensor for name, tensor in open_checkpoint(out).tensors() if _linear(name, tensor)}


class Recorded:
    """An engine that answers what it was asked before from memory."""

    def __init__(self, engine: Engine) -> None:
        self.config, self.slots, self.batch_invariant, self._engine = engine.config, engine.slots, True, engine
        self._answers: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        key = tuple(ids)
        if key not in self._answers:
            self._answers[key] = self._engine.forward(ids, step, logits)
        return self._answers[key]

    def describe(self) -> str:
        return self._engine.describe()


def build(source: Checkpoint, changed: Callable[[str], Tensor | None], slots: int) -> Engine:
    """An engine in float32 with some matrices exchanged."""
    from llamachat.engines.torch.engine import TorchEngine

    tensors = ((name, changed(name) or FloatTensor(_plain(tensor))) for name, tensor in source.tensors())
    return TorchEngine.build(source.config, tensors, slots=slots, dtype="float32")


def _plain(tensor: Tensor) -> Array:
    return to_float32(tensor.data) if isinstance(tensor, FloatTensor) else dequantize(tensor)


def table(source: Checkpoint, size: int, most: int, wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each scheme; per text the statistics of llamachat.generation.perplexity."""
    tokenizer = source.tokenizer()
    texts = {"manual": manual(), "code": inspect.getsource(statistics)}
    cut = {name: windows(tokenizer.encode(text), size, most, tokenizer.bos_id) for name, text in texts.items()}
    reference = Recorded(build(source, lambda name: None, size))
    for label, bits, changed in versions(source, wanted):
        engine = build(source, changed, size)
        yield {
            "scheme": label,
            "bits": bits,
            **{name: summary(evaluate(engine, ids, reference)) for name, ids in cut.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="a float model in any format")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, of each text")
    parser.add_argument("--only", default="", help="schemes whose name has this in it")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    print("| scheme | bits/weight | KL, manual | top-1 | KL, code | top-1 |\n|---|---|---|---|---|---|")
    for row in table(open_checkpoint(options.reference), 512, options.windows, options.only):
        print(json.dumps(row, default=list) if options.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    cells = [row["scheme"], f"{row['bits']:.4g}"]
    for name in ("manual", "code"):
        kl, same = row[name]["kl_mean"], row[name]["same_top"]
        assert isinstance(kl, Estimate)
        cells += [f"{kl.value:.5f} ± {kl.error:.5f}", f"{same.value:.1%}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
