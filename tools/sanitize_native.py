"""The native engine under the address and undefined-behaviour sanitizers: python tools/sanitize_native.py [MODELS [SEED]].

Compiles the C code with both, then runs so many random models through every kernel set of this processor: odd sizes and the
largest ones, every way of coding weights and keys, adapters, chunks, batches, windows that roll, snapshots; with finite numbers,
with ones that overflow, and with steps and adapters that are wrong and must be refused. Exit status 77: the compiler has no
sanitizers.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TESTS = (ROOT, ROOT / "tests", ROOT / "tests" / "engines")  # whose modules the sanitized process imports
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1"]
KINDS = (
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8+min",
    "int6",
    "q4_0",
    "q4_1",
    "iq4_nl",
    "zero point",
    "nf4",
    "fp4",
)
LARGE = (
    {"head_dim": 1024},
    {"head_dim": 1022},
    {"intermediate_size": 2**20 + 1, "hidden_size": 3, "num_hidden_layers": 1},
    {"num_attention_heads": 512, "num_key_value_heads": 1, "head_dim": 4},
)


def random_config(rng: np.random.Generator) -> Any:
    """Mostly small and odd."""
    from llamachat.core.spec import ModelSpec, RopeScaling

    def size(most: int) -> int:
        return int(rng.integers(1, most)) * int(rng.choice([1, 2, 32]))

    kv_heads = int(rng.integers(1, 4))
    config = ModelSpec(
        vocab_size=size(40), hidden_size=size(9), intermediate_size=size(9), num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=kv_heads * int(rng.integers(1, 12)), num_key_value_heads=kv_heads,
        head_dim=2 * int(rng.integers(1, 40)), max_position_embeddings=512, qkv_bias=bool(rng.integers(2)),
        attention_out_bias=bool(rng.integers(2)), mlp_bias=bool(rng.integers(2)), tie_word_embeddings=bool(rng.integers(2)),
        sliding_window=int(rng.integers(1, 60)) if rng.random() < 0.3 else None,
        rope_scaling=RopeScaling("yarn", 4.0, original_max_position_embeddings=32) if rng.random() < 0.3 else None,
    )  # fmt: skip
    config = replace(config, **LARGE[rng.integers(len(LARGE))]) if rng.random() < 0.1 else config
    return replace(config, **beyond_llama(config, rng), **random_head(rng))


def random_head(rng: np.random.Generator) -> dict[str, Any]:
    """Mostly the next token's."""
    kind = str(rng.choice(["sequence_labels", "token_labels", "none"])) if rng.random() < 0.3 else "next_token"
    return {"head": kind, "num_labels": int(rng.integers(1, 40)) if kind.endswith("labels") else 0}


