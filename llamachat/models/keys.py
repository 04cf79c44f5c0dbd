"""What something kept on disk depends on, as the key that it is kept under: another key, and it is made anew.

Covered are the whole configuration, every tensor's facts, every file that a checkpoint was read from, and the code that
made it. A file of a moderate size counts by its content, a larger one by its size, its time and pieces of it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from llamachat.core.tensors import QuantTensor, TensorInfo
from llamachat.formats import Checkpoint
from llamachat.version import VERSION

WHOLE = 32 << 20  # bytes; no configuration or tokenizer is larger
SAMPLES, SAMPLE = 64, 4096  # of a larger file: so many pieces of so many bytes
CODE = ("llamachat/core/*.py", "llamachat/formats/**/*.py", "llamachat/engines/**/*.py", "llamachat/engines/native/c/*.[ch]",
        "quantize/recipe.py", "quantize/schemes.py", "quantize/activity.py")  # fmt: skip


def weights_key(checkpoint: Checkpoint) -> str:
    """Of a checkpoint's tensors and configuration. Raises OSError where a file has gone."""
    return key(
        [
            code(),
            asdict(checkpoint.config),
            checkpoint.recipe,
            [(name, *_tensor(info)) for name, info in checkpoint.index().items()],
            files(checkpoint.files),
        ]
    )


def text_key(checkpoint: Checkpoint) -> str:
    """`weights_key` with what makes ids of a text. Raises OSError where a file has gone."""
    return key([weights_key(checkpoint), files(checkpoint.tokenizer_files), checkpoint.chat_template])


def key(facts: Any) -> str:
    """Of anything that JSON can tell apart, and dataclasses of that."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=asdict).encode()).hexdigest()[:32]


def files(paths: Iterable[Path]) -> list[tuple[Any, ...]]:
    """What tells files from others of their name; not where they lie. Raises OSError."""
    return [_file(path) for path in paths]


@cache
def code() -> str:
    """Of this version's code that reads, packs and computes."""
    state, top = hashlib.sha256(VERSION.encode()), Path(__file__).parents[2]
    for pattern in CODE:
        for path in sorted(top.glob(pattern)):
            state.update(f"{path.name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return state.hexdigest()


def _tensor(info: TensorInfo) -> tuple[Any, ...]:
    return info.shape, info.nbytes, info.packing and _coding(info.packing)


def _coding(packing: QuantTensor) -> tuple[Any, ...]:
    table = None if packing.table is None else packing.table.tobytes().hex()
    return packing.bits, packing.group, packing.scale.dtype.str, packing.minimum is not None, table


def _file(path: Path) -> tuple[Any, ...]:
    facts = path.stat()
    with path.open("rb") as stream:
        if facts.st_size <= WHOLE:
            return path.name, facts.st_size, hashlib.file_digest(stream, "sha256").hexdigest()
        state = hashlib.sha256()
        for piece in range(SAMPLES):
            stream.seek(facts.st_size * piece // SAMPLES)
            state.update(stream.read(SAMPLE))
        stream.seek(-SAMPLE, 2)
        state.update(stream.read())
    return path.name, facts.st_size, facts.st_mtime_ns, state.hexdigest()
