"""Personas: manners of answering that have a name, each a file personas/NAME.toml in the config folder."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llamachat import paths
from llamachat.checks import shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import THINKING
from llamachat.errors import ConfigError, LlamachatError, UsageError, reading
from llamachat.system.textfile import read_settings

Role = Literal["user", "assistant"]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)  # it becomes part of a path
MESSAGES = 1000  # pairs


@dataclass(frozen=True)
class Persona:
    """What a persona's file says; what it leaves out stays as it is, but the system prompt, which is then none."""

    name: str
    system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)  # fields of SamplingParams
    messages: tuple[tuple[str, str], ...] = ()  # the dialog's first questions and answers
    model: str | None = None
    think: str | None = None  # of THINKING

    @property
    def said(self) -> list[tuple[Role, str]]:
        """The messages one by one."""
        return [one for asked, answered in self.messages for one in (("user", asked), ("assistant", answered))]


def folder() -> Path:
    return paths.config_dir() / "personas"


def names(where: Path | None = None) -> list[str]:
    """Of every persona there is, sorted."""
    return sorted(file.stem for file in (where or folder()).glob("*.toml") if NAME.fullmatch(file.stem))


def load(name: str, where: Path | None = None) -> Persona:
    """Raises UsageError for a name that there is not, ConfigError that names key, value and file for what is no persona."""
    file = (where or folder()) / f"{name}.toml"
    if not NAME.fullmatch(name) or not file.is_file():
        near = difflib.get_close_matches(name[:100], known := names(where), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else f"make {file}"
        raise UsageError(f"no persona is called {shown(name)}", "nothing has changed", hint)
    return _persona(name, _read(file), str(file))


def _read(file: Path) -> dict[str, Any]:
    with reading(f"{file} cannot be read", ConfigError, "the persona cannot be used", "correct it"):
        return tomllib.loads(read_settings(file))


def _persona(name: str, table: dict[str, Any], where: str) -> Persona:
    known = [each.name for each in fields(Persona) if each.name != "name"]
    for key, value in table.items():
        _require(key in known, f"unknown key {key}", value, where, f"known keys: {', '.join(known)}")
    for key in ("system", "model"):
        _require(isinstance(table.get(key, ""), str), key, table.get(key), where, "write text")
    think = table.get("think", "auto")
    _require(isinstance(think, str) and think in THINKING, "think", think, where, f"write one of {', '.join(THINKING)}")
    return Persona(
        name,
        table.get("system"),
        _sampling(table.get("sampling", {}), where),
        _messages(table, where),
        table.get("model"),
        table.get("think"),
    )


def _sampling(table: Any, where: str) -> Mapping[str, float]:
    """As SamplingParams takes it, without logit_bias, which no command sets."""
    _require(isinstance(table, dict) and "logit_bias" not in table, "sampling", table, where, "write { top_p = 0.9 }")
    try:
        SamplingParams().replace(**table)
    except LlamachatError as error:
        raise ConfigError(f"sampling in {where}: {error}") from error
    return dict(table)


def _messages(table: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    given = table.get("messages", [])
    valid = isinstance(given, list) and len(given) <= MESSAGES and all(map(_is_pair, given))
    _require(valid, "messages", given, where, 'write [["question", "answer"], …]')
    return tuple((question, answer) for question, answer in given)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _require(holds: bool, what: str, value: Any, where: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"{what} = {shown(value)} in {where}", "the persona cannot be used", remedy)


def about(persona: Persona) -> str:
    """A line for a list."""
    line = next(iter((persona.system or "").strip().splitlines()), "no system prompt")
    return line if len(line) <= 60 else line[:59] + "…"
