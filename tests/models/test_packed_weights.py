"""packed_weights.py and packed_copy.py: packed once, mapped from then on; never stale, never in the way."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from checkpoints import save_gguf, save_hf, tiny_model
from hypothesis import given, settings
from hypothesis.strategies import (
    DataObject,
    booleans,
    data,
    dictionaries,
    fixed_dictionaries,
    floats,
    integers,
    just,
    lists,
    none,
    recursive,
    text,
)

from llamachat.core.tensors import Tensor
from llamachat.engines.native import packed_file
from llamachat.engines.native.build import compiler
from llamachat.engines.native.pack import Header, bytes_of
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import FormatError
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.models.disk_cache import DiskCache
from llamachat.models.packed_copy import Copy
from llamachat.models.packed_weights import Packer, place, store
from llamachat.system import known, private

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
OWNERS = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.paths.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(save_gguf(tiny_model(), tmp_path / "model", quant="Q8_0"))


class Counted:
    """A checkpoint's weights at each start, and their copy, with what was said; counts how often its tensors are read."""

    def __init__(self, checkpoint: Checkpoint, limit: int | None = None) -> None:
        self.checkpoint, self.reads, self.said, self.limit = checkpoint, 0, list[str](), limit
        self.why: str | None = None  # the copy was not kept

    def get(self) -> PackedWeights:
        packer = Packer("tiny", self.limit, lambda what, done, total: None)
        weights = packer(self.checkpoint, self.tensors, self.said.append)
        if packer.fresh:
            self.why = Copy(packer.fresh, self.limit).write(lambda done: None)
        return weights

    def tensors(self) -> Iterator:  # type: ignore[type-arg]
        self.reads += 1
        return self.checkpoint.tensors()


def same(one: PackedWeights, other: PackedWeights) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        header == other.tensors[name][0] and np.array_equal(data, other.tensors[name][1])
        for name, (header, data) in one.tensors.items()
    )


def test_the_second_start_reads_no_weights_and_has_the_same(checkpoint: Checkpoint) -> None:
    counted = Counted(checkpoint)
    first, second = counted.get(), counted.get()
    assert counted.reads == 1 and counted.said == []
    assert same(first, second) and same(first, PackedWeights.build(checkpoint.tensors()))


