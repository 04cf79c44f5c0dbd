"""All models that can be asked for by name: the catalog's, and those that other programs have fetched."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamachat.engines import memory
from llamachat.errors import LlamachatError
from llamachat.models import fetch, fit, stores
from llamachat.models.catalog import Catalog, ModelEntry, in_store, resolve, shape_of
from llamachat.models.first_look import UNKNOWN, Glance, glance
from llamachat.models.sources import ServerSource, StorePath
from llamachat.models.stores.stored import Store, Stored

PATIENCE = 1.0  # seconds after which models of other programs are listed without a look at them
SOON = 6_000_000_000  # bytes of weights: what an ordinary machine reads some five times a second


@dataclass(frozen=True)
class Known:
    """A model, where it is, and whether it would run."""

    entry: ModelEntry
    store: Store | None  # None: of the catalog
    path: Path | None  # None: not here
    plan: memory.Plan | None  # None: what it takes is not known
    seen: Glance = UNKNOWN

    @property
    def nbytes(self) -> int | None:
        """Of what is here or is to be fetched; None: not known, or none."""
        source = self.entry.source
        return source.nbytes if isinstance(source, StorePath) else self.entry.download_bytes

    @property
    def fits(self) -> bool | None:
        """None: not known. Of a GGUF file its size says enough."""
        if self.plan:
            return self.plan.fits
        return fit.file_fits(self.nbytes) if self.entry.format == "gguf" and self.nbytes else None

    @property
    def usable(self) -> bool:
        """Whether it would chat here, in this memory, as far as is known."""
        return not self.seen.lacks and self.seen.chats and self.plan is not None and self.plan.fits


@dataclass(frozen=True)
class Room:
    """What a model has to fit into."""

    context: int | None = None  # tokens; None: as by default
    kv_bits: int | None = None
    available: int = field(default_factory=lambda: memory.available_memory())  # bytes

    def plan(self, entry: ModelEntry, weights: int | None = None) -> memory.Plan | None:
        return fit.entry_plan(entry, self.context, self.kv_bits, self.available, weights)


def of_catalog(catalog: Catalog, room: Room) -> Iterator[Known]:
    """In the order of its files."""
    for entry in catalog.entries.values():
        yield Known(entry, None, fetch.locate(entry), room.plan(entry))


def of_entry(entry: ModelEntry, room: Room) -> Known:
    """Of one that was asked for, of whatever kind."""
    return Known(entry, None, fetch.locate(entry), room.plan(entry))


def of_stores(room: Room, besides: Iterable[Path | None] = ()) -> Iterator[Known]:
    """Store by store, by name; not those that lie at one of these paths, and nothing that is no model of its own."""
    end, others = float("inf"), set(besides)
    for store in stores.STORES:
        for stored in stores.listed(store):
            seen = glance(stored.path) if time.monotonic() < end else UNKNOWN
            end = min(end, time.monotonic() + PATIENCE)  # from the first on, which may import what reads it
            if seen.model and stored.path not in others:
                seen = replace(seen, lacks=stored.lacks or seen.lacks)
                entry = _entry(store, stored, seen)
                yield Known(entry, store, stored.path, room.plan(entry, stored.nbytes), seen)


def _entry(store: Store, stored: Stored, seen: Glance) -> ModelEntry:
    """Those of the hub's cache are found, and removed, as what we have fetched there."""
    if store in stores.BY_REFERENCE.values():
        return in_store(store, stored, seen)
    return replace(
        resolve(stored.reference),
        shape=shape_of(seen),
        context=seen.context or None,
        download_bytes=stored.nbytes,
    )


def better(known: Iterable[Known], than: ModelEntry) -> Known | None:
    """What to offer to whoever has this model: one that is here goes first, then what is fetched without an account.

    Of those that fit, the largest that an ordinary machine runs at the speed of reading, or else the smallest.
    """
    least = fit.entry_weights(than) if than.shape else 0
    fitting = [each for each in known if each.usable and each.plan and each.plan.weights > least and _is_easy(each)]
    ranked = sorted(fitting, key=lambda each: (not each.path, _weights(each) > SOON, abs(SOON - _weights(each))))
    return next((each for each in ranked if each.store is None or _is_made_to_chat(each)), None)


def _is_made_to_chat(known: Known) -> bool:
    """Whether it can be opened, and has a template: many have none, and go on with a text. One that ollama runs has one there."""
    from llamachat.formats.detect import open_checkpoint

    assert known.path is not None
    try:
        return open_checkpoint(known.path).chat_template is not None or known.store is stores.ollama.STORE
    except LlamachatError:
        return False


def _weights(known: Known) -> int:
    return known.plan.weights if known.plan else 0


def _is_easy(known: Known) -> bool:
    """Here, or fetched as it will run; no licence has to be accepted elsewhere."""
    entry = known.entry
    fetched = entry.format == "gguf" and not entry.gated and not isinstance(entry.source, ServerSource)
    return known.path is not None or fetched
