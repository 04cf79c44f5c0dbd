"""Hostile and careless metadata files end in one ConfigError that says where."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.core.sampling import SamplingParams
from llamachat.errors import ConfigError
from llamachat.system.metadata import Fields, is_record, naming, read_json, read_yaml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1,\n "b": }', "line 2 column 7"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "'c' occurs twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ("[1]", "expected is an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("\xff", "line 1"),
        ("", "line 1"),
        ("<html>", r"config.json is no JSON \(.*\); it is not read; mend it or fetch it again"),
    ],
)
def test_json_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [1\n", "line 3"),
        ("a: 1\na: 2\n", "line 1: duplicate"),
        ("base: &b {x: 1}\nmore:\n  <<: *b\n", "merge"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1"),
        ("[" * 20_000, "nested too deeply"),
        ("- 1\n", "expected is a mapping"),
        ("? {a: 1}\n: 2\n", "line 1"),
        ("a: \x07\n", "special characters"),
        ("x: " + "a" * 200_000, "larger than"),
    ],
)
def test_yaml_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, "x", null, true]}')
    (tmp_path / "a.yaml").write_text("a: &list [1, 2.5, x, null, true]\nb: *list\n")
    expected = [1, 2.5, "x", None, True]
    assert read_json(tmp_path / "a.json") == {"a": expected}
    assert read_yaml(tmp_path / "a.yaml") == {"a": expected, "b": expected}


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, read: Callable[[Path], dict[str, Any]]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "it is no file"),
        (tmp_path, "it is a folder"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(ConfigError, match=says):
            read(path)
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConfigError, match="utf-8"):
        read(tmp_path / "latin")


@pytest.mark.parametrize(
    ("method", "good", "bad"),
    [
        ("whole", [0, 5], [True, 1.0, "1", -1, 2**31, [1]]),
        ("number", [0, 1.5, -2], [True, "1", float("nan"), float("inf"), 10**400, [1]]),
        ("text", ["", "x"], [1, True, ["x"]]),
        ("numbers", [[], [1, 2.5]], [1, None, [True], ["1"], [float("nan")], {"a": 1}]),
        ("strings", [[], ["a"]], ["a", [1], {"a": 1}]),
        ("tokens", [3, [1, 2], -1, None], [True, "1", 1.0, [-1], [[1]], 2**25]),
        ("token", [3, 0, -1, None], [True, "1", 1.0, -2, [1]]),
    ],
)
def test_values_have_the_type_asked_for_or_are_refused_by_key(method: str, good: list[Any], bad: Any) -> None:
    for value in good:
        getattr(Fields({"key": value}, "file"), method)("key")
    for value in bad:
        with pytest.raises(ConfigError, match="file: key is"):
            getattr(Fields({"key": value}, "file"), method)("key")


def test_a_missing_key_without_default_is_an_error_and_null_is_like_absent() -> None:
    for raw in ({}, {"key": None}):
        with pytest.raises(ConfigError, match="file: key is missing"):
            Fields(raw, "file").whole("key")
        assert Fields(raw, "file").whole("key", 7) == 7


def test_token_ids_tell_null_from_absent() -> None:
    assert (Fields({}, "f").token("k", 1), Fields({"k": None}, "f").token("k", 1)) == (1, None)
    assert (Fields({}, "f").tokens("k", 2), Fields({"k": None}, "f").tokens("k", 2)) == ((2,), ())


def test_finish_refuses_what_nobody_asked_for_and_lists_what_has_no_effect() -> None:
    fields = Fields({"used": 1, "idle": 2}, "file")
    fields.whole("used")
    assert fields.finish({"idle"}) == ("idle",)
    with pytest.raises(ConfigError, match="file: the key 'idle' with the value 2 is unknown"):
        fields.finish(())


def test_neutral_values_are_told_apart_by_type() -> None:
    Fields({"key": False}, "file").neutral("key", False)
    with pytest.raises(ConfigError, match="not supported"):
        Fields({"key": 0}, "file").neutral("key", False)


def test_a_nested_mapping_carries_its_place() -> None:
    inner = Fields({"outer": {"key": "x"}}, "file").inside("outer")
    assert inner is not None
    with pytest.raises(ConfigError, match="file: outer: key is 'x'"):
        inner.whole("key")
    assert Fields({"outer": {}}, "file").inside("outer") is None
    with pytest.raises(ConfigError, match="file: outer is 3"):
        Fields({"outer": 3}, "file").inside("outer")


@dataclass(frozen=True)
class Wheel:
    size: int
    spokes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cart:
    name: str
    wheel: Wheel | None = None
    colour: Literal["red", "blue"] | None = None
    load: float = 0.5
    covered: bool = False
    home: Path | None = None


def test_a_dataclass_is_read_by_its_annotations() -> None:
    raw = {"wheel": {"size": 3, "spokes": ["a"]}, "colour": "red", "load": 2, "covered": True, "home": "/x", "note": 1}
    fields = Fields(raw, "file")
    assert fields.get("note") == 1  # what was asked for before is no unknown key
    assert fields.record(Cart, name="mine") == Cart("mine", Wheel(3, ("a",)), "red", 2, True, Path("/x"))
    assert Fields({"name": "n", "wheel": None}, "file").record(Cart) == Cart("n")


@pytest.mark.parametrize(
    "raw, says",
    [
        ({}, "file: name is missing"),
        ({"name": 3}, "file: name is 3; expected is text"),
        ({"name": "n", "load": float("nan")}, "load is nan; expected is a number"),
        ({"name": "n", "covered": 1}, "covered is 1; expected is true or false"),
        ({"name": "n", "home": ""}, "home is ''; expected is a path"),
        ({"name": "n", "colour": "green"}, "colour is 'green'; expected is one of red, blue"),
        ({"name": "n", "wheel": 3}, "file: wheel is 3; expected is a mapping"),
        ({"name": "n", "wheel": {"size": 0}}, "file: wheel: size is 0; expected is a positive whole number"),
        ({"name": "n", "wheel": {"size": True}}, "size is True; expected is a positive whole number"),
        ({"name": "n", "wheel": {"size": 1, "spokes": [1]}}, r"spokes is \[1\]; expected is a list of texts"),
        ({"name": "n", "wheels": 4}, "the key 'wheels' with the value 4 is unknown"),
    ],
)
def test_a_dataclass_that_cannot_be_is_refused_by_place_key_and_value(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Fields(raw, "file").record(Cart)


def test_a_record_has_just_these_keys_and_types() -> None:
    fields = {"id": int, "text": str | None, "exact": bool}
    assert is_record({"id": 1, "text": None, "exact": True}, fields)
    for wrong in (None, [], {"id": 1}, {"id": True, "text": "", "exact": True}, {"id": 1, "text": "", "exact": 1},
                  {"id": 1, "text": "", "exact": True, "more": 0}, {"id": 1.0, "text": "", "exact": True}):  # fmt: skip
        assert not is_record(wrong, fields)


def test_naming_adds_the_file_once() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^file: top_p is 3;"), naming("file"), naming("file"):
            SamplingParams(top_p=3)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text()))
def test_errors_are_single_lines_whatever_the_keys(raw: dict[str, Any]) -> None:
    try:
        Fields(raw, "file").finish(())
    except ConfigError as error:
        assert str(error).isprintable()
