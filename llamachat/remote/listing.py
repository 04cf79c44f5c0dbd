"""A server's list of models, and what it tells of each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamachat.checks import is_count
from llamachat.remote import abilities
from llamachat.remote.abilities import Abilities
from llamachat.remote.asking import ServedModel

MOST = 10_000  # models
LONGEST_NAME = 300  # characters
NAMED = 20  # models that a line names
# vLLM and SGLang; LM Studio (what is loaded before what could be); Mistral; OpenRouter and Together; Groq
CONTEXT = ("max_model_len", "loaded_context_length", "max_context_length", "context_length", "context_window")


def listed(body: Mapping[str, Any]) -> list[ServedModel]:
    """Those with a name that people can write."""
    return [ServedModel(str(each["id"]), _context(each)) for each in _entries(body)]


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def kind(body: Mapping[str, Any], model: str | None) -> Abilities:
    """What can be asked of the server beyond what all have: by the owner of `model`, or of the first that it has."""
    owners = {str(each["id"]): each.get("owned_by") for each in _entries(body)}
    return abilities.of(owners.get(model or "", next(iter(owners.values()), None)))


def _entries(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    data = body.get("data")
    for each in data[:MOST] if isinstance(data, list) else ():
        name = each.get("id") if isinstance(each, Mapping) else None
        if isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME:
            yield each


def _context(entry: Mapping[str, Any]) -> int | None:
    """Of llama-server the context that it runs with, else the model's own."""
    meta = entry.get("meta")
    told = [entry.get(key) for key in CONTEXT]
    told += [meta.get("n_ctx"), meta.get("n_ctx_train")] if isinstance(meta, Mapping) else []
    right = (each for each in told if is_count(each) and each)
    return next(right, None)
