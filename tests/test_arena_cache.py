"""arena_cache.py: packed once, mapped from then on; never stale, never in the way."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_gguf, save_hf, tiny_model

from llamachat import arena_cache
from llamachat.arena_cache import cached, clear, entries, fingerprint
from llamachat.engine.build import compiler
from llamachat.engine.pack import Arena
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(arena_cache, "folder", lambda: tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(save_gguf(tiny_model(), tmp_path / "model", quant="Q8_0"))


class Counted:
    """A checkpoint's tensors, counting how often they are read, and what was said."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.reads, self.said = checkpoint, 0, list[str]()

    def get(self) -> Arena:
        return cached(self.checkpoint, self.tensors, self.said.append)

    def tensors(self) -> Iterator:  # type: ignore[type-arg]
        self.reads += 1
        return self.checkpoint.tensors()


def same(one: Arena, other: Arena) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        head == other.tensors[name][0] and np.array_equal(data, other.tensors[name][1])
        for name, (head, data) in one.tensors.items()
    )


def test_the_second_start_reads_no_weights_and_has_the_same(checkpoint: Checkpoint) -> None:
    counted = Counted(checkpoint)
    first, second = counted.get(), counted.get()
    assert counted.reads == 1 and counted.said == []
    assert same(first, second) and same(first, Arena.build(checkpoint.tensors()))


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_arena_is_packed_anew(checkpoint: Checkpoint, damage: bytes | None) -> None:
    counted = Counted(checkpoint)
    first = counted.get()
    (file,) = entries()
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert same(counted.get(), first) and counted.reads == 2


def test_changed_weights_are_packed_anew(tmp_path: Path) -> None:
    folder = save_hf(tiny_model(), tmp_path / "model")
    before = fingerprint(open_checkpoint(folder))
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    facts = file.stat()
    file.write_bytes(data)
    assert fingerprint(open_checkpoint(folder)) != before
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert fingerprint(open_checkpoint(folder)) == before


def test_a_full_or_read_only_disk_costs_time_and_nothing_else(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_cache, "_free", lambda: 1000)
    counted = Counted(checkpoint)
    assert same(counted.get(), Arena.build(checkpoint.tensors()))
    assert "packed anew at every start" in counted.said[0] and entries() == []


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [open_checkpoint(save_gguf(tiny_model(), tmp_path / f"model{i}", quant="Q8_0")) for i in range(3)]
    for age, model in enumerate(models[:2]):
        Counted(model).get()
        os.utime(arena_cache.folder() / f"{fingerprint(model)}.arena", (1000 + age, 1000 + age))
    Counted(models[0]).get()  # used again: now the younger
    monkeypatch.setattr(arena_cache, "LIMIT", 2.5 * entries()[0].stat().st_size)
    Counted(models[2]).get()
    assert {path.stem for path in entries()} == {fingerprint(models[0]), fingerprint(models[2])}


def test_a_disk_that_is_full_in_any_case_takes_no_arena_away_and_half_a_file_goes(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted(checkpoint).get()
    held, torn = entries(), arena_cache.folder() / "x.arena.1.part"
    torn.touch()
    os.utime(torn, (1, 1))
    monkeypatch.setattr(arena_cache, "_free", lambda: 1000)
    other = Counted(open_checkpoint(save_gguf(tiny_model(), tmp_path / "other", quant="Q8_0")))
    other.get()
    assert other.said and held and entries() == held and not torn.exists()


def test_clear_deletes_all_and_says_how_much(checkpoint: Checkpoint) -> None:
    arena = Counted(checkpoint).get()
    assert clear() > arena.nbytes
    assert entries() == []
    assert same(arena, arena), "what is mapped stays"
