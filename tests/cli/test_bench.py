"""bench/: random models have the real shape and size, engines do the same work, figures follow from what was timed."""

import json
import mmap
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import bar_lab
import bar_speed
import bars
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llamachat.bench import busy, contest, drafts, machine, report, shapes
from llamachat.bench.contest import Contender, Laps, Outcome, measure
from llamachat.bench.runners import Facts, Ours, Spec, ours
from llamachat.bench.work import RUN, Course, Work
from llamachat.cli.bench import Shape
from llamachat.cli.main import app
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Experts, ModelSpec
from llamachat.engines.native.abi import native_library
from llamachat.engines.native.engine import NativeEngine, single_rows
from llamachat.engines.native.pack import aligned
from llamachat.errors import CatalogError, DoesNotFitError, LlamachatError, UsageError
from llamachat.formats.gguf import open_gguf
from llamachat.models.load import load

TINY = ModelSpec(
    vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
)  # fmt: skip
MIXTURE = replace(TINY, qk_norm="head", experts=Experts(5, 2, 64))
SCHEMES: tuple[shapes.Scheme, ...] = ("int4", "int4-head8", "int8")


# ---- shapes ----


@pytest.mark.parametrize("config", [TINY, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_weights_run_and_are_the_same_each_time(scheme: shapes.Scheme, config: ModelSpec) -> None:
    logits = []
    for _ in range(2):
        engine = NativeEngine(config, shapes.random_weights(config, scheme), slots=16, threads=1)
        logits.append(engine.forward([1, 2, 3], _plan(3), "last"))
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.isfinite(logits[0]).all() and logits[0].std() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_weights_are_whole_codes_of_all_values_times_the_scale(scheme: shapes.Scheme) -> None:
    weights = shapes.random_weights(TINY, scheme)
    head = 8 if scheme == "int4" else 128
    inner = 128 if scheme == "int8" else 8
    largest = {"model.embed_tokens": head, "lm_head": head, "model.layers.1.mlp.up_proj": inner}
    for name, most in largest.items():
        rows = single_rows(*weights.tensors[name + ".weight"], range(64), "portable") / np.float16(
            0.02 / {8: 8, 128: 127}[most]
        )
        codes = np.round(rows)
        np.testing.assert_allclose(rows, codes, atol=1e-3)
        assert (codes.min(), codes.max()) == (-most, most - 1)


@pytest.mark.parametrize("config", [TINY, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("eight", [False, True])
def test_the_gguf_file_is_of_that_shape_and_takes_the_bytes_that_ours_takes(
    tmp_path: Path, eight: bool, config: ModelSpec
) -> None:
    shapes.write_gguf(path := tmp_path / "x.gguf", config, "q8_0" if eight else "q4_0")
    checkpoint = open_gguf(path)
    assert {name: info.shape for name, info in checkpoint.index().items()} == config.tensor_shapes()
    assert (checkpoint.config.experts, checkpoint.config.qk_norm) == (config.experts, config.qk_norm)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds == ({"Q8_0", "F32"} if eight else {"Q4_0", "Q8_0", "F32"})
    weights = shapes.random_weights(config, "int8" if eight else "int4-head8")
    taken = {name: data.nbytes for name, (_, data) in weights.tensors.items()}
    padded = [name for name, info in checkpoint.index().items() if taken[name] != info.nbytes]
    assert all(name.endswith(("q_norm.weight", "k_norm.weight", "mlp.gate.weight")) for name in padded)
    assert all(np.isfinite(tensor.data).all() for tensor in gguf.GGUFReader(path).tensors)


def test_the_gguf_file_is_gone_after_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    with shapes.gguf_file("tiny", eight=True) as path:
        assert path.is_file()
    assert not list((tmp_path / "cache").iterdir())


def test_an_embedding_is_read_each_token_only_where_it_is_the_head_too() -> None:
    sizes = {"model.embed_tokens.weight": 5, "lm_head.weight": 7, "model.norm.weight": 1}
    assert shapes.read_per_token(TINY, sizes) == 8
    assert shapes.read_per_token(shapes.SHAPES["1b"], {"model.embed_tokens.weight": 5, "model.norm.weight": 1}) == 6


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("135m", 134.5e6), ("0.5b", 494e6), ("1b", 1.236e9), ("3b", 3.213e9), ("8b", 8.030e9), ("a3b", 10.59e9)],
)
def test_shapes_have_as_many_parameters_as_the_models_they_are_of(shape: str, parameters: float) -> None:
    count = sum(int(np.prod(each)) for each in shapes.config_of(shape).tensor_shapes().values())
    assert count == pytest.approx(parameters, rel=1e-3)


def test_the_command_offers_every_shape() -> None:
    assert [each.value for each in Shape] == list(shapes.SHAPES)


# ---- work ----


class Recorder:
    """A runner that remembers what it holds and what it was told."""

    vocabulary = 1000

    def __init__(self) -> None:
        self.held: list[int] = []
        self.batches: list[int] = []

    def rewind(self, length: int) -> None:
        assert length < len(self.held)
        del self.held[length:]

    def feed(self, ids: list[int], each: bool = False) -> None:
        self.held += ids
        self.batches.append(len(ids))


works = st.builds(
    Work, prompt=st.integers(0, 30), decode=st.integers(0, 9), depth=st.integers(0, 40), each=st.integers(1, 3)
)


@given(st.lists(works, min_size=1, max_size=6))
def test_every_engine_holds_the_same_text_whatever_it_did_before(tasks: list[Work]) -> None:
    recorder = Recorder()
    course = Course(recorder)
    for work in tasks:
        if work.prompt:
            course.prefill(work.prompt)
            assert recorder.batches[-1] == work.prompt
        course.reach(work.start)
        del recorder.batches[:]
        course.decode(work.decode, work.each)
        assert recorder.batches == [work.each] * work.decode
        fresh = Recorder()
        Course(fresh).reach(work.start + work.decode * work.each)
        assert recorder.held == fresh.held
        assert len(recorder.held) <= work.context


def test_what_lies_before_need_not_all_be_run() -> None:
    runner, spec = ours(Spec("llamachat", 1, 600, shape="135m", scheme="int4", kv_bits=8), 0.0)[0], RUN + 100
    course = Course(runner)
    course.reach(spec, skip=True)
    assert isinstance(runner, Ours) and len(runner.cache) == spec
    kv = runner.engine.save_kv(np.arange(spec))["kv"]
    np.testing.assert_array_equal(kv[:, :, :, RUN:], kv[:, :, :, :100])
    assert course.decode(1) > 0 and len(runner.cache) == spec + 1


# ---- contests ----


def test_ours_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with Contender(Spec("llamachat", 1, 24, shape="135m", scheme="int4", profile=True)) as contender:
        outcome = measure([contender], Work(prompt=8, decode=2), 2, lambda amount: 1e10)
    (laps,) = outcome.laps
    result = outcome.result(laps)
    assert laps.facts.weights == pytest.approx(134.5e6 * 0.5625, rel=0.01)
    assert laps.facts.kv == 30 * 2 * 3 * 64 * 2
    assert laps.peak >= laps.facts.resident >= laps.facts.weights
    assert result["bandwidth_share"] == pytest.approx(
        result["decode_tok_s"] * result["read_mb_per_token"] / 1e4, rel=1e-2
    )
    assert sum(laps.profile.values()) == pytest.approx(1000 * laps.decode_s[-1] / 2, abs=0.002)
    assert min(laps.profile.values()) > -0.1


def test_an_engine_that_cannot_be_made_is_one_error_with_its_reason_and_exit_code() -> None:
    with pytest.raises(LlamachatError, match="enormous") as error:
        Contender(Spec("llamachat", 1, 8, model="enormous"))
    assert error.value.exit_code == CatalogError.exit_code != UsageError.exit_code


def test_a_shape_that_memory_does_not_hold_is_not_begun() -> None:
    with pytest.raises(LlamachatError, match=r"cache of 1000000000 tokens .* is free; it was not measured;") as error:
        Contender(Spec("llamachat", 1, 10**9, shape="135m"))
    assert error.value.exit_code == DoesNotFitError.exit_code


def outcome_of(ours: list[float], peer: list[float], **facts: Any) -> Outcome:
    base = {"detail": "", "load_s": 0.5, "vocabulary": 10, "weights": 100, "read": 90, "kv": 1, "slots": 50}
    laps = [Laps(Facts(**{"name": name, **base, **facts})) for name in ("llamachat", "llama.cpp (1)")]
    for each, seconds in zip(laps, (ours, peer), strict=True):
        for taken in seconds:
            each.add({"prefill_s": taken / 10, "decode_s": taken, "peak": 7, "profile": {}})
    return Outcome(Work(prompt=20, decode=10), laps, [2000.0] * len(ours))


def test_ratios_are_medians_of_each_repeats_own_so_that_drift_does_not_show() -> None:
    outcome = outcome_of([1, 2, 4], [3, 6, 12.5])
    assert outcome.ratio(outcome.laps[1], "decode_s") == 3
    found = outcome.result(outcome.laps[0])
    assert (found["decode_tok_s"], found["prefill_tok_s"]) == (5, 100)
    assert found["first_token_s"] == pytest.approx(0.5 + 0.2)
    assert found["read_mb_per_token"] == pytest.approx((90 + 25) / 1e6)
    assert found["bandwidth_share"] == pytest.approx(5 * 115 / 2000, rel=1e-3)


def test_what_is_kept_of_the_speed_on_a_busy_machine_is_the_median_of_repeats() -> None:
    outcome = outcome_of([1, 1, 2], [1, 2, 4])
    outcome.laps[0].busy_s, outcome.laps[1].busy_s = [2, 4, 4], [8, 8, 40]
    assert [outcome.busy_share(laps) for laps in outcome.laps] == [0.5, 0.125]
    assert outcome.result(outcome.laps[0])["busy_share"] == 0.5


def test_another_process_is_busy_as_long_as_the_context() -> None:
    before = children()
    with busy.busy_core():
        (child,) = children() - before
    assert child not in children()


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()}


def test_a_report_ends_in_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    report.speeds(outcome_of([1, 1], [2, 2]), {"threads": 1})
    out, shown = capsys.readouterr()
    result = json.loads(out)
    assert result["results"]["llama.cpp (1)"]["decode_ratio"] == 2
    head, *rows = [line.split() for line in shown.splitlines()]
    assert head == ["llamachat", "llama.cpp", "(1)"]
    assert [row[-1] for row in rows if row[-2] == "×"] == ["2.00", "2.00"], "of those beside us alone"
    report.speeds(outcome_of([1, 1], [2, 2]), {"threads": 1}, tables=False)
    assert capsys.readouterr() == (out, "")


@pytest.mark.parametrize("way", range(machine.WAYS))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("blocks", [2, 3, 1001])
def test_the_read_that_is_timed_reads_every_word_once(blocks: int, threads: int, way: int) -> None:
    lib, data = native_library(), aligned(blocks * 1024)
    words = data.view(np.uint64)
    words[:] = np.random.default_rng(0).integers(0, 2**63, len(words), np.uint64)
    machine.read_bandwidth(1, 1)  # declares it
    assert lib.read_memory(data.ctypes.data, data.nbytes, threads, way) == int(words.sum())


def test_memory_can_be_measured_with_however_little_of_it() -> None:
    assert all(machine.read_bandwidth(2, amount, passes=1) > 0 for amount in (1, 100_000, 50_000_001))


def test_random_weights_lie_in_one_block_as_a_mapped_files_do() -> None:
    tensors = shapes.random_weights(TINY, "int4-head8").tensors.values()
    starts = [data.ctypes.data for _, data in tensors]
    whole = max(starts) - min(starts) + max(data.nbytes for _, data in tensors)
    assert all(start % 64 == 0 for start in starts)
    assert whole <= sum(data.nbytes + 4096 for _, data in tensors)


# ---- bars ----


def test_a_bar_is_met_on_its_own_side() -> None:
    assert bar_lab.Row("a", "", 1, 1, judged=3.0, bar=3.0).met
    assert not bar_lab.Row("a", "", 1, 1, judged=2.9, bar=3.0).met
    assert bar_lab.Row("a", "", 1, 1, judged=0.5, bar=0.6, better="-").met
    assert not bar_lab.Row("a", "", 1, 1, judged=0.7, bar=0.6, better="-").met


class Pretended:
    """A contender of known speed: ours takes a second for what takes the peer three."""

    def __init__(self, spec: Spec) -> None:
        ours = spec.kind == "llamachat"
        name = "llamachat" if ours else "llama.cpp (1)"
        self.seconds = 1.0 if ours else 3.0
        self.facts = Facts(name, "", 0.5, 1000, 10**9, 10**9, 1000, spec.context)

    def __enter__(self) -> "Pretended":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, work: Work) -> dict[str, Any]:
        return {"prefill_s": self.seconds, "decode_s": self.seconds, "peak": 10**9, "profile": {}}


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("smollm2", ["decode, SmolLM2", "prefill 512, SmolLM2"]),
        ("1b", ["decode, 1B int4, int8", "decode, 1B int4, int8", "decode, 1B int4, int4", "prefill 256, 1B"]),
        ("1b-deep", ["decode at 4096", "resident, 1B"]),
        ("q4_k_m", ["decode, 1B Q4_K_M", "prefill 128, 1B Q4_K_M", "decode, 1B Q4_K_M", "packed, 1B Q4_K_M"]),
        ("busy", ["busy machine, SmolLM2", "busy machine, 1B"]),
        ("kv4", ["decode at 8192"]),
        ("steps", ["a step of 2", "a step of 4"]),
        ("1b-int8", ["decode, 1B int8", "decode, 1B int8"]),
        ("8b", ["decode, 8B int4", "decode, 8B int4"]),
        ("a3b", ["decode, A3B int4", "decode, A3B int4"]),
    ],
)  # fmt: skip
def test_every_part_gives_its_rows_from_one_contest(
    part: str, names: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (bar_lab, bar_speed):
        monkeypatch.setattr(module, "Contender", Pretended)
        monkeypatch.setattr(module, "default_file", lambda: tmp_path / "default.gguf")
    shapes.write_gguf(small := tmp_path / "small.gguf", TINY, "q4_0")
    monkeypatch.setattr(bar_speed, "quantized", lambda *asked: small)
    monkeypatch.setattr(bar_speed, "gguf_file", lambda shape, eight: nullcontext(tmp_path / f"{shape}.gguf"))
    monkeypatch.setattr(bar_lab, "bandwidth_of", lambda threads: lambda amount: 1e11)
    monkeypatch.setattr(contest, "busy_core", nullcontext)
    rows = list(bars.PARTS[part](bar_lab.Lab(2, 3, pytest.fail)))
    assert len(rows) == len(names)
    for row, name in zip(rows, names, strict=True):
        assert row.name.startswith(name)
        expected = {"tok/s": 1.0 if part == "kv4" else 3.0, "MB": 1000.0, "ms": 1.0}.get(row.unit, row.ours)
        assert row.judged == pytest.approx(expected) or row.unit == "MB beside the file's"


def test_drafts_are_timed_with_and_without_on_the_same_answers(smollm2_gguf: Path) -> None:
    model = load(str(smollm2_gguf), ctx_size=128, threads=1)
    dialog = ["Say one two three, over and over.", "Again."]
    gain = drafts.gain(model, [dialog], SamplingParams(temperature=0), 12, 1)
    assert gain.ratio == pytest.approx(gain.with_tok_s / gain.without_tok_s)


def test_a_missing_peer_leaves_its_rows_out_and_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = contest.Contender

    def without_peer(spec: Spec) -> Contender:
        if spec.kind != "llamachat":
            raise UsageError("llama-cpp-python is not installed")
        return real(spec)

    monkeypatch.setattr(bar_lab, "Contender", without_peer)
    lab = bar_lab.Lab(1, 1, said.append)
    work = Work(decode=1, depth=2)
    specs = [lab.spec("llamachat", [work], shape="135m", scheme="int4"), lab.spec("llama.cpp", [work], "x.gguf")]
    (outcome,) = lab.contest(specs, [work])
    assert list(bar_lab.faster("decode", outcome, "decode_s", 3.0)) == []
    assert [row.unit for row in bar_lab.share_of_bandwidth("decode", outcome, 0.92)] == ["share of read bandwidth"]
    assert said == ["llama.cpp: llama-cpp-python is not installed"]


def test_rows_are_a_table_and_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "one": lambda lab: iter([bar_lab.Row("decode", "tok/s", 200, 50, 4, 3)]),
        "two": lambda lab: iter([bar_lab.Row("start", "s", 0.9, None, 0.9, 0.6, "-")]),
    }
    monkeypatch.setattr(bars, "PARTS", parts)
    assert bars.run(2, 1, ["two"]) and bars.run(2, 1, [])
    out, shown = capsys.readouterr()
    found = [[(row["name"], row["met"]) for row in json.loads(line)["bars"]] for line in out.splitlines()]
    assert found == [[("start", False)], [("decode", True), ("start", False)]]
    assert "≤ 0.6" in shown and "NO" in shown


