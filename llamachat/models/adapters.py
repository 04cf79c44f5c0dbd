"""The adapters of a loaded model: opened by path, named, scaled and switched without loading it again."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llamachat.checks import is_number, shown
from llamachat.core.engine import Engine
from llamachat.errors import UsageError, no_memory
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import Adapter, Changed, Scaled
from llamachat.formats.adapter_base import CONFIG
from llamachat.formats.lazy import listed
from llamachat.models import keys

LARGEST = 1000.0  # scale
MOST = 64  # adapters
RESERVED = ("add", "on", "off")  # words of /lora
Given = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


@runtime_checkable
class Adaptable(Protocol):
    """An engine that can be adapted."""

    def adapt(self, adapters: Sequence[Scaled]) -> None:
        """Have these in force from the next step on, and no others. Keys and values computed before are not those of after."""
        ...


@dataclass(frozen=True)
class Reference:
    """An adapter's folder, and what all that it adds is multiplied by."""

    path: Path
    scale: float = 1.0


def reference(given: Given) -> Reference:
    """Of "PATH[:SCALE]", or a path and a scale. Raises UsageError."""
    text, scale = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(text, (str, os.PathLike)):
        cause = f"{shown(given)} is no adapter"
        raise UsageError(cause, "no adapter was changed", 'give "PATH[:SCALE]", or a path and a scale')
    text = os.path.expanduser(os.fspath(text))  # noqa: PTH111 (never raises)
    path, colon, end = text.rpartition(":")
    if scale is None and colon and not Path(text).exists():
        scale = number(end, f"the scale in {text}")
        text = path
    return Reference(Path(text), checked(1.0 if scale is None else scale))


def several(given: Sequence[Given]) -> list[Given]:
    """Raises UsageError for a single one, whose letters would be taken for many."""
    if isinstance(given, (str, os.PathLike)):
        raise UsageError(f"adapters is {shown(given)}", "the model was not adapted", "put it into a list")
    return [*given]


def number(text: str, what: str = "the scale") -> float:
    """A scale from its text. Raises UsageError."""
    try:
        return checked(float(text))
    except ValueError as error:
        raise UsageError(f"{what} is no number", "no adapter was changed", "write PATH:0.5, say") from error


def checked(scale: float) -> float:
    """Raises UsageError for what is no scale."""
    if not is_number(scale) or abs(scale) > LARGEST:
        told = f"{scale:g}" if isinstance(scale, float) else shown(scale)
        raise UsageError(f"an adapter cannot be scaled by {told}", remedy=f"give -{LARGEST:g} to {LARGEST:g}")
    return float(scale)


@dataclass
class Held:
    """An opened adapter; off where its scale is 0."""

    name: str
    adapter: Adapter
    scale: float
    last: float  # the scale that "on" brings back
    key: list[tuple[Any, ...]]  # of its content when it was opened: its folder may be written to again

    def set(self, scale: float) -> None:
        self.last, self.scale = scale or self.scale or self.last, scale


