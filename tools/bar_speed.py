"""Bars of speed: our engine and the peer's on the same work, in turn."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from bar_lab import Lab, Row, default_file, faster, kept_when_busy, share_of_bandwidth
from quantized_files import BITS, quantized

from llamachat.bench.contest import Contender, Outcome
from llamachat.bench.runners import Facts
from llamachat.bench.shapes import gguf_file
from llamachat.bench.work import Work
from llamachat.engines.native.engine import KV_TYPES
from llamachat.formats.gguf import open_gguf
from llamachat.models import packed_weights

SPARE = 150_000_000  # bytes that a process may hold beside 1.1 times its weights, keys and values
INT4 = "1B int4, int8 head"


def smollm2(lab: Lab) -> Iterator[Row]:
    works = [Work(prompt=512, decode=64, depth=128)]
    file = str(default_file())
    (outcome,) = lab.contest([lab.spec("llamachat", works), lab.spec("llama.cpp", works, file)], works)
    yield from faster("decode, SmolLM2 Q4_1", outcome, "decode_s", 3.0)
    yield from faster("prefill 512, SmolLM2 Q4_1", outcome, "prefill_s", 2.5)


def one_b(lab: Lab) -> Iterator[Row]:
    works = [Work(prompt=256, decode=32, depth=128)]
    ours = [lab.spec("llamachat", works, shape="1b", scheme=scheme) for scheme in ("int4-head8", "int4")]
    with gguf_file("1b", eight=False) as file:
        (outcome,) = lab.contest([*ours, lab.spec("llama.cpp", works, str(file))], works)
    yield from faster(f"decode, {INT4}", outcome, "decode_s", 1.2)
    yield from share_of_bandwidth(f"decode, {INT4}", outcome, 0.92)
    yield from faster("decode, 1B int4, int4 head", outcome, "decode_s", 1.4, at=1)
    yield from faster("prefill 256, 1B int4", outcome, "prefill_s", 2.5)


def one_b_deep(lab: Lab) -> Iterator[Row]:
    works = [Work(decode=32, depth=4096)]
    with gguf_file("1b", eight=False) as file:
        ours = lab.spec("llamachat", works, shape="1b", scheme="int4-head8")
        (outcome,) = lab.contest([ours, lab.spec("llama.cpp", works, str(file))], works)
    yield from faster("decode at 4096, 1B int4, f16 KV", outcome, "decode_s", 1.2)
    yield _memory("resident, 1B int4 (context 4128)", outcome)


def random_weights(shape: str, scheme: str, work: Work, bar: float, lab: Lab) -> Iterator[Row]:
    with gguf_file(shape, eight=scheme == "int8") as file:
        specs = [lab.spec("llamachat", [work], shape=shape, scheme=scheme), lab.spec("llama.cpp", [work], str(file))]
        (outcome,) = lab.contest(specs, [work])
    yield from faster(f"decode, {shape.upper()} {scheme}", outcome, "decode_s", bar)
    yield from share_of_bandwidth(f"decode, {shape.upper()} {scheme}", outcome, 0.92)


def type_of_file(shape: str, ftype: str, lab: Lab) -> Iterator[Row]:
    """A file of llama.cpp's own quantizer. What we keep of it on disk is deleted again."""
    works, name = [Work(prompt=128, decode=24)], f"{shape.upper()} {ftype}"
    file = quantized(shape, ftype, default_file(), lab.threads, lab.say)
    try:
        specs = [lab.spec(kind, works, str(file)) for kind in ("llamachat", "llama.cpp")]
        (outcome,) = lab.contest(specs, works)
    finally:
        packed_weights.place(open_gguf(file)).unlink(missing_ok=True)
    yield from faster(f"decode, {name}", outcome, "decode_s", 1.2)
    yield from faster(f"prefill 128, {name}", outcome, "prefill_s", 4.0 if "K" in ftype else 2.5)
    yield from share_of_bandwidth(f"decode, {name}", outcome, 0.92)
    weights, stored = outcome.laps[0].facts.weights / 1e6, sum(i.nbytes for i in open_gguf(file).index().values()) / 1e6
    yield Row(f"packed, {name}", "MB beside the file's", weights, stored, weights / stored, 1.03, "-")