def beyond_llama(config: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Some of what families have beside a Llama's."""
    from llamachat.core.spec import Experts, Rope

    layers, count = config.num_hidden_layers, int(rng.integers(1, 20))
    dims = 2 * rng.integers(1, config.head_dim // 2 + 1, 2)
    kinds = rng.choice(["full_attention", "sliding_attention"], layers)
    experts = Experts(
        count, int(rng.integers(1, count + 1)), int(rng.integers(1, 90)), *(bool(i) for i in rng.integers(0, 2, 3))
    )
    choices: dict[str, Any] = {
        "rotary_dim": int(dims[0]), "unrotated_layers": (int(rng.integers(layers)),), "norm_offset": 1.0,
        "norms": str(rng.choice(["after", "both"])), "qk_norm": str(rng.choice(["head", "projection"])),
        "attention_scale": 0.3, "attention_softcap": 5.0, "attention_sinks": True, "logit_softcap": 3.0,
        "hidden_act": str(rng.choice(["gelu", "gelu_pytorch_tanh", "clamped_swiglu"])), "experts": experts,
        "embedding_multiplier": 5.0, "residual_multiplier": 0.5, "logit_multiplier": 0.2,
    }  # fmt: skip
    if config.sliding_window:
        choices |= {"sliding_rope": Rope(500.0, None, int(dims[1])), "layer_types": tuple(map(str, kinds))}
    fields = {name: value for name, value in choices.items() if rng.random() < 0.3}
    return fields | (
        {"dense_layers": (int(rng.integers(layers)),)} if "experts" in fields and rng.random() < 0.3 else {}
    )


def random_tensors(config: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Each matrix coded in a way of its own; weights of a size that keeps numbers finite, or, in a few models, does not."""
    from test_native import random_matrix

    from llamachat.core.tensors import CODEBOOKS, FloatTensor

    kinds, spread = KINDS, float(10.0 ** rng.choice([-3, -1, 0, 2]))
    if rng.random() < 0.1:
        kinds, spread = ("float32",), 1e25
    tensors: dict[str, Any] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:  # of a vector
            tensors[name] = FloatTensor(rng.uniform(-1.5, 1.5, shape).astype(np.float32))
            continue
        kind = str(rng.choice(kinds if shape[1] % 32 == 0 else kinds[:3]))
        groups = [g for g in (16, 32, 64, int(shape[1])) if shape[1] % g == 0 and (g >= 32 or kind not in CODEBOOKS)]
        tensors[name] = random_matrix(rng, *shape, kind, int(rng.choice(groups)), spread)
    return tensors


def given(engine: Any, rng: np.random.Generator) -> str:
    """What a step is to give."""
    return "logits" if engine.config.outputs and rng.integers(3) else "hidden"


def random_adapter(config: Any, rng: np.random.Generator, misfit: bool = False) -> Any:
    """On some of the matrices, of numbers that 32 or 16 bits hold; `misfit`: of too few rows or columns, perhaps."""
    from llamachat.core.spec import HEADS
    from llamachat.formats.adapter import Adapter, LowRank

    shapes = {name.removesuffix(".weight"): shape for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    if config.outputs:
        shapes[HEADS[config.head][0]] = (config.outputs, config.hidden_size)
    matrices = {}
    for name, shape in shapes.items():
        rank = min(int(rng.choice([1, 3, 4, 16, 37, 300])), 1 + 2**20 // max(shape))
        rows, columns = (int(rng.integers(1, n + 1)) if misfit else n for n in shape)
        dtype = rng.choice([np.float32, np.float16])
        a, b = (rng.standard_normal(size).astype(dtype) for size in ((rank, columns), (rows, rank)))
        if rng.random() < 0.6:
            matrices[name] = LowRank(a, b, float(rng.choice([0.5, -2.0, 1e30])))
    return Adapter(Path("random"), (), matrices, {})


def adapt(engine: Any, rng: np.random.Generator) -> None:
    """Several adapters together, one, none; those that do not fit are refused, or harmless. Some are in force in the end."""
    from llamachat.core.cache import CacheStep

    held = [random_adapter(engine.config, rng) for _ in range(int(rng.integers(1, 4)))]
    misfit = random_adapter(engine.config, rng, misfit=True)
    for adapters in ([misfit], held[:1], [], held, [*held, misfit]):
        with suppress(ValueError):
            engine.adapt([(each, float(rng.normal())) for each in adapters])
        first = np.arange(3, dtype=np.int64)
        engine.forward([0] * 3, CacheStep(first, first, (range(3),)), "last", given(engine, rng))


def use(engine: Any, rng: np.random.Generator) -> None:
    """A prompt in chunks, an answer, a batch, evictions, snapshots."""
    from llamachat.core.cache import Cache

    def tokens(count: int) -> list[int]:
        return [int(i) for i in rng.integers(0, engine.config.vocab_size, count)]

    texts = [Cache(40), Cache(37, first=41), Cache(160, first=79)]
    texts[2].pin(int(rng.integers(0, 5)))
    for text, count in ((texts[2], 130), (texts[2], 1), (texts[2], 9), (texts[0], int(rng.integers(1, 20)))):
        ids = tokens(count)
        engine.forward(ids, text.plan(count), "all" if rng.integers(2) else "last", given(engine, rng))
        text.commit(ids)
    for counts in ((3, 1, 10), (1, 2, 0), (1, 1, 1)):
        pieces = [(text, tokens(count)) for text, count in zip(texts, counts, strict=True) if count]
        if any(text.plan(1).pinned for text, _ in pieces):
            continue
        plans = [text.plan(len(ids)) for text, ids in pieces]
        engine.forward_many([ids for _, ids in pieces], plans, given(engine, rng))
        for text, ids in pieces:
            text.commit(ids)
    for _ in range(3):
        texts[2].evict(int(rng.integers(1, 40)))
        for count in (1, int(rng.integers(2, 6))):
            ids = tokens(count)
            engine.forward(ids, texts[2].plan(count), "last", given(engine, rng))
            texts[2].commit(ids)
    slots = texts[2].slots(np.arange(len(texts[2].log)))
    engine.load_kv(slots, np.arange(len(slots)), engine.save_kv(slots))


def misuse(engine: Any, rng: np.random.Generator) -> None:
    """Steps of random numbers: they are run, or refused; nothing else."""
    from llamachat.core.cache import CacheStep

    edge = np.array([-(2**40), -1, 0, 1, engine.slots - 1, engine.slots, 2**31 - 1, 2**31, 2**40])

    def numbers(count: int) -> Any:
        return np.where(rng.random(count) < 0.7, rng.integers(0, engine.slots, count), rng.choice(edge, count))

    for _ in range(30):
        count = int(rng.integers(1, 4))
        visible = tuple(range(*numbers(2).tolist()) for _ in range(rng.integers(0, 3)))
        pinned = (range(*numbers(2).tolist()), int(numbers(1)[0])) if rng.random() < 0.2 else None
        ids = [int(i) for i in rng.integers(-1, engine.config.vocab_size + 1, count)]
        try:
            outputs = str(rng.choice(["logits", "hidden"]))  # also of a model without a head
            engine.forward(ids, CacheStep(numbers(count), numbers(count), visible, pinned), "last", outputs)
        except (ValueError, OverflowError):
            continue


def fuzz(models: int, seed: int = 0) -> int:
    """Returns how many of the runs had finite logits."""
    from llamachat.core.cache import CacheStep
    from llamachat.engines.native.engine import NativeEngine, usable_kernels

    finite, first = 0, np.arange(5, dtype=np.int64)
    for number in range(models):
        rng = np.random.default_rng([seed, number])
        config = random_config(rng)
        tensors = random_tensors(config, rng)
        for kernels in usable_kernels():
            sys.stderr.write(f"model {number} ({kernels}): {config}\n")
            kv = str(rng.choice(["float32", "float16", "bfloat16", "int8"]))
            engine = NativeEngine.build(
                config, tensors.items(), slots=239, kv=kv, kernels=kernels, threads=int(rng.integers(1, 4))
            )
            with np.errstate(all="ignore"):
                if rng.random() < 0.7:
                    adapt(engine, rng)
                use(engine, rng)
            logits = engine.forward([0] * 5, CacheStep(first, first, (range(5),)), "all", given(engine, rng))
            finite += bool(np.isfinite(logits).all())
            misuse(engine, rng)
    return finite


def fuzz_with(library: Path, models: int, seed: int) -> None:
    """Runs in the sanitized process."""
    from llamachat.engines.native import abi
    from llamachat.engines.native.engine import usable_kernels

    abi.library = lambda: library
    sets, finite = usable_kernels(), fuzz(models, seed)
    print(f"{models} models x {len(sets)} kernel sets ({', '.join(sets)}): clean; {finite} runs with finite logits")


def main() -> int:
    from llamachat.engines.native import build
    from llamachat.engines.native.engine import usable_kernels

    models, seed = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 200), (2, 0)))
    runtime = subprocess.run(
        [build.compiler() or "false", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        print("the C compiler has no address sanitizer")
        return 77
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / build.LIBRARY
        build.compile_library(library, FLAGS, usable_kernels())
        sys.stderr.write(f"compiled in {time.monotonic() - start:.0f} s\n")
        options = {
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
        }
        run = f"from sanitize_native import Path, fuzz_with; fuzz_with(Path({str(library)!r}), {models}, {seed})"
        done = subprocess.run(
            [sys.executable, "-c", run],
            cwd=Path(__file__).parent,
            env={
                **os.environ,
                **options,
                "PYTHONPATH": os.pathsep.join([*map(str, TESTS), os.environ.get("PYTHONPATH", "")]),
            },
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.stderr.write(done.stderr[-6000:])
    else:
        print(f"in {time.monotonic() - start:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