@dataclass
class Adapters:
    """Those of one model, in the order in which they are added up; `engine`: where changes are put in force, once it is there."""

    base: Checkpoint | None = None
    held: list[Held] = field(default_factory=list)
    engine: Engine | None = None

    @classmethod
    def opened(cls, base: Checkpoint, given: Iterable[Given]) -> "Adapters":
        """Raises UsageError, ModelError."""
        found = cls(base)
        for each in given:
            found.held.append(found._open(reference(each)))
        return found

    @property
    def scaled(self) -> list[Scaled]:
        """Those in force."""
        return [(each.adapter, each.scale) for each in self.held if each.scale]

    @property
    def ignored(self) -> list[tuple[Path, tuple[str, ...]]]:
        """Of each, the keys of its configuration that have no effect."""
        return [(each.adapter.path, each.adapter.ignored) for each in self.held]

    @property
    def nbytes(self) -> int:
        return sum(each.adapter.nbytes for each in self.held)

    @property
    def key(self) -> list[Any]:
        """What keys and values depend on."""
        return [[each.key, each.scale] for each in self.held if each.scale]

    @property
    def notes(self) -> list[str]:
        """What a person should know of them."""
        fixed = [each for each in self.held if each.adapter.replaced]
        return [
            f"the adapter {each.name} has a {listed(sorted(each.adapter.replaced))} of its own: it stays at scale 1"
            for each in fixed
        ]

    def changed(self, base: Checkpoint) -> Checkpoint:
        """The checkpoint with the whole tensors that adapters have of their own in place."""
        fixed = [(each.adapter, each.scale) for each in self.held if each.adapter.replaced]
        return Changed(base, fixed, merge=False) if fixed else base

    def merged(self, base: Checkpoint) -> Checkpoint:
        """The checkpoint with all that is in force merged into it."""
        for each in self.held:
            each.adapter.check_scale(each.scale)
        return Changed(base, self.scaled, merge=True) if self.scaled else base

    def bind(self, engine: Engine) -> None:
        """Put them in force there, now and after each change. Raises UsageError for an engine that cannot be adapted."""
        self.engine = engine
        if self.held:
            self._apply()

    def add(self, given: Given) -> Held:
        """One more, while the model is loaded. Raises UsageError, ModelError; nothing has changed then."""
        new = self._open(reference(given))
        if new.adapter.replaced:
            names = listed(sorted(new.adapter.replaced))
            cause = f"the adapter {new.name} has a {names} of its own"
            raise UsageError(cause, "which takes the place of the model's as it is loaded", "start again with --lora")
        self.held.append(new)
        try:
            self._apply()
        except BaseException:
            self.held.remove(new)
            raise
        return new

    def scale(self, name: str, scale: float | None) -> Held:
        """Another scale for the adapter of this name; None: that before it was switched off. Raises UsageError."""
        found = next((each for each in self.held if each.name == name), None)
        if found is None:
            known = ", ".join(each.name for each in self.held) or "there are none"
            raise UsageError(f"no adapter is called {name[:60]}", "nothing was changed", f"known: {known}")
        scale = (found.scale or found.last) if scale is None else checked(scale)
        found.adapter.check_scale(scale)
        before = found.scale, found.last
        found.set(scale)
        try:
            if scale != before[0]:
                self._apply()
        except BaseException:
            found.scale, found.last = before
            raise
        return found

    def describe(self) -> str:
        """For people."""
        return ", ".join(f"{each.name} {f'× {each.scale:g}' if each.scale else 'off'}" for each in self.held)

    def _apply(self) -> None:
        if not isinstance(self.engine, Adaptable):
            raise UsageError("this engine takes no adapters", "the model was not adapted", "leave out --lora")
        try:
            self.engine.adapt(self.scaled)
        except MemoryError as error:
            raise no_memory("for the adapters") from error

    def _open(self, given: Reference) -> Held:
        from llamachat.formats.peft import open_peft  # which takes 15 to 25 ms, and few starts have an adapter

        assert self.base is not None, "a model that was loaded has a checkpoint"
        if len(self.held) >= MOST:
            raise UsageError(
                f"there are {MOST} adapters already", "no more are taken", "merge some with quantize --lora"
            )
        if not (given.path / CONFIG).is_file():
            cause = f"{given.path} is no folder of an adapter (adapter_config.json and its weights)"
            raise UsageError(cause, "the model was not adapted", "give the folder that PEFT has written")
        adapter = open_peft(given.path, self.base)
        adapter.check_scale(given.scale)
        content = keys.files(adapter.files)
        return Held(self._named(given.path), adapter, given.scale, given.scale or 1.0, content)

    def _named(self, path: Path) -> str:
        """By its folder, in one word, and by a number where that is taken."""
        taken = {*RESERVED, *(each.name for each in self.held)}
        name = re.sub(r"\s+", "-", path.resolve().name) or "adapter"
        return next(each for each in (name, *(f"{name}-{n}" for n in range(2, 10**6))) if each not in taken)
