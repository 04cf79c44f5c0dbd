"""The one strict reader of settings and metadata, which anyone may have written: bounded, typed, and no key overlooked."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from llamachat.checks import LARGEST, is_number, is_whole, shown
from llamachat.errors import ConfigError, LlamachatError, UsageError, reading
from llamachat.system import textfile

MAX_JSON_BYTES = 32 << 20
MAX_YAML_BYTES = 128 << 10  # PyYAML is slow and real files have 10 kB

T = TypeVar("T")
R = TypeVar("R")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {  # what a dataclass's field may be, and what it is called
    int: (lambda value: is_whole(value) and value > 0, "a positive whole number"),
    float: (is_number, "a number"),
    str: (lambda value: isinstance(value, str), "text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    Path: (lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a path"),
    tuple[str, ...]: (_is_texts, "a list of texts"),
}


def names(text: str) -> frozenset[str]:
    """The words of a text: a long list of keys that stays readable."""
    return frozenset(text.split())


class Fields:
    """A mapping read key by key; `finish` then refuses whatever was not asked for, so that nothing is ignored unseen.

    A key that is absent gives the default, or ConfigError when there is none; so does null, which writers use for "not
    set". Each error names file, key and value, in the words of the four functions below, which a subclass may have others
    for.
    """

    def __init__(self, raw: object, where: str) -> None:
        self.where = where
        self.raw: Mapping[str, Any] = raw if isinstance(raw, Mapping) else self.no_mapping(raw)
        self._asked: set[str] = set()

    def no_mapping(self, raw: object) -> NoReturn:
        """Raise the ConfigError of what has no keys."""
        raise ConfigError(f"{self.where} is {shown(raw)}", remedy="expected is a mapping of keys to values")

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the ConfigError of a value that cannot be."""
        raise ConfigError(f"{self.where}: {key} is {shown(self.raw.get(key))}", remedy=f"expected is {expected}")

    def missing(self, key: str) -> NoReturn:
        """Raise the ConfigError of a key that must be there."""
        raise ConfigError(f"{self.where}: {key} is missing", "the model cannot be built without it")

    def unknown(self, key: str, known: Collection[str] = ()) -> NoReturn:
        """Raise the ConfigError of a key that must not be there; `known`: those that may, where they can be listed."""
        raise ConfigError(
            f"{self.where}: the key {shown(key)} with the value {shown(self.raw[key])} is unknown",
            "it may change what the model computes",
            "remove it if it does not",
        )

    def get(self, key: str) -> Any:
        """The value as it is; None when absent."""
        self._asked.add(key)
        return self.raw.get(key)

    def _typed(self, key: str, default: T | None, good: bool, expected: str) -> Any:
        value = self.get(key)
        if value is None and default is None:
            self.missing(key)
        if value is not None and not good:
            self.refuse(key, expected)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, low: int = 0, high: int = 2**30) -> int:
        """An int in low..high; neither bool nor float."""
        value = self.raw.get(key)
        good = is_whole(value) and low <= value <= high
        return int(self._typed(key, default, good, f"a whole number from {low} to {high}"))

    def size(self, key: str, name: str, default: int | None = None) -> int:
        """The value of ModelSpec's field `name`, within that field's bounds."""
        return self.whole(key, default, 1, LARGEST[name])

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        return float(self._typed(key, default, is_number(self.raw.get(key)), "a finite number"))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._typed(key, default, isinstance(self.raw.get(key), bool), "true or false"))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return str(self._typed(key, default, isinstance(self.raw.get(key), str), "a string"))

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """What the string stands for."""
        value = self.text(key, default)
        if value not in choices:
            self.refuse(key, "one of " + ", ".join(choices))
        return choices[value]

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self.get(key)
        if not isinstance(value, list) or not all(is_number(item) for item in value):
            self.refuse(key, "a list of finite numbers")
        return tuple(float(item) for item in value)

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 on; () when absent."""
        value = self.get(key) or []
        if not isinstance(value, list) or not all(is_whole(item) and item >= 0 for item in value):
            self.refuse(key, "a list of whole numbers")
        return tuple(value)

    def strings(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(key)
        if value is None:
            return default
        if not _is_texts(value):
            self.refuse(key, "a list of strings")
        return tuple(value)

    def token(self, key: str, absent: int | None = None) -> int | None:
        """A token id, or None when null or -1 (which some writers use for "none")."""
        value = self.whole(key, -1, -1, LARGEST["vocab_size"]) if key in self.raw else absent
        return None if value == -1 else value

    def tokens(self, key: str, absent: int | None = None) -> tuple[int, ...]:
        """Token ids, each once, from a number or a list of numbers; () when there is none."""
        value = self.get(key) if key in self.raw else absent
        items = value if isinstance(value, list) else [] if value in (None, -1) else [value]
        if not all(is_whole(item) and 0 <= item <= LARGEST["vocab_size"] for item in items):
            self.refuse(key, "a token id or a list of them")
        return tuple(dict.fromkeys(items))

    def inside(self, key: str) -> "Fields | None":
        """The fields of a nested mapping; None when absent, null or empty."""
        value = self.get(key)
        return type(self)(value, self.place(key)) if value is not None and value != {} else None

    def place(self, key: str) -> str:
        """Where the keys inside this one's value are, for errors."""
        return f"{self.where}: {key}"

    def neutral(self, key: str, *values: object) -> None:
        """The key may be absent, null or one of these values; any other gives results that we do not give."""
        value = self.get(key)
        if value is not None and not any(value == each and type(value) is type(each) for each in values):
            raise ConfigError(
                f"{self.where}: {key} is {shown(value)}, which is not supported",
                "the model would give other results than it should",
                f"only {' or '.join(map(repr, values)) or 'null'} can be run",
            )

    def finish(self, no_effect: Collection[str]) -> tuple[str, ...]:
        """The keys present that have no effect; ConfigError when one is neither asked for nor known to have none."""
        ignored = []
        for key in self.raw:
            if key in no_effect:
                ignored.append(key)
            elif key not in self._asked:
                self.unknown(key)
        return tuple(ignored)

    def record(self, kind: type[R], **ready: Any) -> R:
        """A dataclass, each field by its annotation; `ready` fields come from the caller instead.

        Raises ConfigError for the first key that is neither a field nor asked for, missing or ill-typed.
        """
        hints = {key: hint for key, hint in get_type_hints(kind).items() if key not in ready}
        for key in self.raw:
            if key not in hints and key not in self._asked:
                self.unknown(key, hints)
        for each in fields(kind):  # type: ignore[arg-type]
            optional = each.default is not MISSING or each.default_factory is not MISSING
            if each.name in hints and self.raw.get(each.name) is None and not optional:
                self.missing(each.name)
        values = {
            key: self.typed(key, hints[key]) for key, value in self.raw.items() if key in hints and value is not None
        }
        with naming(self.where):
            return kind(**ready, **values)

    def typed(self, key: str, hint: Any) -> Any:
        """The value as an annotation says: whole numbers positive, numbers finite, lists of texts as tuples."""
        if get_origin(hint) in (Union, UnionType):  # in what is read so, always "something or None"
            (hint,) = (arm for arm in get_args(hint) if arm is not NoneType)
        value = self.get(key)
        if is_dataclass(hint) and isinstance(hint, type):
            return type(self)(value, self.place(key)).record(hint)
        if get_origin(hint) is Literal:
            good, expected = value in get_args(hint), "one of " + ", ".join(map(str, get_args(hint)))
            good = good and not isinstance(value, bool)
        else:
            check, expected = KINDS[hint]
            good = check(value)
        if not good:
            self.refuse(key, expected)
        return tuple(value) if get_origin(hint) is tuple else Path(value) if hint is Path else value


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors of ModelSpec and SamplingParams, which know no file, become ConfigErrors that name it."""
    try:
        yield
    except (ConfigError, UsageError) as error:
        if str(error).startswith(where):
            raise
        raise ConfigError(f"{where}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError on anything else, also on duplicate keys and on NaN."""
    return parse_json(read_text(path, MAX_JSON_BYTES), str(path))


