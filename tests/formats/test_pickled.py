"""Torch pickles: the values torch saved, and no code run, whatever the file asks for."""

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.errors import FormatError
from llamachat.formats.pickled import PICKLE_LIMIT, read_pickled

STATE = {
    "float": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5], dtype=torch.float16),
    "bfloat": torch.tensor([-1.5, 3.25], dtype=torch.bfloat16),
    "byte": torch.tensor([[7]], dtype=torch.uint8),
}


class Runs:
    """Unpickling this calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Calls:
    """Unpickling this calls something that torch's own unpickler allows."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def rewritten(source: Path, target: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with the entries of these names (without their folder) replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, changes.get(entry.filename.split("/", 1)[1], old.read(entry)))
    return target


@pytest.mark.parametrize("wrap", [dict, OrderedDict])
def test_values_and_shapes_are_what_torch_saved(tmp_path: Path, wrap: Any) -> None:
    arrays = read_pickled(saved(tmp_path / "m.pth", wrap(STATE)))
    assert arrays.keys() == STATE.keys()
    for name, tensor in STATE.items():
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(arrays[name], bits.numpy(), strict=True)


def test_a_module_s_state_dict_with_its_parameters_and_metadata_is_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    np.testing.assert_array_equal(
        read_pickled(saved(tmp_path / "a", module.state_dict()))["weight"], module.weight.detach().numpy()
    )
    np.testing.assert_array_equal(
        read_pickled(saved(tmp_path / "b", dict(module.named_parameters())))["bias"], module.bias.detach().numpy()
    )


def test_tensors_are_mapped_not_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", {"a": torch.zeros(1 << 22)})
    array = read_pickled(path)["a"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert any(line.endswith("m.pth") and _within(line, array.ctypes.data) for line in maps.read_text().splitlines())


def _within(line: str, address: int) -> bool:
    start, stop = (int(bound, 16) for bound in line.split()[0].split("-"))
    return start <= address < stop


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "flag"
    torch.save({"a": Runs(f"touch {flag}")}, tmp_path / "m.pth", pickle_protocol=protocol)
    with pytest.raises(FormatError, match="run code"):
        read_pickled(tmp_path / "m.pth")
    assert not flag.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "m.pth").write_bytes(pickle.dumps(Runs(f"touch {flag}")))
    with pytest.raises(FormatError):
        read_pickled(tmp_path / "m.pth")
    assert not flag.exists()


@pytest.mark.parametrize(
    "call", [Calls(bytearray, 1 << 40), Calls(set), Calls(torch.device, "meta")], ids=["bytearray", "set", "device"]
)
def test_only_what_builds_tensors_may_be_called(tmp_path: Path, call: Calls) -> None:
    with pytest.raises(FormatError, match="was not loaded"):
        read_pickled(saved(tmp_path / "m.pth", {"a": call}))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", {"a": torch.zeros(1 << 16)})
    with pytest.raises(FormatError, match="compressed"):
        read_pickled(rewritten(path, tmp_path / "bomb.pth", {}, zipfile.ZIP_DEFLATED))


def test_a_storage_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", {"a": torch.zeros(1 << 10)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("m/data.pkl")
    for size in (b"\0\0\0\x40", b"\xff\xff\xff\x7f"):  # elements claimed for 1,024: where a number is read as 4 bytes
        lie = pickled.replace(b"M\0\x04", b"J" + size)
        assert lie != pickled
        with pytest.raises(FormatError):
            read_pickled(rewritten(path, tmp_path / "lie.pth", {"data.pkl": lie}))


def test_a_tensor_that_repeats_one_element_a_million_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="larger than its bytes"):
        read_pickled(saved(tmp_path / "m.pth", {"a": torch.zeros(1).expand(1 << 20)}))


@pytest.mark.parametrize("tensor", [torch.zeros(0, 4), torch._neg_view(torch.ones(2))], ids=["empty", "negated"])
def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(FormatError):
        read_pickled(saved(tmp_path / "m.pth", {"a": tensor}))


def test_a_comment_that_could_hide_a_second_directory_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", STATE)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + b"\0" * 18
    with pytest.raises(FormatError):
        read_pickled(path)


