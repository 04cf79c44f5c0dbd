"""packed_copy.py: copies of packed weights, written behind the answer: never torn, never in the way, within their limit."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_gguf, tiny_model

from llamachat.cli import keeping
from llamachat.engines import memory
from llamachat.engines.native import packed_file
from llamachat.engines.native.build import compiler
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.engines.native.room import Arena
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.models import packed_copy
from llamachat.models.disk_cache import DiskCache
from llamachat.models.packed_copy import Behind, Copy, LeftError, worth_keeping
from llamachat.models.packed_weights import STALE, Fresh, Packer, limit_of, made_of, place, store, tidy
from llamachat.system import known

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tiny_model(), tmp_path_factory.mktemp("model") / "model", quant="Q8_0")


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("llamachat.paths.state_dir", lambda: tmp_path / "state")
    monkeypatch.setattr("os.fsync", lambda handle: None)
    return open_checkpoint(model)


def silent(*told: object) -> None:
    pass


def fresh(checkpoint: Checkpoint, limit: int | None = None) -> Fresh:
    packer = Packer("tiny", limit, silent)
    packer(checkpoint, checkpoint.tensors, print)
    assert packer.fresh
    return packer.fresh


def files() -> list[Path]:
    folder = store().folder
    return sorted(folder.iterdir()) if folder.exists() else []


def test_packing_alone_leaves_nothing_on_disk_and_tells_how_far_it_is(checkpoint: Checkpoint) -> None:
    told = list[tuple[str, int, int | None]]()
    packer = Packer("tiny", None, lambda *each: told.append(each))
    weights = packer(checkpoint, checkpoint.tensors, print)
    assert files() == [] and {what for what, _, _ in told} == {"packing"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (weights.nbytes, weights.nbytes)


def test_a_copy_names_what_it_was_packed_from(checkpoint: Checkpoint, model: Path) -> None:
    assert Copy(fresh(checkpoint), None).write(silent) is None
    (file,) = files()
    facts = made_of(file)
    assert facts and facts["name"] == "tiny" and facts["path"] == str(model)
    assert known.is_known(file, PackedWeights.open(file, file.stem).digest), "it is not read whole at the next start"


def test_a_copy_pays_only_where_packing_took_long(checkpoint: Checkpoint) -> None:
    packed = fresh(checkpoint)
    slow = Fresh(packed.weights, packed.path, packed.about, packed_copy.PAYS)
    quick = Fresh(packed.weights, packed.path, packed.about, packed_copy.PAYS * 0.9)
    assert worth_keeping(slow, None) and not worth_keeping(quick, None)
    assert not worth_keeping(slow, 0), "off"
    assert not worth_keeping(None, None), "it was mapped"


@pytest.mark.parametrize("error", [KeyboardInterrupt, LeftError, OSError])
def test_what_is_broken_off_leaves_nothing(checkpoint: Checkpoint, error: type[BaseException]) -> None:
    def stop(done: int) -> None:
        assert any(path.suffix == ".part" for path in files())
        raise error

    copy = Copy(fresh(checkpoint), None)
    if error is OSError:
        assert copy.write(stop) is not None
    else:
        with pytest.raises(error):
            copy.write(stop)
    assert files() == []


def test_what_a_killed_writer_left_goes_with_the_next_one_at_once(checkpoint: Checkpoint) -> None:
    copy = Copy(fresh(checkpoint), None)
    store().folder.mkdir(parents=True, mode=0o700)
    (store().folder / ".x.arena.1.part").write_bytes(b"half")
    copy.write(silent)
    assert [path.suffix for path in files()] == [".arena"]


def test_one_writes_at_a_time_and_nobody_twice(checkpoint: Checkpoint) -> None:
    first, second = (Copy(fresh(checkpoint), None) for _ in range(2))
    inside = list[str | None]()
    first.write(lambda done: inside.append(second.write(silent)))
    assert set(inside) == {None} and len(files()) == 1
    written = files()[0].stat().st_mtime_ns
    assert second.write(silent) is None and files()[0].stat().st_mtime_ns == written


def test_nothing_is_kept_beyond_the_limit(checkpoint: Checkpoint) -> None:
    packed = fresh(checkpoint)
    why = Copy(packed, packed.weights.nbytes - 1).write(silent)
    assert why and "pack-cache allows" in why and files() == []
    assert Copy(packed, packed.weights.nbytes + 100_000).write(silent) is None and len(files()) == 1


def test_by_default_all_copies_may_have_a_tenth_of_what_is_free_or_theirs(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskCache, "free", lambda self: 10_000_000_000)
    assert store().limit == 1_000_000_000
    Copy(fresh(checkpoint), None).write(silent)
    assert store().limit == (10_000_000_000 + store().held()) // 10, "their own use does not shrink it"


@pytest.mark.parametrize(
    ("asked", "limit"), [(None, None), ("off", 0), ("OFF", 0), ("5GB", 5 * 10**9), ("1.5 gb", 1.5e9), ("500MB", 5e8)]
)
def test_sizes_that_a_person_writes(asked: str | None, limit: int | None) -> None:
    assert limit_of(asked) == limit


@pytest.mark.parametrize("asked", ["", "5", "5 apples", "-1GB", "GB", "1e9B", "nan GB", "5GBs", "٥GB", "1" * 50 + "GB"])
def test_what_is_no_size_is_refused_in_one_line(asked: str) -> None:
    with pytest.raises(UsageError) as error:
        limit_of(asked)
    assert (
        "allowed is a size such as 5GB" in str(error.value)
        and "\n" not in str(error.value)
        and len(str(error.value)) < 150
    )


def other_layout(path: Path) -> None:
    content = path.read_bytes()
    end = len(content) - len(packed_file.MAGIC)
    path.write_bytes(content[:end] + packed_file.MAGIC[:-1] + b"0")


def test_what_no_start_will_map_again_goes(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = fresh(checkpoint)
    ours = PackedWeights.write(packed.weights.tensors.items(), _named("ours"), "ours", packed.about)
    for name in ("layout", "old", "young"):
        PackedWeights.write(packed.weights.tensors.items(), _named(name), name, packed.about | {"code": "another"})
    _named("damaged").write_bytes(b"nonsense")
    other_layout(_named("layout"))
    for name in ("ours", "old"):
        known.remember(_named(name), ours)
        os.utime(known.stamp_file(_named(name)), (time.time() - STALE - 60,) * 2)
    assert tidy(store()) > 0
    assert [path.stem for path in files()] == ["damaged", "ours", "young"]
    assert made_of(_named("damaged")) is None and made_of(_named("ours"))


def _named(name: str) -> Path:
    store().folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return store().folder / f"{name}.arena"


def test_a_model_larger_than_memory_is_packed_on_disk_first(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = PackedWeights.build(checkpoint.tensors())
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    packer = Packer("tiny", None, silent)
    weights = packer(checkpoint, checkpoint.tensors, print)
    assert packer.fresh is None and files() == [place(checkpoint)]
    for name, (header, data) in in_memory.tensors.items():
        assert weights.tensors[name][0] == header and np.array_equal(weights.tensors[name][1], data)
    with pytest.raises(DoesNotFitError, match="pack-cache"):
        store().clear()
        Packer("tiny", 0, silent)(checkpoint, checkpoint.tensors, print)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.002)
    assert what()


def test_behind_an_answer_it_is_written_when_nothing_is_computed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_copy, "IDLE", 0.01)
    used = [float("inf")]
    waits = threading.Event()

    def last_used() -> float:
        waits.set()
        return used[0]

    writer = Behind(Copy(fresh(checkpoint), None), last_used)
    writer.begin()
    writer.begin()
    assert waits.wait(60) and files() == []
    used[0] = 0.0
    wait_for(lambda: [path.suffix for path in files()] == [".arena"])
    said = list[str]()
    wait_for(lambda: bool(said.extend(writer.remarks()) or said))
    assert len(said) == 1 and writer.remarks() == [], "it is said once"
    writer.leave()


def test_who_leaves_meanwhile_leaves_nothing_half_written(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_copy, "IDLE", 0.01)
    used = [0.0]

    def last_used() -> float:
        if any(path.suffix == ".part" for path in files()):
            used[0] = float("inf")
        return used[0]

    writer = Behind(Copy(fresh(checkpoint), None), last_used)
    writer.begin()
    wait_for(lambda: used[0] > 0)
    writer.leave()
    assert files() == []


def test_who_leaves_does_not_wait_for_a_slow_disk(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_copy, "IDLE", 0.01)
    monkeypatch.setattr(packed_copy, "PATIENCE", 0.01)
    slow, waiting = threading.Event(), threading.Event()

    def fsync(handle: int) -> None:
        waiting.set()
        slow.wait(10)

    monkeypatch.setattr("os.fsync", fsync)
    writer = Behind(Copy(fresh(checkpoint), None), lambda: 0.0)
    writer.begin()
    assert waiting.wait(60) and [path.suffix for path in files()] == [".part"]
    writer.leave()
    assert files() == []
    slow.set()
    wait_for(lambda: not any(thread.name == "copy" for thread in threading.enumerate()))
    assert files() == []


def test_what_is_said_is_said_once(checkpoint: Checkpoint) -> None:
    copy = Copy(fresh(checkpoint), 5_000_000_000)
    kept, large = copy.remark(None), copy.remark("pack-cache allows 0 kB")
    assert kept and "all may take 5.0 GB" in kept and "config set pack-cache" in kept
    assert large and "not kept (pack-cache allows 0 kB)" in large
    assert copy.remark(None) is None and copy.remark("no room") is None


def test_a_signal_ends_what_a_command_does_behind_its_answer(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(packed: object, path: Path, key: str, about: object, told: Callable[[int], None]) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        told(1)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(PackedWeights, "write", signalled)
    keeping.behind.append(Copy(fresh(checkpoint), None))
    keeping.keep_copies(print, verbose=False)
    assert keeping.behind == [] and files() == [] and signal.getsignal(signal.SIGTERM) is before


def test_a_command_keeps_its_copy_when_its_answer_is_out(checkpoint: Checkpoint) -> None:
    keeping.behind.append(Copy(fresh(checkpoint), None))
    keeping.keep_copies(print, verbose=False)
    assert [path.suffix for path in files()] == [".arena"]


def test_an_arena_gives_zeros_that_do_not_overlap() -> None:
    room = Arena(10_000)
    parts = [room(size) for size in (1, 4096, 5000, 70 << 20, 1)]
    for number, part in enumerate(parts):
        assert part.ctypes.data % 4096 == 0 and not part[:5000].any()
        part[:] = number + 1
    assert [len(part) for part in parts] == [1, 4096, 5000, 70 << 20, 1]
    assert [int(part[-1]) for part in parts] == [1, 2, 3, 4, 5]
