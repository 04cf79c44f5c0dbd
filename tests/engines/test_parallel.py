"""One model over 2 and 4 real processes: what one process computes, for each family; and what is saved, adapted and refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_hf, tiny_model
from family_files import CASES, IDS, model_of
from headed import headed
from numpy.typing import NDArray
from peft_folders import trained
from rank_follower import SIZES, checkpoint, links
from t5_models import save_t5

from llamachat.core.cache import Cache, CacheStep
from llamachat.core.engine import Engine
from llamachat.core.generate import advance
from llamachat.core.spec import KvBits
from llamachat.engines.encoding import Encoding, encoding
from llamachat.engines.saved import Saved
from llamachat.engines.select import ENGINES, Wish, packed
from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine
from llamachat.engines.torch.engine import TorchEngine
from llamachat.engines.torch.links import ProcessLinks, stay_on_this_machine
from llamachat.engines.torch.ranks import ParallelEngine, load
from llamachat.errors import DoesNotFitError, FormatError, LostError, ModelError, UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import open_peft

Floats = NDArray[np.float32]
SLOTS = 64
SETTINGS = {"slots": SLOTS, "dtype": "float32", "device": "cpu", "threads": 1}
every_size = pytest.mark.parametrize("size", SIZES)


class Nobody:
    """The others, whose processes this module's fixture ends."""

    ended: tuple[int, int] | None = None

    def failure(self) -> str:
        return "one has gone"

    def first_ended(self) -> tuple[int, int] | None:
        return self.ended

    def end(self) -> None:
        pass