def test_a_part_that_fails_is_told_of_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(lab: bar_lab.Lab) -> Any:
        raise UsageError("no gguf here")

    parts = {"one": failing, "two": lambda lab: iter([bar_lab.Row("start", "s", 0.5, None, 0.5, 0.6, "-")])}
    monkeypatch.setattr(bars, "PARTS", parts)
    assert not bars.run(2, 1, [])
    out, shown = capsys.readouterr()
    found = json.loads(out)
    assert (found["failed"], [row["name"] for row in found["bars"]]) == (["one"], ["start"])
    assert "no gguf here" in shown and found["processor"] in shown


def test_a_process_is_timed_and_its_memory_is_its_own() -> None:
    ballast = np.ones(1 << 26)  # half a gigabyte, which is not the other's
    seconds, most = bar_lab.process([sys.executable, "-c", "x = bytearray(50_000_000)"])
    assert seconds > 0
    assert 50_000_000 < most < ballast.nbytes / 2
    assert bar_lab.process([sys.executable, "-c", "raise SystemExit(3)"])[0] == 0


# ---- the machine, the command ----


def test_resident_memory_follows_what_is_held() -> None:
    before, _ = machine.resident()
    held = mmap.mmap(-1, 160_000_000)  # an array may come out of what the process holds already
    np.frombuffer(held, np.uint8)[:] = 1
    after, most = machine.resident()
    assert len(held) * 0.9 < after - before < len(held) * 1.5
    assert most >= after


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "1b", "-m", "x"], "--model and --shape were both given"),
        (["--vs-llamacpp"], "--vs-llamacpp needs --shape"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def _plan(count: int) -> Any:
    from llamachat.core.cache import Cache

    return Cache(16).plan(count)