def test_bytes_before_the_archive_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", STATE)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with pytest.raises(FormatError):
        read_pickled(path)


@pytest.mark.parametrize(
    "value", [[torch.zeros(1)], {"a": 1}, {1: torch.zeros(1)}, {"a": {"b": torch.zeros(1)}}, torch.zeros(2)]
)
def test_anything_but_a_dictionary_of_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FormatError):
        read_pickled(saved(tmp_path / "m.pth", value))


@pytest.mark.parametrize("state", [b"}X\5\0\0\0itemsX\1\0\0\0as", b"}", b"N", b"(K\1K\2t", b"]"])
def test_a_state_that_hides_the_dictionarys_own_names_cannot_hurt(tmp_path: Path, state: bytes) -> None:
    """BUILD puts what it is given into the OrderedDict's own attributes; torch itself writes `_metadata` so."""
    source = saved(tmp_path / "a.pth", OrderedDict(STATE))
    with zipfile.ZipFile(source) as archive:
        program = archive.read("a/data.pkl")
    path = rewritten(source, tmp_path / "b.pth", {"data.pkl": program[:-1] + state + b"b."})
    if state[:1] in (b"}", b"]"):  # names, or none
        assert read_pickled(path).keys() == STATE.keys()
    else:
        with pytest.raises(FormatError, match=r"b\.pth is not a usable torch checkpoint: "):
            read_pickled(path)


@pytest.mark.parametrize("rank", [9, 64, 65, 70])
def test_a_tensor_of_more_axes_than_any_weight_has_is_refused(tmp_path: Path, rank: int) -> None:
    with pytest.raises(FormatError, match=rf"'w' in .*m\.pth has {rank} axes; it is no weight"):
        read_pickled(saved(tmp_path / "m.pth", {"w": torch.zeros([1] * rank)}))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "m.pth", STATE).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "m.pth").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_pickled(tmp_path / "m.pth")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_file_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = saved(tmp_path_factory.getbasetemp() / "fuzz.pth", STATE)
    with zipfile.ZipFile(path) as archive:
        program = bytearray(archive.read("fuzz/data.pkl"))
    whole = data.draw(st.booleans())  # the archive, or the pickle with its checksum put right
    damaged = bytearray(path.read_bytes()) if whole else program
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if whole:
        path.write_bytes(damaged)
    else:
        path = rewritten(path, path.with_name("fuzzed.pth"), {"data.pkl": bytes(damaged)})
    with contextlib.suppress(FormatError):
        read_pickled(path)


def test_a_file_saved_by_an_old_torch_is_told_what_to_do(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"older than 1\.6"):
        read_pickled(tmp_path / "m.pth")


def test_a_pickle_that_would_take_minutes_to_read_is_refused_at_once(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", STATE)
    lists = b"\x80\x02" + b"]" * PICKLE_LIMIT + b"."
    with pytest.raises(FormatError, match="not an archive as torch"):
        read_pickled(rewritten(source, tmp_path / "b", {"data.pkl": lists}))


@pytest.mark.parametrize("as_state", [False, True], ids=["argument", "state"])
def test_a_small_file_whose_copies_would_fill_the_memory_is_refused_at_once(as_state: bool, tmp_path: Path) -> None:
    """Each call of six bytes would take as much as all the items."""
    items = b"".join(
        b"M" + number.to_bytes(2, "little") + b"K\x01" + (b"" if as_state else b"\x86") for number in range(60_000)
    )
    held = b"}(" + items + b"u" if as_state else b"](" + items + b"e"
    copy = b"h\x00)Rh\x01b" if as_state else b"h\x00h\x01\x85R"
    calls = b"".join(b"M" + number.to_bytes(2, "little") + copy for number in range(1000))
    program = b"\x80\x02}(K\x00ccollections\nOrderedDict\nq\x00K\x01" + held + b"q\x01" + calls + b"u."
    path = rewritten(saved(tmp_path / "good.pth", STATE), tmp_path / "bad.pth", {"data.pkl": program})
    with pytest.raises(FormatError, match="copies what it holds again and again; it would fill the memory"):
        read_pickled(path)
