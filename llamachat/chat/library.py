"""What can be asked for by name in a chat, each with a line about it: models and personas."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llamachat.chat import persona
from llamachat.errors import LlamachatError
from llamachat.events import ModelView, Progress

if TYPE_CHECKING:
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.overview import Known, Room

FRESH = 5.0  # seconds for which the names that were found are handed out again: they are asked for at every key


@dataclass
class Library:
    """The models and personas of this machine's person."""

    obtain: "Callable[[ModelEntry, Progress], object] | None" = None  # fetches a model, and makes it what is to run
    context: int | None = None  # what a model has to have room for, as --ctx-size and --kv-bits say
    kv_bits: int | None = None
    offline: bool = False
    force: bool = False
    _words: list[tuple[str, str]] = field(default_factory=list)
    _until: float = 0.0

    def models(self) -> list[tuple[str, str]]:
        """Names, each with a word on it. Raises ConfigError."""
        if time.monotonic() > self._until:
            self._words = list(_words())
            self._until = time.monotonic() + FRESH
        return self._words

    def views(self) -> list[ModelView]:
        """All models: the catalog's, then what other programs have here. Raises ConfigError."""
        from llamachat.models import overview
        from llamachat.models.catalog import load_catalog

        room = self._room()
        known = list(overview.of_catalog(load_catalog(), room))
        return [_view(each) for each in (*known, *overview.of_stores(room, [each.path for each in known]))]

    def better(self) -> ModelView | None:
        """What to offer to whoever has the default model, or one that does not fit. Raises ConfigError."""
        from llamachat.models import overview
        from llamachat.models.catalog import load_catalog

        catalog, room = load_catalog(), overview.Room(self.context, self.kv_bits)
        known = [*overview.of_catalog(catalog, room), *overview.of_stores(room)]
        found = overview.better(known, catalog.entries[catalog.default])
        return _view(found) if found else None

    def view(self, name: str) -> ModelView | None:
        """A model that is to be fetched, or is here; None where there is no choice to be made, or who loads it says why not.

        Raises CatalogError where the hub does not say what it has.
        """
        from llamachat.models import fetch, overview
        from llamachat.models.catalog import resolve
        from llamachat.models.sources import ServerSource

        try:
            entry = resolve(name)
        except LlamachatError:
            return None
        if isinstance(entry.source, ServerSource) or (self.offline and not fetch.locate(entry)):
            return None
        settled = fetch.settled(entry)
        picked = getattr(settled.source, "file", None) if settled.source != entry.source else None
        return replace(_view(overview.of_entry(settled, self._room())), file=picked or "")

    def fetch(self, name: str, progress: Progress) -> None:
        """Have a model here that is not. Raises LlamachatError."""
        from llamachat.models.catalog import resolve

        assert self.obtain is not None, "whoever lets a person choose hands in what fetches"
        self.obtain(resolve(name), progress)

    def _room(self) -> "Room":
        from llamachat.models.overview import Room

        return Room(self.context, self.kv_bits, 1 << 62) if self.force else Room(self.context, self.kv_bits)

    def personas(self) -> Iterator[tuple[str, str]]:
        """One that cannot be read is listed with the reason."""
        for name in persona.names():
            try:
                yield name, persona.about(persona.load(name))
            except LlamachatError as error:
                yield name, str(error)

    def persona(self, name: str) -> persona.Persona:
        """See persona.load."""
        return persona.load(name)


def _words() -> Iterator[tuple[str, str]]:
    from llamachat.models import stores
    from llamachat.models.catalog import load_catalog

    yield from ((name, entry.description) for name, entry in load_catalog().entries.items())
    yield from ((reference, f"here, in {store.called}") for store, reference in stores.references())


def _view(known: "Known") -> ModelView:
    from llamachat.engines.memory import describe, size
    from llamachat.models.sources import ServerSource

    served = isinstance(known.entry.source, ServerSource)
    return ModelView(
        known.entry.name,
        size=size(known.nbytes) if known.nbytes else "",
        fits=known.fits,
        here=known.path is not None or served,
        note=known.seen.lacks or "gated · " * known.entry.gated + known.entry.description,
        place=known.store.called if known.store else "",
        runs=not known.seen.lacks,
        needs=describe(known.plan) if known.plan else "",
    )
