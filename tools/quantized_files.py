"""Random models of real shapes in the files that people have: by llama.cpp's own quantizer, and kept in the cache folder."""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from llamachat import paths
from llamachat.bench.shapes import config_of, write_gguf
from llamachat.errors import UsageError
from llamachat.formats.gguf_file import read_parts
from llamachat.models.disk_cache import DiskCache
from llamachat.system import environment, known

LIMIT = 16_000_000_000  # bytes of all files
SPARE = 4_000_000_000  # bytes that stay free on the disk
MADE = 1  # what the files are made like: another number makes them anew
BITS = {
    "Q4_K_M": 5,
    "Q5_K_M": 6,
    "Q6_K": 7,
    "Q3_K_M": 4,
    "Q2_K": 3.5,
    "IQ4_XS": 4.5,
    "Q5_0": 6,
    "Q8_0": 9,
}  # a weight, at most

QUANTIZE = """
import sys, llama_cpp
source, target, ftype, threads = sys.argv[1:]
how = llama_cpp.llama_model_quantize_default_params()
how.ftype, how.nthread = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + ftype), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), how))
"""


def store() -> DiskCache:
    """Where the files are kept."""
    return DiskCache(paths.cache_dir() / "bench", ".gguf", LIMIT, SPARE)


def quantized(shape: str, ftype: str, tokenizer_of: Path, threads: int, say: Callable[[str], None]) -> Path:
    """The file of a shape in one of llama.cpp's types, with the tokenizer of another file; made if it is not there.

    Raises UsageError without llama-cpp-python and gguf, without room on the disk, or when the quantizer fails.
    """
    kept = store()
    path = kept.folder / f"{shape}-{ftype}-{MADE}.gguf"
    if not path.exists():
        say(f"making {path.name} with llama.cpp's quantizer …")
        try:
            _make(kept, path, ftype, tokenizer_of, threads)
        except ImportError as error:
            raise UsageError("the gguf package is not installed", "no file can be made", "pip install gguf") from error
    known.use(path)
    return path


def _make(kept: DiskCache, path: Path, ftype: str, tokenizer_of: Path, threads: int) -> None:
    config = config_of(path.name.split("-")[0])
    weights = sum(math.prod(shape) for shape in config.tensor_shapes().values())
    needed = round(weights * (2 + BITS[ftype] / 8))
    if not kept.make_room(needed, max(LIMIT, needed)):
        raise UsageError(f"{kept.folder} has no room for {needed / 1e9:.0f} GB", "no file can be made", "free some")
    with tempfile.TemporaryDirectory(prefix="making-", dir=kept.folder) as folder:
        source, target = Path(folder, "f16.gguf"), Path(folder, path.name)
        write_gguf(source, config, "f16", read_parts(tokenizer_of)[0])
        command = [sys.executable, "-c", QUANTIZE, str(source), str(target), ftype, str(threads)]
        done = subprocess.run(command, env=environment.of_ourselves(), capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason"]
            raise UsageError(f"llama.cpp's quantizer failed: {said[-1]}", f"there is no {path.name}")
        target.replace(path)