class Gone(Nobody):
    ended = 1, -9


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, ProcessLinks]]:
    """Rank 0's links to the one set of processes of each size; process 1 is in both."""
    folder = str(tmp_path_factory.mktemp("stores"))
    script = str(Path(__file__).parents[1] / "rank_follower.py")
    with subprocess.Popen([sys.executable, "-P", script, folder], start_new_session=True) as others:
        stay_on_this_machine()
        try:
            yield {size: links(folder, 0, size) for size in SIZES}
        finally:
            os.killpg(others.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@cache
def saved(case: str, folders: Path) -> str:
    model_of(case).save_pretrained(folders / case)
    return str(folders / case)


@contextmanager
def parallel(
    met: dict[int, ProcessLinks], size: int, path: str, scheme: str | None = None, **settings: object
) -> Iterator[ParallelEngine]:
    found = checkpoint(path, scheme)
    engine = load(found.config, found.tensors, [path, scheme], SETTINGS | settings, met[size], Nobody())
    try:
        yield engine
    finally:
        engine.close()


@cache
def alone(path: str, scheme: str | None = None, kv_bits: int | None = None) -> TorchEngine:
    found = checkpoint(path, scheme)
    kind = EncoderDecoderEngine if isinstance(found.config, EncoderDecoderSpec) else TorchEngine
    return kind.build(found.config, found.tensors(), **SETTINGS, kv_bits=kv_bits)  # type: ignore[arg-type]


def same(ours: Floats, right: Floats, tolerance: float = 1e-5) -> None:
    """To so much of the largest."""
    assert ours.shape == right.shape
    np.testing.assert_allclose(ours, right, rtol=0, atol=tolerance * np.abs(right).max())


def in_parts(engine: Engine, ids: list[int], *sizes: int) -> Floats:
    cache = Cache(engine.slots)
    ends = np.cumsum([0, *sizes, len(ids) - sum(sizes)]).tolist()
    return np.concatenate([advance(engine, cache, ids[first:end], "all") for first, end in pairwise(ends)])


@every_size
@pytest.mark.parametrize(
    ("case", "scheme"),
    [*((case, None) for case in CASES), *((case, "int4") for case in ("mistral", "gemma2", "mixtral"))],
)
def test_logits_are_one_processs(
    case: str, scheme: str | None, size: int, met: dict[int, ProcessLinks], folders: Path
) -> None:
    path = saved(case, folders)
    with parallel(met, size, path, scheme) as engine:
        ours, right = in_parts(engine, IDS, 9, 1), in_parts(alone(path, scheme), IDS, 9, 1)
    same(ours, right)


@every_size
def test_a_process_holds_its_share_of_the_weights(size: int, met: dict[int, ProcessLinks], folders: Path) -> None:
    path = str(save_hf(tiny_model(), folders / "llama"))
    with parallel(met, size, path) as engine:
        assert engine.weight_bytes <= 1.1 / size * alone(path).weight_bytes
        assert engine.kv_bytes == alone(path).kv_bytes / size
    found = checkpoint(path, None)
    wish = Wish(found, found.tensors, SLOTS, "cpu", "float32", None, 1, print, packed)
    one, several = (ENGINES["torch"].plan(replace(wish, processes=number)) for number in (1, size))
    assert (one.weights, several.kv, several.workspace) == (alone(path).weight_bytes, one.kv, size * one.workspace)
    assert one.weights <= several.weights <= 1.1 * one.weights, "planned is what all of them take"


@pytest.mark.parametrize("case", ["t5", "v1.1"])
@every_size
def test_a_source_is_read_by_all(case: str, size: int, met: dict[int, ProcessLinks], folders: Path) -> None:
    path = str(save_t5(folders / case, case))
    source, answer = list(range(3, 30)), [0, *range(40, 50)]
    with parallel(met, size, path) as engine:
        reads, right = encoding(engine), encoding(alone(path))
        assert reads and right
        for each in (reads, right):
            each.encode(0, source)
        same(in_parts(engine, answer, 4), in_parts(alone(path), answer, 4))
        assert reads.source_room() <= right.source_room()
        with pytest.raises(UsageError, match="gives no hidden states"):
            engine.forward([1], Cache(SLOTS).plan(1), "last", "hidden_states")
        with pytest.raises(DoesNotFitError, match="the source has"):
            reads.encode(0, range(10**15))  # type: ignore[arg-type]
        reads.release(0)
        assert np.isfinite(in_parts_of(reads, source, answer)).all(), "the refusals have upset nothing"


def in_parts_of(engine: Encoding, source: list[int], answer: list[int]) -> Floats:
    engine.encode(0, source)
    return in_parts(engine, answer, 1)


@every_size
def test_texts_together_and_other_outputs(size: int, met: dict[int, ProcessLinks], folders: Path) -> None:
    path = saved("qwen3", folders)
    steps = [CacheStep(np.arange(at, at + 3), np.arange(3), (range(at, at + 3),)) for at in (0, 10)]
    with parallel(met, size, path) as engine:
        for outputs in ("logits", "hidden"):
            ours, right = (each.forward_many([[5, 6, 7], [8, 9, 3]], steps, outputs) for each in (engine, alone(path)))
            same(ours, right)
        for outputs in ("hidden_states", "attentions"):
            plan = Cache(SLOTS).plan(len(IDS))
            ours, right = (each.forward(IDS, plan, "all", outputs) for each in (engine, alone(path)))
            same(ours, right)


@every_size
@pytest.mark.parametrize("head", ["sequence_labels", "span"])
def test_a_head_that_classifies_is_whole_everywhere(
    head: str, size: int, met: dict[int, ProcessLinks], folders: Path
) -> None:
    path = str(folders / head)
    headed("llama", head).save_pretrained(path)
    with parallel(met, size, path) as engine:
        same(in_parts(engine, IDS), in_parts(alone(path), IDS))


@every_size
@pytest.mark.parametrize("kv_bits", [None, 4, 8])
def test_what_is_kept_is_one_processs_and_goes_on_in_any_number(
    kv_bits: KvBits | None, size: int, met: dict[int, ProcessLinks], folders: Path
) -> None:
    """After an eviction: with a pinned block that has been rotated."""
    path, one = saved("qwen3", folders), alone(saved("qwen3", folders), kv_bits=kv_bits)
    with parallel(met, size, path, kv_bits=kv_bits) as engine:
        assert engine.describe() == f"{engine.engine.describe()}; each in {size} processes"
        kept = list[Saved]()
        for each in (engine, one):
            cache = Cache(SLOTS)
            cache.pin(4)
            advance(each, cache, IDS, "last")
            cache.evict(12)
            advance(each, cache, [7, 8], "last")
            kept.append(each.save_kv(cache.slots(np.arange(len(cache)))))
        ours, right = kept
        assert {name: (array.dtype, array.shape) for name, array in ours.items()} == {
            name: (array.dtype, array.shape) for name, array in right.items()
        }
        assert "master" in ours
        same(dequantized(ours), dequantized(right), 1e-5 if kv_bits is None else 0.02)
        slots, positions = cache.slots(np.arange(len(cache))), np.arange(len(cache)) + cache.evicted
        rows = list[Floats]()
        for each in (engine, one):
            each.load_kv(slots, positions, right)
            rows.append(each.forward([9], cache.plan(1), "last"))
        same(*rows, 1e-5 if kv_bits is None else 1e-3)  # a new key may be rounded to another code
        with pytest.raises(FormatError, match="damaged"):
            engine.load_kv(slots[1:], positions[1:], right)
        assert engine.forward([9], cache.plan(1), "last") is not None, "the refusal has upset nothing"


def dequantized(saved: Saved) -> Floats:
    found: Floats = saved["kv"] * saved["scale"][..., None] if "scale" in saved else saved["kv"]
    return found


@every_size
@pytest.mark.parametrize("case", ["mistral", "mixtral"])
def test_adapters_are_cut_as_the_matrices_are(
    case: str, size: int, met: dict[int, ProcessLinks], folders: Path
) -> None:
    path = saved(case, folders)
    targets = [f"{name}_proj" for name in "qkvo"] + ["embed_tokens", "lm_head"]
    more = [f"{name}_proj" for name in ("gate", "up", "down")] if case == "mistral" else []
    folder = trained(model_of(case), folders / f"{case} adapter", target_modules=targets + more)
    adapter, one = open_peft(folder, open_checkpoint(Path(path))), alone(path)
    with parallel(met, size, path) as engine:
        before = in_parts(engine, IDS)
        for scaled in ([(adapter, 0.5), (adapter, -0.2)], []):
            for each in (engine, one):
                each.adapt(scaled)
            ours, right = in_parts(engine, IDS), in_parts(one, IDS)
            same(ours, right)
            assert (np.abs(ours - before).max() > 0.1) == bool(scaled)


def test_what_a_process_cannot_load_is_rank_0s_error_too(met: dict[int, ProcessLinks], folders: Path) -> None:
    path = saved("qwen3", folders)
    found = checkpoint(path, None)
    with pytest.raises(ModelError, match="nowhere"):
        load(found.config, found.tensors, [str(folders / "nowhere"), None], SETTINGS, met[2], Nobody())
    with parallel(met, 2, path) as engine:
        assert in_parts(engine, [5]).shape == (1, 97), "and the processes are as before"
    with pytest.raises(LostError, match="were ended"):
        engine.forward([5], Cache(SLOTS).plan(1), "last")


def test_a_step_during_which_a_process_ends_counts_for_nothing(met: dict[int, ProcessLinks], folders: Path) -> None:
    """On GPUs its part of a sum may be missing, and nothing said."""
    with parallel(met, 2, saved("qwen3", folders)) as engine:
        whole, engine.bond.others = engine.bond.others, Gone()
        with pytest.raises(LostError, match="one has gone; the model cannot go on without it"):
            engine.forward([5], Cache(SLOTS).plan(1), "last")
        engine.bond.lost, engine.bond.others = None, whole


def test_ctrl_c_waits_for_the_end_of_a_step(
    met: dict[int, ProcessLinks], folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the others cannot be told to leave: it raises behind it, and the engine goes on."""
    plan = Cache(SLOTS).plan(1)
    with parallel(met, 2, saved("qwen3", folders)) as engine:
        right, forward = engine.forward([5], plan, "last"), engine.engine.forward

        def interrupted(*asked: object) -> Floats:
            signal.raise_signal(signal.SIGINT)
            return forward(*asked)  # type: ignore[arg-type]

        monkeypatch.setattr(engine.engine, "forward", interrupted)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                engine.forward([5], plan, "last")
        finally:
            signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
        np.testing.assert_array_equal(engine.forward([5], plan, "last"), right)
