"""`llamachat bench` as a command; the measuring is in bench/."""

import os
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llamachat.cli.loading import note
from llamachat.cli.options import AUTO, DtypeName, EngineName
from llamachat.errors import UsageError

ALONE = "without adapters"


class Shape(StrEnum):
    """Of bench/shapes.py."""

    m135 = "135m"
    b05 = "0.5b"
    b1 = "1b"
    b3 = "3b"
    b8 = "8b"
    a3b = "a3b"


class Scheme(StrEnum):
    """Of random weights; `head8`: embedding and head in 8 bits."""

    int4 = "int4"
    int8 = "int8"
    int4_head8 = "int4-head8"


def bench(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name or path.")] = None,
    shape: Annotated[Shape | None, typer.Option(help="Random weights of this shape instead; no download.")] = None,
    scheme: Annotated[Scheme, typer.Option(help="Of --shape: how its weights are coded.")] = Scheme.int4_head8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 256,
    decode: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens in the cache before decoding; 0: the prompt.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Medians are of so many.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Which engine runs it.")] = AUTO,
    dtype: Annotated[DtypeName, typer.Option(help="What torch computes in.")] = DtypeName.auto,
    kv_bits: Annotated[int | None, typer.Option(help="4, 8, 16 or 32.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", help="Adapter of --model (repeatable); runs without it beside it.", metavar="PATH[:SCALE]"
        ),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, max=4096, help="A random adapter of this rank; runs without it beside it.")
    ] = None,
    vs_gguf: Annotated[Path | None, typer.Option(help="Run llama.cpp on this file beside it.")] = None,
    vs_llamacpp: Annotated[
        bool,
        typer.Option("--vs-llamacpp", help="With --shape: run llama.cpp beside it, on a GGUF file written for that."),
    ] = False,
    vs_transformers: Annotated[Path | None, typer.Option(help="Run transformers on this GGUF file beside it.")] = None,
    busy: Annotated[
        bool, typer.Option("--busy", help="Decode also while another process keeps a core busy, and show what is kept.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a decoded token goes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line, no table.")] = False,
) -> None:
    """Measure speed and memory, beside peers in the same run; the last line is JSON."""
    from llamachat.bench import report
    from llamachat.bench.contest import Contender, measure
    from llamachat.bench.machine import bandwidth_of, processor
    from llamachat.bench.runners import Spec
    from llamachat.bench.shapes import gguf_file
    from llamachat.bench.work import Work
    from llamachat.models import catalog
    from llamachat.models.load import check_options

    threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    check_options(None, kv_bits, None, threads)
    if shape and model:
        raise UsageError("--model and --shape were both given", remedy="give one of them")
    if lora and shape:
        raise UsageError("--lora is of a --model", remedy="give --lora-rank with --shape")
    if vs_llamacpp and not shape:
        raise UsageError("--vs-llamacpp needs --shape", remedy="give --vs-gguf FILE")
    for line in catalog.resolve(model).notes if model else ():
        note(f"note: {line}")
    work = Work(prompt, decode, depth)
    ours = {
        "engine": engine.value,
        "dtype": None if dtype == "auto" else dtype.value,
        "kv_bits": kv_bits,
        "profile": profile,
    }
    random = {"shape": shape.value, "scheme": scheme.value} if shape else {}
    specs = [Spec("llamachat", threads, work.context, model, **ours, **random)]  # type: ignore[arg-type]
    if lora or lora_rank:
        specs = [replace(specs[0], lora=tuple(lora or ()), lora_rank=lora_rank), replace(specs[0], label=ALONE)]
    with ExitStack() as stack:
        if shape and vs_llamacpp:
            vs_gguf = stack.enter_context(gguf_file(shape.value, eight=scheme is Scheme.int8))
        wanted = {"llama.cpp": vs_gguf, "transformers": vs_transformers}
        specs += [Spec(kind, threads, work.context, str(file)) for kind, file in wanted.items() if file]
        contenders = [stack.enter_context(Contender(spec)) for spec in specs]
        outcome = measure(contenders, work, repeats, bandwidth_of(threads), busy)
    facts: dict[str, Any] = {"processor": processor(), "threads": threads}
    facts |= {"prompt": prompt, "decode": decode, "depth": depth, "repeats": repeats}
    facts |= {"lora": lora} if lora else {"lora_rank": lora_rank} if lora_rank else {}
    if not json:
        note(facts["processor"])
    report.speeds(outcome, {"model": model, "shape": shape, "scheme": shape and scheme} | facts, tables=not json)
