"""`llamachat bench` as a command; the measuring is in bench.py."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llamachat.options import EngineName

if TYPE_CHECKING:
    from llamachat.config import Dtype


def bench(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name or path.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 256,
    decode: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens in the cache before decoding; 0: the prompt.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Medians are of so many.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Which engine runs it.")] = EngineName.auto,
    dtype: Annotated[str | None, typer.Option(help="Of the torch engine: float32, bfloat16 or float16.")] = None,
    kv_bits: Annotated[int | None, typer.Option(help="8, 16 or 32.")] = None,
    vs_gguf: Annotated[Path | None, typer.Option(help="Run llama.cpp on this file beside it.")] = None,
    vs_transformers: Annotated[Path | None, typer.Option(help="Run transformers on this GGUF file beside it.")] = None,
) -> None:
    """Measure speed, beside peers in the same run; the last line is JSON."""
    from llamachat import bench as b
    from llamachat.load import load

    threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    context = b.Work(prompt, decode, depth, 0).context
    chosen = cast("Dtype | None", dtype)
    ours = load(model, ctx_size=context, kv_bits=kv_bits, threads=threads, engine=engine.value, dtype=chosen)
    work = b.Work(prompt, decode, depth, ours.engine.config.vocab_size)
    wanted = {"llama.cpp": vs_gguf, "transformers": vs_transformers}
    peers = [b.Peer(kind, file, threads, work) for kind, file in wanted.items() if file]
    rows = b.measure(b.Ours(ours.engine), peers, work, repeats)
    facts = {"model": ours.name, "engine": ours.engine.describe(), "load_s": round(ours.load_s, 3), "threads": threads}
    facts |= {"prompt": prompt, "decode": decode, "depth": depth, "repeats": repeats}
    b.report(rows, {**facts, "read_gb_s": round(b.read_bandwidth(threads) / 1e9, 1), "versions": b.versions()})
