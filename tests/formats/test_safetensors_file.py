"""The safetensors reader: the same values as the safetensors package, and refusal of every dishonest header."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llamachat.errors import FormatError
from llamachat.formats.safetensors_file import HEADER_LIMIT, read_safetensors

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32, torch.int64)


def write(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


def entry(start: Any = 0, stop: Any = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_reads_as_the_safetensors_package_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(12).reshape(3, 4).to(dtype),
        "odd": torch.ones(3).to(dtype),
        "scalar": torch.tensor(7).to(dtype),
    }
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    ours, theirs = read_safetensors(tmp_path / "m.safetensors"), load_file(tmp_path / "m.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        bits = theirs[name].view(torch.uint16) if dtype == torch.bfloat16 else theirs[name]
        np.testing.assert_array_equal(array, bits.numpy(), strict=True)


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    array = read_safetensors(write(tmp_path / "m", {"a": entry()}, b"\0" * 8))["a"]
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": entry(stop=12)}, 8),
        ({"a": entry(stop=4)}, 8),
        ({"a": entry(start=8, stop=0)}, 8),
        ({"a": entry(start=-8, stop=0)}, 8),
        ({"a": entry(start=4, stop=12)}, 12),
        ({"a": entry()}, 9),
        ({"a": entry(), "b": entry()}, 8),
        ({"a": entry(), "b": entry(start=12, stop=20)}, 20),
        ({"a": entry(shape=[2**62, 2**62])}, 8),
        ({"a": entry(shape=[0, 10**30], stop=0)}, 0),
        ({"a": entry(shape=[1] * 40 + [2])}, 8),
        ({"a": entry(shape=[-1, -2])}, 8),
        ({"a": entry(shape=[2.0])}, 8),
        ({"a": entry(shape=None)}, 8),
        ({"a": entry(dtype="F8_E4M3", shape=[8])}, 8),
        ({"a": entry(dtype=None)}, 8),
        ({"a": entry(start="0")}, 8),
        ({"a": [0, 8]}, 8),
        ({"a": {}}, 8),
        ([], 0),
        (b'{"a": 1', 0),
        (b"[" * 100_000, 0),
        (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, 0),
        (b'{"a": ' + b"9" * 10_000 + b"}", 0),
        (b"\xff\xfe{}", 0),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            8,
        ),
    ],
)
def test_a_dishonest_header_is_refused(tmp_path: Path, header: Any, body: int) -> None:
    with pytest.raises(FormatError):
        read_safetensors(write(tmp_path / "m", header, b"\0" * body))


@pytest.mark.parametrize("length", [0, 2, 10**6, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(FormatError):
        read_safetensors(write(tmp_path / "m", {"a": entry()}, b"\0" * 8, length))


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="F8_E4M3"):
        read_safetensors(write(tmp_path / "m", {"a": entry(dtype="F8_E4M3", shape=[8])}, b"\0" * 8))


def test_control_characters_of_a_name_do_not_reach_the_error_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read_safetensors(write(tmp_path / "m", {"\x1b[2J" + "x" * 10_000: entry(stop=4)}, b"\0" * 8))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = write(tmp_path / "m", {"a": entry()}, b"\0" * 8).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "m").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_safetensors(tmp_path / "m")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_file_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz", {"a": entry(), "b": entry(8, 12, "BF16", [1, 2])}, b"\0" * 12)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with contextlib.suppress(FormatError):
        read_safetensors(path)


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nothing"):
        read_safetensors(tmp_path / "nothing")


def test_a_header_larger_than_any_models_is_not_parsed(tmp_path: Path) -> None:
    length = HEADER_LIMIT + 1
    (file := tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"[" * length)
    with pytest.raises(FormatError, match="its header claims 16,777,217 bytes"):
        read_safetensors(file)
