"""One random model over one process and over several, for gpu_check: the same logits, and how fast each decodes."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gpu_models import llama_config, weights

from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.spec import Dtype, ModelSpec
from llamachat.core.tensors import FloatTensor
from llamachat.engines.select import build_engine
from llamachat.formats.detect import open_checkpoint

IDS = [(7 * at + 11) % 900 for at in range(40)]


@contextmanager
def written(spec: ModelSpec) -> Iterator[Path]:
    """A Hugging Face folder of a Llama with random weights in bfloat16, which each process reads its part of."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **llama_config(spec)}
        (folder / "config.json").write_text(json.dumps(config))
        _write_safetensors(folder / "model.safetensors", spec)
        yield folder


def _write_safetensors(file: Path, spec: ModelSpec) -> None:
    """https://huggingface.co/docs/safetensors: a length, a header in JSON, then the tensors."""
    header, end = {}, 0
    for name, shape in spec.tensor_shapes().items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in weights(spec, "bf16"):
            assert isinstance(tensor, FloatTensor)
            out.write(tensor.data.tobytes())


@contextmanager
def engine(folder: Path, device: str, processes: int, slots: int, dtype: Dtype) -> Iterator[Engine]:
    checkpoint = open_checkpoint(folder)
    made = build_engine(
        checkpoint,
        checkpoint.tensors,
        slots=slots,
        engine="torch",
        device=device,
        dtype=dtype,
        say=lambda line: None,
        processes=processes,
        opening={"path": str(folder), "adapters": []},
    )
    try:
        yield made
    finally:
        with suppress(AttributeError):  # one process has nothing to be closed
            made.close()  # type: ignore[attr-defined]


def furthest(folder: Path, device: str, processes: int) -> float:
    """The largest difference of a logit to one process's, as a share of the largest logit, in float32."""
    rows = []
    for count in (1, processes):
        with engine(folder, device, count, 64, "float32") as each:
            rows.append(each.forward(IDS, Cache(64).plan(len(IDS)), "all"))
    return float(np.abs(rows[1] - rows[0]).max() / np.abs(rows[0]).max())
