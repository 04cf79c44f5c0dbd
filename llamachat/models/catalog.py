"""models.toml and the user's own models.toml -> ModelEntry. Knows no tensors, fetches nothing, nothing heavy."""

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_type_hints

from llamachat import paths
from llamachat.checks import shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import QuantConfig
from llamachat.errors import CatalogError, ConfigError, reading
from llamachat.formats.adapter_base import base_named, is_adapter
from llamachat.formats.prequantized.schemes import SCHEMES
from llamachat.models import hub_reference
from llamachat.models.sources import (
    FOLDER,
    RULES,
    SERVER,
    HubSource,
    LocalPath,
    ServerSource,
    Source,
    StorePath,
    WheelSource,
)
from llamachat.system.metadata import Fields
from llamachat.system.textfile import read_settings
from llamachat.tokenizers.dialog_formats import NAMES

if TYPE_CHECKING:
    from llamachat.models.first_look import Glance
    from llamachat.models.stores.stored import Store, Stored

Format = Literal["gguf", "hf", "meta", "lit", "packed"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
OF_SERVERS = ("source", "description", "system", "context", "licence", "sampling", "think")  # keys of their entries
TOP = ("default", "models")  # keys of a file
NUMBERS = {key: kind for key, kind in get_type_hints(SamplingParams).items() if kind in (int, float)}


@dataclass(frozen=True)
class Shape:
    """What a memory plan needs to know of a model."""

    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    vocab: int  # this and the next are 0 for a model that lies with another program: its weights are of known size
    params: int


@dataclass(frozen=True)
class ModelEntry:
    """One model by name; whatever is None is left to the checkpoint's own metadata."""

    name: str
    source: Source
    description: str = ""
    base: str | None = None  # owner/repo of the weights that it was made from, as adapters name them
    format: Format | None = None
    dialog: str | None = None  # one of dialog_formats.NAMES
    system: str | None = None
    context: int | None = None
    licence: str | None = None
    gated: bool = False
    download_bytes: int | None = None
    shape: Shape | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)  # fields of SamplingParams
    quant_config: QuantConfig | None = None
    adapters: tuple[str, ...] = ()  # "PATH[:SCALE]" of PEFT folders that run on it
    notes: tuple[str, ...] = ()  # what a person who asked for it should know
    think: Literal["on", "off"] | None = None  # before it answers, unless told otherwise; None: as its template has it


@dataclass(frozen=True)
class Catalog:
    entries: Mapping[str, ModelEntry]
    default: str
    files: tuple[Path, ...]  # what was read, ours first


class _Entries(Mapping[str, ModelEntry]):
    """Ours are made when they are asked for, as tests see that all can be; the person's at once, who is told what is wrong."""

    def __init__(self) -> None:
        self._made: dict[str, ModelEntry | partial[ModelEntry]] = {}

    def __getitem__(self, name: str) -> ModelEntry:
        entry = self._made[name]
        if isinstance(entry, partial):
            entry = self._made[name] = entry()
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def add(self, name: str, entry: "ModelEntry | partial[ModelEntry]") -> None:
        self._made[name] = entry


class Table(Fields):
    """A table of models.toml."""

    def no_mapping(self, raw: object) -> NoReturn:
        raise refusal(f"{shown(raw)} is not a table, in {self.where}", "write key = value pairs")

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise refusal(f"{key} = {shown(self.raw.get(key))} in {self.where} is not {expected}", "correct it")

    def missing(self, key: str) -> NoReturn:
        raise refusal(f"{key} is missing in {self.where}", "add it")

    def unknown(self, key: str, known: Collection[str] = ()) -> NoReturn:
        cause = f"unknown key {key} = {shown(self.raw[key])} in {self.where}"
        raise refusal(cause, f"known keys: {', '.join(known)}")

    def place(self, key: str) -> str:
        return f"{key} in {self.where}"


