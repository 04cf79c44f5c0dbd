"""STORES: where other programs keep models, one file each. What lies there is used in place and never written.

A reference is STORE:NAME; those of the Hugging Face cache are the hub's own, and found by who fetches from there.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from llamachat.checks import shown
from llamachat.errors import CatalogError, LlamachatError
from llamachat.models.stores import gpt4all, huggingface, llamacpp, lmstudio, ollama
from llamachat.models.stores.stored import SHOWN, Store, Stored

STORES: tuple[Store, ...] = tuple(each.STORE for each in (huggingface, ollama, lmstudio, llamacpp, gpt4all))
CLOSE = 5000  # names among which near ones are looked for
Place = tuple[str, Path, Path]  # name, folder of the store, and what tells of the model there

BY_REFERENCE = {f"{store.name}:": store for store in STORES if store is not huggingface.STORE}


def store_of(reference: str) -> Store | None:
    """The store that a reference is of; None for any other text, one of the hub's too."""
    return BY_REFERENCE.get(reference.partition(":")[0] + ":") if ":" in reference else None


def find(store: Store, name: str) -> Stored:
    """The model of this name there, or the only one that begins so. Raises LlamachatError, with near names."""
    known = list(_named(store))
    wanted, start = store.same(name), (f"{name.lower()}/", f"{name.lower()}:")
    fitting = [each for each in known if store.same(each[0]) == wanted]
    within = [each for each in known if each[0].lower().startswith(start)]
    found, folder, place = _only(store, name, known, fitting or within)
    stored = store.open(folder, found, place)
    if stored.lacks:
        raise CatalogError(f"{stored.reference} cannot be run: {stored.lacks}", "it was not loaded", "choose another")
    return stored


def _only(store: Store, name: str, known: Sequence[Place], fitting: Sequence[Place]) -> Place:
    """Raises CatalogError for none, and for several."""
    import difflib

    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = " or ".join(store.reference(each[0]) for each in fitting[:5])
        cause = f"{shown(name)} is more than one model of {store.called}"
        raise CatalogError(cause, "nothing was loaded", f"give {several}")
    near = difflib.get_close_matches(name[:100].lower(), [each[0] for each in known[:CLOSE]], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(store.reference, near))}? " if near else ""
    looked = f"it was looked for in {', '.join(map(str, store.folders()))}"
    remedy = hint + "`llamachat models list` shows all" if known else looked
    raise CatalogError(f"{store.called} has no model {shown(name)}", "nothing was loaded", remedy)


def _named(store: Store) -> Iterator[Place]:
    """What is there by name; a name in several folders is that of the first."""
    seen = dict[str, Place]()
    for folder in store.folders():
        for name, place in store.names(folder):
            seen.setdefault(store.same(name), (name, folder, place))
    return iter(sorted(seen.values()))


def references() -> Iterator[tuple[Store, str]]:
    """Of all models that are there, by name; quick: none is opened."""
    return ((store, store.reference(name)) for store in STORES for name, _, _ in _named(store))


def listed(store: Store) -> Iterator[Stored]:
    """The models that are there and whole, by name; of very many the first."""
    for name, folder, place in islice(_named(store), SHOWN):
        with suppress(LlamachatError, OSError):
            yield store.open(folder, name, place)
