"""Repositories of GGUF models on the hub, by words of their names. What the hub answers is bounded, checked, and shown to nobody
before it is sanitised."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamachat.checks import is_whole
from llamachat.errors import UsageError
from llamachat.models.fetch.hub_answers import get_json, translated
from llamachat.models.first_look import architectures
from llamachat.models.sources import RULES

MOST = 100  # repositories of one search
LONGEST = 200  # characters of what is searched for
FIELDS = ("downloads", "gated", "gguf", "lastModified", "tags")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
LICENCE = "license:"  # a tag's beginning
MAX_COUNT = 1 << 60


@dataclass(frozen=True)
class Found:
    """A repository; None is what the hub does not tell."""

    name: str  # owner/repo
    parameters: int | None
    downloads: int | None  # of the last 30 days
    updated: str | None  # a date, YYYY-MM-DD
    licence: str | None
    gated: bool
    architecture: str | None  # of its GGUF files
    runs: bool | None  # whether that is one of ours


def search(text: str, limit: int) -> list[Found]:
    """The most downloaded first, at most `limit`. Raises UsageError, CatalogError."""
    if not text.strip() or len(text) > LONGEST:
        cause = "there is nothing to search for" if not text.strip() else f"more than {LONGEST} characters"
        raise UsageError(cause, "the hub was not asked", "give words of a model's name")
    asked = {"search": text, "filter": "gguf", "sort": "downloads", "limit": limit, "expand": [*FIELDS]}
    with translated("models", "nothing was found", again="check the network"):
        rows = get_json("/api/models", asked)
        if not isinstance(rows, list):
            raise ValueError("it lists no models")
        return [found for row in rows[:limit] if isinstance(row, dict) and (found := _found(row))]


def _found(row: Mapping[str, Any]) -> Found | None:
    """None for what cannot be the name of a repository."""
    name = row.get("id")
    if not isinstance(name, str) or len(name) > 200 or not RULES["hub"].fullmatch(name):
        return None
    gguf = row.get("gguf") if isinstance(row.get("gguf"), dict) else {}
    assert isinstance(gguf, dict)
    architecture = _word(gguf.get("architecture"))
    return Found(
        name,
        _count(gguf.get("total")),
        _count(row.get("downloads")),
        _date(row.get("lastModified")),
        _licence(row.get("tags")),
        bool(row.get("gated")),
        architecture,
        architecture in architectures() if architecture else None,
    )


def _count(value: Any) -> int | None:
    return value if is_whole(value) and 0 <= value < MAX_COUNT else None


def _word(value: Any) -> str | None:
    return value[:60] if isinstance(value, str) and value else None


def _date(value: Any) -> str | None:
    match = DATE.match(value) if isinstance(value, str) else None
    return match[0] if match else None


def _licence(tags: Any) -> str | None:
    texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return next((_word(tag.removeprefix(LICENCE)) for tag in texts if tag.startswith(LICENCE)), None)