def parse_json(text: str | bytes, where: str, error: type[LlamachatError] = ConfigError) -> dict[str, Any]:
    """The object in a JSON text. Raises `error` on anything else, also on duplicate keys and on NaN."""
    with reading(where, error):
        try:
            value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        except json.JSONDecodeError as broken:
            raise error(f"{where} is no JSON ({broken})", "it is not read", "mend it or fetch it again") from broken
    if not isinstance(value, dict):
        raise error(f"{where} holds {shown(value)}", remedy="expected is an object")
    return value


def is_record(value: object, fields: Mapping[str, type | UnionType]) -> bool:
    """Whether it is a mapping with just these keys, each value of its type; true and false are no whole numbers."""
    if not isinstance(value, Mapping) or value.keys() != fields.keys():
        return False
    return all(
        isinstance(value[key], kind) and (kind is bool or not isinstance(value[key], bool))
        for key, kind in fields.items()
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; plain data only. Raises ConfigError on anything else and on duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Without merge keys, whose repetition can grow without bound, and without duplicate keys."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys) or any(tag == "tag:yaml.org,2002:merge" for tag, _ in keys):
                raise yaml.MarkedYAMLError(problem="duplicate or merge key", problem_mark=node.start_mark)

    text = read_text(path, MAX_YAML_BYTES)
    with reading(path, ConfigError):
        try:
            value = yaml.load(text, Loader)  # a SafeLoader
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            raise ConfigError(f"{path}: line {line}: {error.problem}", "it is no YAML that is read") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {shown(value)}", remedy="expected is a mapping")
    return value


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes. Raises ConfigError."""
    with reading(path, ConfigError):
        return textfile.read(path, limit).decode()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