def changed_index(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another index, digest and length included: as whoever knows the format would write it."""
    _, length, magic = packed_file.TRAILER.unpack(content[-packed_file.TRAILER.size :])
    end = len(content) - packed_file.TRAILER.size - length
    index = json.loads(content[end : end + length])
    new = change(index)
    text = new if isinstance(new, bytes) else json.dumps(index if new is None else new).encode()
    return content[:end] + text + packed_file.TRAILER.pack(hashlib.sha256(text).digest(), len(text), magic)


def first(index: dict[str, Any], **fields: Any) -> None:
    next(iter(index["tensors"].values())).update(fields)


def norm(index: dict[str, Any], **fields: Any) -> None:
    index["tensors"]["model.norm.weight"].update(fields)


WRONG = {
    "depth": lambda index: b"[" * 100_000,
    "depth of a mapping": lambda index: b'{"tensors":' * 100_000,
    "list": lambda index: [],
    "nan": lambda index: b'{"key": NaN, "tensors": {}}',
    "digits": lambda index: b'{"key": ' + b"9" * 9999 + b"}",
    "twice": lambda index: b'{"key": "", "key": "", "tensors": {}}',
    "no utf-8": lambda index: b'{"\xff": 1}',
    "key": lambda index: index.update(key="0" * 32),
    "no key": lambda index: index.pop("key") and None,
    "no facts": lambda index: index.pop("about") and None,
    "facts": lambda index: index.update(about=["tiny"]),
    "facts, no text": lambda index: index.update(about={"name": 3}),
    "facts, long": lambda index: index.update(about={"name": "a" * 40_000}),
    "facts, many": lambda index: index.update(about={str(i): "" for i in range(17)}),
    "tensors": lambda index: index.update(tensors=[]),
    "no tensors": lambda index: index.update(tensors={}),
    "more": lambda index: index.update(more=1),
    "entry": lambda index: index["tensors"].update({"model.norm.weight": 3}),
    "name": lambda index: index["tensors"].update({"a\u001b[2J": index["tensors"].pop("model.norm.weight")}),
    "unknown field": lambda index: first(index, more=1),
    "missing field": lambda index: next(iter(index["tensors"].values())).pop("unit") and None,
    "overlap": lambda index: norm(index, start=0),
    "start": lambda index: norm(index, start=1 << 60),
    "start, no int": lambda index: first(index, start=False),
    "start, crooked": lambda index: norm(index, start=index["tensors"]["model.norm.weight"]["start"] + 64),
    "start, negative": lambda index: first(index, start=-4096),
    "start, huge": lambda index: norm(index, start=4096 * 10**300),
    "sha256": lambda index: first(index, sha256="0"),
    "sha256, no text": lambda index: first(index, sha256=None),
    "sha256, other": lambda index: first(index, sha256="0" * 64),
    "rows": lambda index: first(index, rows=1),
    "rows, negative": lambda index: first(index, rows=-1),
    "rows, huge": lambda index: first(index, rows=1 << 31),
    "rows, float": lambda index: first(index, rows=320.0),
    "rows, true": lambda index: first(index, rows=True),
    "columns": lambda index: first(index, columns=0),
    "columns, huge": lambda index: first(index, columns=1 << 40),
    "kind": lambda index: first(index, kind=5),
    "kind, other": lambda index: first(index, kind=4),
    "kind, negative": lambda index: first(index, kind=-1),
    "kind, no int": lambda index: first(index, kind="3"),
    "kind of a vector": lambda index: norm(index, kind=3),
    "subs": lambda index: first(index, subs=3),
    "subs, huge": lambda index: first(index, subs=1 << 31),
    "minimum": lambda index: first(index, minimum=1),
    "minimum of a type that has none": lambda index: first(index, minimum=True, scaling=3),
    "scaling": lambda index: first(index, scaling=5),
    "scaling, other": lambda index: first(index, scaling=2),
    "scaling of a vector": lambda index: norm(index, scaling=1),
    "first": lambda index: first(index, first=-129),
    "first, other": lambda index: first(index, first=0),
    "first, true": lambda index: first(index, first=True),
    "codes of six bits in columns of no K type": lambda index: first(index, kind=8, scaling=2, subs=4, first=-32),
    "unit": lambda index: first(index, unit=0.0),
    "unit, negative": lambda index: first(index, unit=-1.0),
    "unit, infinite": lambda index: first(index, unit=1e39),
    "unit, no number": lambda index: first(index, unit="1"),
    "table": lambda index: first(index, table=[0] * 16),
    "table, short": lambda index: first(index, table=[0] * 15),
    "table, range": lambda index: first(index, table=[256] * 16),
    "table, no list": lambda index: first(index, table=None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_index_with_anything_wrong_costs_one_line_and_packing_anew(checkpoint: Checkpoint, wrong: str) -> None:
    counted = Counted(checkpoint)
    right = counted.get()
    (file,) = store().entries()
    replace(file, changed_index(file.read_bytes(), WRONG[wrong]))
    assert same(counted.get(), right) and counted.reads == 2
    (line,) = counted.said
    assert str(file) in line or "not those of this model" in line or "are damaged" in line
    assert line.endswith("; they are packed anew") and "\n" not in line and "\x1b" not in line
    assert same(counted.get(), right) and counted.reads == 2 and len(counted.said) == 1


@settings(max_examples=40)
@given(data())
def test_an_index_of_any_json_is_refused_as_damaged(data: DataObject) -> None:
    leaves = none() | booleans() | integers() | floats() | text()
    anything = recursive(leaves, lambda inner: lists(inner) | dictionaries(text(), inner), max_leaves=8)
    entry = fixed_dictionaries(dict.fromkeys(("start", "sha256", *Header.__dataclass_fields__), anything))
    tensors = anything | dictionaries(text(), anything | entry)
    index = data.draw(
        anything | fixed_dictionaries({"key": just("") | anything, "about": just({}) | anything, "tensors": tensors})
    )
    body = json.dumps(index).encode()
    trailer = packed_file.TRAILER.pack(hashlib.sha256(body).digest(), len(body), packed_file.MAGIC)
    content = np.frombuffer(bytes(8192) + body + trailer, np.uint8)
    with suppress(ValueError, FormatError):
        tensors, digests, _ = packed_file.parsed(content, "")
        assert tensors.keys() == digests.keys() and all(
            len(part) == bytes_of(header) for header, part in tensors.values()
        )


def replace(file: Path, content: bytes) -> None:
    """Another file in its place, as ours: what has the old one mapped keeps that."""
    with private.writing(file) as stream:
        stream.write(content)


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\0" * 4096, None])
def test_a_damaged_file_is_packed_anew_with_one_line(checkpoint: Checkpoint, damage: bytes | None) -> None:
    counted = Counted(checkpoint)
    right = counted.get()
    (file,) = store().entries()
    content = file.read_bytes()
    replace(file, content[: len(content) // 2] if damage is None else damage)
    assert same(counted.get(), right) and counted.reads == 2
    (line,) = counted.said
    assert f"{file} is damaged" in line and line.endswith("; they are packed anew")


def test_no_flipped_bit_is_ever_computed_with(checkpoint: Checkpoint) -> None:
    """Wherever it is: in a tensor, in the index, in what follows that. What lies between tensors means nothing."""
    right, found = Counted(checkpoint).get(), 0
    (file,) = store().entries()
    content, random = file.read_bytes(), Random(0)
    places = [random.randrange(len(content)) for _ in range(147)] + [len(content) - 1 - i for i in range(56)]
    for at in places:
        flipped = bytearray(content)
        flipped[at] ^= 1 << random.randrange(8)
        replace(file, flipped)
        try:
            weights = PackedWeights.open(file, file.stem)
            weights.verify()
        except FormatError:
            found += 1
        else:
            assert same(weights, right), f"bit in byte {at} of {len(content)}"
    assert found > 150


def test_a_flip_in_the_file_itself_is_found_even_if_its_time_is_set_back(checkpoint: Checkpoint) -> None:
    counted = Counted(checkpoint)
    counted.get()
    (file,) = store().entries()
    times = file.stat()
    with file.open("r+b") as stream:  # the tiny model's embedding lies at the file's beginning
        stream.seek(2)
        byte = stream.read(1)[0]
        stream.seek(2)
        stream.write(bytes([byte ^ 64]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert same(counted.get(), PackedWeights.build(checkpoint.tensors()))
    assert counted.reads == 2 and "model.embed_tokens.weight are damaged" in counted.said[0]


def test_bytes_are_read_whole_only_where_they_may_have_changed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = list[PackedWeights]()
    monkeypatch.setattr(PackedWeights, "verify", lambda weights: verified.append(weights))
    counted = Counted(checkpoint)
    counted.get()
    counted.get()
    assert verified == []
    os.utime(store().entries()[0])
    counted.get()
    counted.get()
    assert len(verified) == 1 and counted.reads == 1


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=OWNERS)])
def test_what_others_could_have_written_is_never_mapped(checkpoint: Checkpoint, what: str, how: str) -> None:
    counted = Counted(checkpoint)
    right = counted.get()
    (file,) = store().entries()
    place = file if what == "file" else file.parent
    place.chmod(0o770) if how == "mode" else os.chown(place, 12345, 12345)
    assert same(counted.get(), right) and counted.reads == 2
    assert ("other users" if how == "mode" else "another user") in counted.said[0]
    again = (what, how) == ("folder", "owner")  # which cannot be made ours: nothing is kept there
    assert same(counted.get(), right) and counted.reads == (3 if again else 2)


def test_a_model_that_changes_while_it_is_packed_is_not_kept(tmp_path: Path) -> None:
    folder = save_hf(tiny_model(), tmp_path / "model")
    checkpoint = open_checkpoint(folder)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        return checkpoint.tensors()

    with pytest.raises(FormatError, match="changed while it was read"):
        Packer("tiny", None, lambda what, done, total: None)(checkpoint, tensors, print)
    assert store().entries() == []


def test_a_full_or_read_only_disk_costs_time_and_nothing_else(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskCache, "free", lambda self: 1000)
    counted = Counted(checkpoint)
    assert same(counted.get(), PackedWeights.build(checkpoint.tensors()))
    assert counted.why and counted.said == [] and store().entries() == []


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = [save_gguf(tiny_model(), tmp_path / quant, quant=quant) for quant in ("Q8_0", "Q5_0", "Q5_1")]
    models = [open_checkpoint(path) for path in saved]
    for age, model in enumerate(models[:2]):
        Counted(model).get()
        os.utime(known.stamp_file(place(model)), (1000 + age, 1000 + age))
    Counted(models[0]).get()  # used again: now the younger
    Counted(models[2], int(2.3 * store().entries()[0].stat().st_size)).get()
    assert set(store().entries()) == {place(models[0]), place(models[2])}


def test_a_disk_that_is_full_in_any_case_takes_no_file_away_and_half_a_file_goes(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted(checkpoint).get()
    held, torn = store().entries(), store().folder / "x.arena.1.part"
    torn.touch()
    os.utime(torn, (1, 1))
    monkeypatch.setattr(DiskCache, "free", lambda self: 1000)
    other = Counted(open_checkpoint(save_gguf(tiny_model(), tmp_path / "other", quant="Q4_0")))
    other.get()
    assert other.why and held and store().entries() == held and not torn.exists()


def test_clear_deletes_all_and_says_how_much(checkpoint: Checkpoint) -> None:
    weights = Counted(checkpoint).get()
    assert store().clear() > weights.nbytes
    assert store().entries() == []
    assert same(weights, weights), "what is mapped stays"