class _Keyless(Table):
    """A table of which no value is shown: one may be a key, under whatever name."""

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise refusal(f"{key} in {self.where} is not {expected}", "correct it")

    def unknown(self, key: str, known: Collection[str] = ()) -> NoReturn:
        raise refusal(f"unknown key {key} in {self.where}", f"known keys: {', '.join(known)}")


def refusal(cause: str, remedy: str) -> ConfigError:
    return ConfigError(cause, "no model can be looked up", remedy)


def user_file() -> Path:
    return paths.config_dir() / "models.toml"


def load_catalog(user: Path | None = None) -> Catalog:
    """Our entries, then the user's file (the one in the config folder, unless given). Raises ConfigError."""
    files = tuple(file for file in (_own_file(), user or user_file()) if file.exists())
    tables: dict[str, dict[str, Any]] = {}
    entries = _Entries()
    default = ""
    for file in files:
        document = _read(file)
        default = document.get("default", default)
        if not isinstance(default, str):
            raise refusal(f"default = {shown(default)} in {file} is not text", "name one of [models]")
        if others := [key for key in document if key not in TOP]:
            Table(document, str(file)).unknown(others[-1], TOP)
        for name, table in _named_tables(document.get("models", {}), file):
            amends = "source" not in table and name in tables
            tables[name] = (tables[name] if amends else {}) | _anchored(table, file)
            entry = partial(_entry, name, tables[name], f"[models.{name}] of {file}")
            entries.add(name, entry if file == files[0] else entry())
    if default not in entries:
        raise refusal(f"default = {shown(default)} in {files[-1]} names no model", "name one of [models]")
    return Catalog(entries, default, files)


def resolve(name_or_path: str | None = None) -> ModelEntry:
    """The entry of a name, of a path, of a hub's repository (see hub_reference), of `server:URL#MODEL`, of `STORE:NAME` as one of
    stores.STORES has it, or (None) of the default model. An adapter's path is its base's entry, with the adapter.

    An existing file or folder goes before a name; text with a path separator, or beginning with "." or "~", is never a
    name. Raises CatalogError for what is not there, UsageError for an address that is none.
    """
    if name_or_path is None:
        catalog = load_catalog()
        return catalog.entries[catalog.default]
    if (reference := hub_reference.read(name_or_path)) is not None:
        return _hub_entry(name_or_path, reference)
    if name_or_path.startswith(SERVER):
        server, _, model = name_or_path.removeprefix(SERVER).partition("#")
        return on_server(ServerSource(server, model or None))
    if ":" in name_or_path and (entry := _stored(name_or_path)):
        return entry
    if path := _existing(name_or_path):
        return _adapted(path) if is_adapter(path) else ModelEntry(name_or_path, LocalPath(path))
    if name_or_path[:1] in (".", "~") or any(mark in name_or_path for mark in ("/", os.sep, "\0")):
        cause = f"there is no file or folder {shown(name_or_path)}"
        raise CatalogError(cause, "no model was loaded", _instead(name_or_path))
    return lookup(load_catalog(), name_or_path)


def _instead(text: str) -> str:
    """What may have been meant by a path that there is not."""
    if hub_reference.is_address(text):
        return "of the web, models come from huggingface.co: paste the address of one there"
    if RULES["hub"].fullmatch(text):
        return f"write hf:{text} for a repository of the hub; `llamachat models list` shows the names"
    return "`llamachat models list` shows the names"


def _stored(reference: str) -> ModelEntry | None:
    """The entry of a model that lies with another program; None for what is no reference to one. Raises LlamachatError."""
    from llamachat.models import stores
    from llamachat.models.first_look import glance

    store = stores.store_of(reference)
    if store is None:
        return None
    stored = stores.find(store, reference.partition(":")[2])
    return in_store(store, stored, glance(stored.path))