def steps(lab: Lab) -> Iterator[Row]:
    """Steps of a few tokens, with the logits of each, against steps of one: what drafts and branches cost."""
    works = [Work(decode=16, depth=128, each=each) for each in (1, 2, 4)]
    spec = lab.spec("llamachat", works, shape="1b", scheme="int4-head8")
    with Contender(spec) as contender:
        rounds = [[contender.run(work)["decode_s"] for work in works] for _ in range(lab.repeats + 1)][1:]
    for at, work in enumerate(works[1:], 1):
        times = statistics.median(taken[at] / taken[0] for taken in rounds)
        one, some = (1000 * statistics.median(taken[i] for taken in rounds) / work.decode for i in (0, at))
        yield Row(f"a step of {work.each} tokens beside one of 1, {INT4}", "ms", some, one, times, 1.25, "-")


def busy(lab: Lab) -> Iterator[Row]:
    """While another process keeps a core busy."""
    works, file = [Work(decode=256, depth=128)], str(default_file())
    (outcome,) = lab.contest([lab.spec("llamachat", works), lab.spec("llama.cpp", works, file)], works, busy=True)
    yield from kept_when_busy("busy machine, SmolLM2 Q4_1", outcome, 0.45)
    works = [Work(decode=24, depth=64)]
    with gguf_file("1b", eight=False) as path:
        ours = lab.spec("llamachat", works, shape="1b", scheme="int4-head8")
        (outcome,) = lab.contest([ours, lab.spec("llama.cpp", works, str(path))], works, busy=True)
    yield from kept_when_busy(f"busy machine, {INT4}", outcome, 0.45)


def kv4(lab: Lab) -> Iterator[Row]:
    """Keys and values in 4 bits against 16, behind 8,192 tokens that are not all run."""
    if 4 not in KV_TYPES:
        lab.say("kv4: this engine keeps no keys in 4 bits")
        return
    works = [Work(decode=16, depth=8192, skip=True)]
    specs = [lab.spec("llamachat", works, shape="1b", scheme="int4-head8", kv_bits=bits) for bits in (4, 16)]
    (outcome,) = lab.contest(specs, works)
    four, sixteen = (outcome.result(laps)["decode_tok_s"] for laps in outcome.laps)
    times = outcome.ratio(outcome.laps[1], "decode_s")
    yield Row("decode at 8192, KV in 4 bits beside 16, 1B", "tok/s", four, sixteen, times, 1.3)


def _memory(name: str, outcome: Outcome) -> Row:
    laps = outcome.laps[0]
    peers = [each.peak / 1e6 for each in outcome.laps[1:]]
    return held(name, laps.facts, laps.peak, peers[0] if peers else None)


def held(name: str, facts: Facts, most: int, peer: float | None) -> Row:
    """The most bytes that a process held, against its weights, keys and values."""
    limit = 1.1 * (facts.weights + facts.kv * facts.slots) + SPARE
    return Row(name, "MB", most / 1e6, peer, most / 1e6, limit / 1e6, "-")


PARTS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "smollm2": smollm2,
    "1b": one_b,
    "1b-deep": one_b_deep,
    "1b-int8": partial(random_weights, "1b", "int8", Work(decode=24, depth=64), 1.15),
    **{ftype.lower(): partial(type_of_file, "1b", ftype) for ftype in BITS},
    "steps": steps,
    "busy": busy,
    "kv4": kv4,
    "8b": partial(random_weights, "8b", "int4-head8", Work(decode=8, depth=8), 1.1),
    "a3b": partial(random_weights, "a3b", "int4-head8", Work(decode=24, depth=64), 1.2),
}
LARGE = {"8b-q4_k_m": partial(type_of_file, "8b", "Q4_K_M")}  # files that are made only when asked for
