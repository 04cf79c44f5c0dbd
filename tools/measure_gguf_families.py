"""llama.cpp beside transformers and us, on the same tiny file of every family: python tools/measure_gguf_families.py PEER_PYTHON.

PEER_PYTHON is the interpreter of an environment with llama-cpp-python, which need not be ours. For each family a random model
is written in F32, as llama.cpp's converter would; printed is the largest difference of any logit, of llama.cpp's from
transformers' and of ours. Keys and values are kept in float32; what is left is rounding (llama.cpp looks GELU up in a table of
16 bits), which is more where scores are not scaled down, as in T5. That reads a source first, beyond its largest distance; what
the original one scales its logits by, llama.cpp leaves out, and it is put in here. Exit status 1 where one is beyond that.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
LIMIT, LIMIT_STACKS, OURS = 0.01, 0.2, 1e-3
ASK = """
import json, sys
import numpy as np
from llama_cpp import Llama
job = json.load(sys.stdin)
model = Llama(job["file"], n_ctx=64, n_batch=64, type_k=0, type_v=0, logits_all=True, verbose=False)
model.eval(job["ids"])
np.save(job["out"], np.array(model.scores[: len(job["ids"])]))
"""

ASK_STACKS = """
import ctypes, json, sys
import numpy as np
import llama_cpp as lib
job = json.load(sys.stdin)
lib.llama_backend_init()
model = lib.llama_model_load_from_file(job["file"].encode(), lib.llama_model_default_params())
settings = lib.llama_context_default_params()
settings.n_ctx = settings.n_batch = settings.n_ubatch = 1024
settings.type_k = settings.type_v = 0
context = lib.llama_init_from_model(model, settings)
def batch(ids, every):
    made = lib.llama_batch_init(len(ids), 0, 1)
    made.n_tokens = len(ids)
    for at, token in enumerate(ids):
        made.token[at], made.pos[at], made.n_seq_id[at], made.seq_id[at][0], made.logits[at] = token, at, 1, 0, every
    return made
assert lib.llama_encode(context, batch(job["source"], 0)) == 0
assert lib.llama_decode(context, batch(job["ids"], 1)) == 0
size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
rows = [lib.llama_get_logits_ith(context, at) for at in range(len(job["ids"]))]
np.save(job["out"], np.array([np.ctypeslib.as_array(row, (size,)) for row in rows]))
"""


def theirs(python: str, file: Path, ids: list[int], source: list[int] | None = None) -> NDArray[np.float32]:
    """llama.cpp's logits [T, vocabulary]."""
    out = file.with_suffix(".npy")
    job = json.dumps({"file": str(file), "ids": ids, "out": str(out), "source": source})
    subprocess.run(
        [python, "-c", ASK_STACKS if source else ASK], input=job, text=True, check=True, stderr=subprocess.DEVNULL
    )
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
        good &= told(case, gguf[0], peer, own, LIMIT)
    return good


def measure_stacks(python: str, folder: Path) -> bool:
    """The same of T5."""
    from engines.test_encoder_decoder import ANSWER, LONG, opened
    from t5_models import save_t5_gguf, t5_logits, t5_model

    from llamachat.core.cache import Cache
    from llamachat.core.generate import advance

    good = True
    for case in ("t5", "v1.1"):
        model = t5_model(case, num_decoder_layers=2)  # llama.cpp loads no decoder that is deeper than its encoder
        file, right = save_t5_gguf(model, folder / f"{case}.gguf"), t5_logits(model, LONG, ANSWER)
        engine = opened(file)
        engine.encode(0, LONG)
        peers = theirs(python, file, ANSWER, LONG) * engine.config.logit_multiplier
        peer, own = (np.abs(each - right).max() for each in (peers, advance(engine, Cache(256), ANSWER, "all")))
        good &= told(case, "t5", peer, own, LIMIT_STACKS)
    return good


def told(case: str, arch: str, peer: float, own: float, limit: float) -> bool:
    print(f"{case:12} {arch:10} llama.cpp {peer:.1e}  llamachat {own:.1e}")
    return bool(peer < limit and own < OURS)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory() as where:
        good = [run(sys.argv[1], Path(where)) for run in (measure, measure_stacks)]
        sys.exit(0 if all(good) else 1)