def in_store(store: "Store", stored: "Stored", seen: "Glance") -> ModelEntry:
    """The entry of a model that lies with another program, whose first bytes have been seen."""
    name = stored.reference.removeprefix(f"{store.name}:")
    remedy = store.remove.format(name=name, path=stored.path)
    return ModelEntry(
        stored.reference,
        StorePath(stored.path, store.called, stored.nbytes, remedy),
        system=stored.system,
        context=seen.context or None,
        shape=shape_of(seen),
        sampling=stored.sampling,
        notes=stored.notes,
    )


def shape_of(seen: "Glance") -> Shape | None:
    """None where the first bytes do not say it."""
    if not (seen.layers and seen.kv_heads and seen.head_dim):
        return None
    return Shape(seen.layers, seen.hidden, seen.kv_heads, seen.head_dim, 0, 0)


def on_server(source: ServerSource) -> ModelEntry:
    """The entry of what no catalog names."""
    return ModelEntry(source.reference, source)


def lookup(catalog: Catalog, name: str) -> ModelEntry:
    """The entry of this name, in upper or lower case. Raises CatalogError with near names."""
    import difflib

    folded = name.lower() if name.isascii() else name  # some non-ASCII letters fold to ASCII ones
    if folded in catalog.entries:
        return catalog.entries[folded]
    near = _of_other_programs(folded) or difflib.get_close_matches(folded[:100], catalog.entries, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise CatalogError(
        f"no model is called {shown(name)}", "nothing was loaded", f"{hint}`llamachat models list` shows all names"
    )


def _of_other_programs(name: str) -> list[str]:
    """Models there whose name is this one, as these programs have it."""
    from llamachat.models import stores

    return [found for store, found in stores.references() if store.same(found.partition(":")[2]) == store.same(name)][
        :3
    ]


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home, NUL: not a path that could exist
        return None


def _adapted(folder: Path) -> ModelEntry:
    """The model that an adapter names as its base, with the adapter. Raises CatalogError where it names none that there is."""
    named, revision = base_named(folder)
    base = _base(folder, named, revision)
    if base is None or (isinstance(base.source, LocalPath) and is_adapter(base.source.path)):
        cause = f"the adapter {folder} names {shown(named)} as its base, which is no model here, of the catalog or of the hub"
        raise CatalogError(cause, "it cannot run alone", "give the model, and the adapter with --lora")
    path = os.path.abspath(folder)  # noqa: PTH100 - links stay
    note = f"{folder} is an adapter; it runs on {base.name}, which it names as its base"
    return replace(base, name=path, adapters=(*base.adapters, path), notes=(note,))


def _base(folder: Path, named: str, revision: str | None) -> ModelEntry | None:
    """A path, which may be relative to the folder, a name of the catalog, or a repository of the hub that it may know."""
    if named and (path := _existing(os.path.join(folder, named))):  # noqa: PTH118 - which may be no path at all
        return ModelEntry(str(path.resolve()), LocalPath(path.resolve()))
    entries = load_catalog().entries
    known = [entry for entry in entries.values() if named and (entry.base == named or entry.source == HubSource(named))]
    own = entries.get(named.lower())
    if own and isinstance(own.source, ServerSource):
        return None
    if own or known:
        return own or known[0]
    return _hub_entry(named, hub_reference.Reference(named, revision)) if RULES["hub"].fullmatch(named) else None


def _hub_entry(text: str, reference: hub_reference.Reference) -> ModelEntry:
    quant = reference.quant and reference.quant.upper()
    source = HubSource(reference.repo, reference.revision, reference.file, quant)
    try:
        _check_words(source, "a name")
    except ConfigError as error:
        cause = f"{shown(text)} is no repository"
        raise CatalogError(cause, "nothing was loaded", hub_reference.SYNTAX) from error
    one = source.file or (source.quant and source.quant != FOLDER)
    return ModelEntry(source.reference, source, format="gguf" if one else None)


def _own_file() -> Path:
    """In the installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    return next(file for file in (here / "models.toml", here.parent / "models.toml") if file.is_file())


def _read(file: Path) -> dict[str, Any]:
    with reading(f"{file} cannot be read", ConfigError, "no model can be looked up", "correct the file"):
        return tomllib.loads(read_settings(file))


def _named_tables(models: Any, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(models, dict):
        raise refusal(f"models = {shown(models)} in {file} is no table", "write [models.name]")
    for name, table in models.items():
        if not NAME.fullmatch(name) or len(name) > 100:
            raise refusal(f"model name {shown(name)} in {file} is not allowed", "use a-z, 0-9, '.', '_' and '-'")
        if not isinstance(table, dict):
            raise refusal(f"models.{name} = {shown(table)} in {file} is no entry", f"write [models.{name}]")
        yield name, table


def _anchored(table: dict[str, Any], file: Path) -> dict[str, Any]:
    """A relative path is relative to the file that names it."""

    def place(path: str) -> str:
        return str(file.parent / os.path.expanduser(path))  # noqa: PTH111 (never raises, as where a user is unknown)

    match table.get("adapters"):
        case [*paths] if all(isinstance(path, str) for path in paths):
            table = {**table, "adapters": [place(path) for path in paths]}
    match table.get("source"):
        case {"path": str(path), **others} if path:
            return {**table, "source": {**others, "path": place(path)}}
    return table


def _entry(name: str, table: dict[str, Any], where: str) -> ModelEntry:
    fields = Table(table, where)
    source = _source(fields.get("source"), where)
    if isinstance(source, ServerSource) and (others := [key for key in table if key not in OF_SERVERS]):
        raise refusal(f"{others[0]} in {where} is not for a server", f"its keys: {', '.join(OF_SERVERS)}")
    if isinstance(base := table.get("base"), str) and not RULES["hub"].fullmatch(base):
        fields.refuse("base", "owner/repo")
    sampling = _sampling(fields.get("sampling"), where)
    quantized = _quantized(fields.get("quant_config"), fields.place("quant_config"))
    dialog = fields.choice("dialog", {name: name for name in NAMES}) if "dialog" in table else None
    return fields.record(
        ModelEntry, name=name, source=source, sampling=sampling, quant_config=quantized, dialog=dialog, notes=()
    )


def _quantized(table: Any, where: str) -> QuantConfig | None:
    if table is None:
        return None
    fields = Table(table, where)
    return fields.record(QuantConfig, scheme=fields.choice("scheme", {name: name for name in SCHEMES}))


def _source(table: Any, where: str) -> Source:
    kinds: dict[str, type[Source]] = {"wheel": WheelSource, "hub": HubSource, "path": LocalPath}
    named = [kind for kind in (*kinds, "server") if isinstance(table, dict) and kind in table]
    if named == ["server"]:
        return _Keyless(table, f"source in {where}").record(ServerSource)
    if len(named) != 1:
        raise refusal(f"source = {shown(table)} in {where} names no one place", "give a wheel, hub, path or server")
    source = Table(table, f"source in {where}").record(kinds[named[0]])
    _check_words(source, where)
    return source


def _sampling(table: Any, where: str) -> dict[str, float]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise refusal(f"sampling = {shown(table)} in {where} is no table", "write { temperature = 0.6 }")
    fields = Table(table, f"sampling in {where}")
    if others := [key for key in table if key not in NUMBERS]:
        fields.unknown(others[0], NUMBERS)
    return {key: fields.typed(key, NUMBERS[key]) for key in table}


def _check_words(source: Source, where: str) -> None:
    """Refuse what could leave our folders, or be read as an option, once it is part of a path or a command."""
    for key, rule in RULES.items():
        value = getattr(source, key, None)
        if value is not None and (not rule.fullmatch(value) or len(value) > 200):
            raise refusal(f"{key} = {shown(value)} in {where} is not allowed", f"match {rule.pattern}")
