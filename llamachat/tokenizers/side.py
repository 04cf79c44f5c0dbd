"""What the files beside a tokenizer say of it: tokenizer_config.json, special_tokens_map.json and added_tokens.json.

A tokenizer that is T5's is told by its class, or where that is not said by the model's type in config.json.

Read as transformers does: tokenizer_config.json's `added_tokens_decoder`, where there is one, makes the older two
superfluous, which then only fill what it leaves open; without it they have the last word.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from llamachat.system.metadata import Fields, read_json

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
MAX_ADDED = 1 << 16  # a token so far behind a vocabulary's end belongs to none that is known
T5_SENTINELS = 100  # unless its tokenizer_config.json has another number
_T5_CLASS, _T5_TYPES = re.compile("M?T5Tokenizer(Fast)?"), ("t5", "mt5", "umt5")
_FURTHER = ("additional_special_tokens", "extra_special_tokens")


class Added(NamedTuple):
    """A token that is looked for in a text before everything else."""

    id: int
    special: bool  # it marks structure and is no text
    strips: tuple[bool, bool] = (False, False)  # it swallows spaces before, after


@dataclass(frozen=True)
class Side:
    """What there is besides a tokenizer's own file."""

    names: Mapping[str, str] = field(default_factory=dict)  # NAMED -> token, as chat templates know it
    added: Mapping[str, Added] = field(default_factory=dict)
    adds_bos: bool | None = None  # None: it does not say
    adds_eos: bool | None = None  # the same; heeded where the tokenizer's own file cannot say it
    legacy: bool | None = None  # sentencepiece: a dummy space after every control token; None: it does not say
    notes: tuple[str, ...] = ()  # what was ignored, for people
    t5: bool = False  # it is T5's, or mT5's
    extra_ids: int = 0  # how many sentinels T5 has behind its vocabulary

    def within(self, size: int) -> "Side":
        """Without added tokens that no vocabulary of this size can have."""
        wrong = {name: token.id for name, token in self.added.items() if not 0 <= token.id < size + MAX_ADDED}
        if not wrong:
            return self
        said = ", ".join(f"{name!r:.40} {id!r:.40}" for name, id in list(wrong.items())[:3])
        note = f"the tokenizer has {size} tokens; ignored are added ones with ids far beyond: {said}"
        added = {name: token for name, token in self.added.items() if name not in wrong}
        return replace(self, added=added, notes=(*self.notes, note))


def read_side(folder: Path) -> Side:
    """Raises ConfigError for a file that is no JSON object."""
    config, old, added = (
        read_json(path) if (path := folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    t5 = _is_t5(config, folder)
    fields = Fields(config, str(folder / "tokenizer_config.json"))
    side = of_config(config, old, added)
    if not t5:
        return side
    return replace(side, t5=True, adds_eos=True, extra_ids=fields.whole("extra_ids", T5_SENTINELS, 0, MAX_ADDED))


def of_config(config: Mapping[str, Any], old: Mapping[str, Any], added: Mapping[str, Any]) -> Side:
    """What these files' contents say, of a tokenizer that is not T5's."""
    decoder = config.get("added_tokens_decoder")
    first, second = (config, old) if isinstance(decoder, dict) and decoder else (old, config)
    special = set(_special_names(config)) | set(_special_names(old))
    found = {name: Added(id, name in special) for name, id in added.items() if type(id) is int}
    found |= dict(_decoder(decoder, special))
    return Side(
        {key: name for key in NAMED if (name := _content(first.get(key)) or _content(second.get(key)))},
        found,
        _flag(config.get("add_bos_token")),
        _flag(config.get("add_eos_token")),
        _flag(config.get("legacy")),
    )


def _is_t5(config: Mapping[str, Any], folder: Path) -> bool:
    named, model = config.get("tokenizer_class"), folder / "config.json"
    if isinstance(named, str):
        return _T5_CLASS.fullmatch(named) is not None
    return model.is_file() and read_json(model).get("model_type") in _T5_TYPES


def _decoder(decoder: Any, special: set[str]) -> Iterator[tuple[str, Added]]:
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        name = _content(value)
        if name is not None and key.isdecimal():
            given = value if isinstance(value, dict) else {}
            strips = given.get("lstrip") is True, given.get("rstrip") is True
            yield name, Added(int(key[:20]), given.get("special") is True or name in special, strips)


def _special_names(config: Mapping[str, Any]) -> Iterator[str]:
    further = [config.get(key) for key in _FURTHER]
    listed = [each for value in further if isinstance(value, list) for each in value]
    listed += [each for value in further if isinstance(value, dict) for each in value.values()]
    return filter(None, map(_content, [*(config.get(key) for key in NAMED), *listed]))


def _content(value: Any) -> str | None:
    """A token: a string, or an object with one."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
