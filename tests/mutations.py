"""Damage: bytes and JSON changed as accidents and attackers change them, from a seeded generator alone."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

EXTREMES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**400, 0.0, -0.0, 0.5, 1e-320, 1e-7, 1e9, 1e308, -1e308, "", " ", "a", "x" * 3000, "\0", "\x1b[2J", "\ud800", "ﬀ́",
    "../../x", "1", "true", "null", [], {}, [[]], [None], [0] * 50, [[[[[[]]]]]], {"": {}}, {"a": [1, {"b": None}]},
]  # fmt: skip
PIECES = [b"\0", b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\x80", b'"', b"\\", b"{", b"[", b"]", b"\n",
          b"\xf0\x9f", b"\x1b[2J", b"[" * 3000, b'{"a":' * 1500, b"9" * 5000, b"1e999", b"NaN", b"-",
          b"'''", b"&a [*a]", b"<<: {}", b"{{", b"%}"]  # fmt: skip


def damaged(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to four changes anywhere, most of them small."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = chance.choice(WAYS)(data, chance, others)
    return data


def _at(data: bytes, chance: random.Random) -> int:
    """Headers are at the beginning, directories of archives at the end."""
    end = len(data)
    return chance.choice(
        (chance.randint(0, end), chance.randint(0, min(end, 64)), end - chance.randint(0, min(end, 64)))
    )


def _flip(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = _at(data, chance)
    return data[:at] + bytes([(data[at] if at < len(data) else 0) ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _overwrite(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at, piece = _at(data, chance), chance.choice((*PIECES[:5], chance.randbytes(chance.randint(1, 8))))
    return data[:at] + piece + data[at + len(piece) :]


def _insert(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = _at(data, chance)
    return data[:at] + chance.choice((*PIECES, chance.randbytes(chance.randint(1, 8)))) + data[at:]


def _cut(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = _at(data, chance)
    return data[:at] if chance.random() < 0.5 else data[:at] + data[at + chance.randint(1, 40) :]


def _splice(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    return data[: _at(data, chance)] + other[_at(other, chance) :]


def _number(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """A length or a count that is not true, little-endian, where one may be."""
    at, width = _at(data, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice((0, 1, len(data), len(data) + 1, 2**31, 2**40, 2**63, 2**64 - 1, chance.getrandbits(64)))
    return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]


WAYS: list[Callable[[bytes, random.Random, list[bytes]], bytes]] = [
    _flip, _flip, _overwrite, _insert, _cut, _splice, _number, _number,
]  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """A copy of a JSON value with one to three changes of its values, keys and structure."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = _change(value, chance)
    return value


def _change(value: Any, chance: random.Random) -> Any:
    inside = value if isinstance(value, (dict, list)) and value and chance.random() < 0.97 else None
    if inside is None:
        return _other(value, chance)
    key = chance.choice(list(inside)) if isinstance(inside, dict) else chance.randrange(len(inside))
    way = chance.random()
    if way < 0.7:
        inside[key] = _change(inside[key], chance)
    elif way < 0.8:
        del inside[key]
    elif isinstance(inside, dict):
        name = chance.choice((str(chance.choice(EXTREMES))[:40], f"{key}x", str(key)[:-1], chance.choice(list(inside))))
        inside[name] = copy.deepcopy(chance.choice((chance.choice(EXTREMES), inside[key])))
    else:
        inside.insert(
            chance.randint(0, len(inside)), copy.deepcopy(chance.choice((chance.choice(EXTREMES), inside[key])))
        )
    return inside


def _other(value: Any, chance: random.Random) -> Any:
    way = chance.random()
    if isinstance(value, bool) or value is None or way < 0.5:
        return copy.deepcopy(chance.choice(EXTREMES))
    if isinstance(value, int) and value.bit_length() < 200:
        return chance.choice(
            (value + 1, value - 1, -value, value * 2, value * 1.0, value << chance.randrange(64), str(value))
        )
    if isinstance(value, float):
        return chance.choice((-value, value * 1e30, value / 1e30, value + 1, str(value)))
    if isinstance(value, str):
        at = chance.randint(0, len(value))
        return chance.choice(
            (value[:at], value + value, value[:at] + chance.choice(["\0", "́", "​", "𝄞", "."]) + value[at:])
        )
    return [value] if way < 0.75 else {"x": value}


def as_json(value: Any, chance: random.Random, spoil: bool = True) -> bytes:
    """Its text, which now and then is damaged as text too."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    return damaged(text, chance, [text]) if spoil and chance.random() < 0.2 else text


def as_toml(value: Any) -> bytes:
    """Its text as a TOML file; None, which TOML lacks, as text."""
    if not isinstance(value, dict):
        return _toml(value).encode(errors="surrogatepass")
    return "".join(f"{json.dumps(key)} = {_toml(each)}\n" for key, each in value.items()).encode(errors="surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, (str, bool)) else repr(value).replace("None", '""')
