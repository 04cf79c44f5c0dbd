"""llama.cpp beside transformers and us, on the same tiny file of every family: python tools/measure_gguf_families.py PEER_PYTHON.

PEER_PYTHON is the interpreter of an environment with llama-cpp-python, which need not be ours. For each family a random model
is written in F32, as llama.cpp's converter would; printed is the largest difference of any logit, of llama.cpp's from
transformers' and of ours. Keys and values are kept in float32; what is left is rounding (llama.cpp looks GELU up in a table of
16 bits). Exit status 1 where a difference is beyond that.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
LIMIT, OURS = 0.01, 1e-3
ASK = """
import json, sys
import numpy as np
from llama_cpp import Llama
job = json.load(sys.stdin)
model = Llama(job["file"], n_ctx=64, n_batch=64, type_k=0, type_v=0, logits_all=True, verbose=False)
model.eval(job["ids"])
np.save(job["out"], np.array(model.scores[: len(job["ids"])]))
"""


def theirs(python: str, file: Path, ids: list[int]) -> NDArray[np.float32]:
    """llama.cpp's logits [T, vocabulary]."""
    out = file.with_suffix(".npy")
    job = json.dumps({"file": str(file), "ids": ids, "out": str(out)})
    subprocess.run([python, "-c", ASK], input=job, text=True, check=True, stderr=subprocess.DEVNULL)
    logits: NDArray[np.float32] = np.load(out)
    return logits


def measure(python: str, folder: Path) -> bool:
    """Whether all are as close as they should be."""
    from families.test_files import ours
    from family_files import CASES, IDS, logits, model_of, save_family_gguf

    good = True
    for case, (_, _, gguf) in CASES.items():
        if gguf is None:
            continue
        model = model_of(case, **gguf[1])
        file, right = save_family_gguf(model, gguf[0], folder / f"{case}.gguf"), logits(model, IDS)
        peer, own = (np.abs(each - right).max() for each in (theirs(python, file, IDS), ours(file)))
        print(f"{case:12} {gguf[0]:10} llama.cpp {peer:.1e}  llamachat {own:.1e}")
        good &= bool(peer < LIMIT and own < OURS)
    return good


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory() as where:
        sys.exit(0 if measure(sys.argv[1], Path(where)) else 1)
