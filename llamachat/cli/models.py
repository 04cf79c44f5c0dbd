"""`llamachat models list|search|show|pull|rm`: the catalog and the hub, seen and changed from the command line."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.checks import shown
from llamachat.cli import epilogs
from llamachat.cli.found_models import found_table
from llamachat.cli.models_cache import models_cache
from llamachat.cli.progress import shown_progress
from llamachat.cli.shell_words import models
from llamachat.cli.tables import print_beside, print_table
from llamachat.engines import memory
from llamachat.errors import LlamachatError, UsageError
from llamachat.models import fetch, fit
from llamachat.models.catalog import ModelEntry, load_catalog, resolve, user_file
from llamachat.models.fetch.choice import GGUFFile, is_read, parts_of
from llamachat.models.fetch.hub_search import MOST, search
from llamachat.models.fetch.verified import folder_size
from llamachat.models.sources import HubSource, LocalPath, ServerSource, Source, StorePath, WheelSource
from llamachat.system.sanitise import sanitise, sanitise_line

if TYPE_CHECKING:
    from llamachat.models.overview import Known

models_app = typer.Typer(help="List, inspect, fetch and remove models.", no_args_is_help=True, add_completion=False)
models_app.command("cache", epilog=epilogs.CACHE)(models_cache)
COLUMNS = ("name", "download", "on disk", "fits", "context", "licence", "store")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str,
    typer.Argument(
        help="A name from `llamachat models list`, hf:owner/repo[:QUANT], or a path.", autocompletion=models
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.", envvar="LLAMACHAT_OFFLINE")]


@models_app.command("list", epilog=epilogs.LIST)
def list_models(as_json: AsJson = False) -> None:
    """All models by name, other programs' too: what they weigh, whether they are here, whether they would fit in memory."""
    from llamachat.models import overview

    catalog, room = load_catalog(), overview.Room()
    known = list(overview.of_catalog(catalog, room))
    facts = [_facts(each.entry) | {"default": each.entry.name == catalog.default, "store": None} for each in known]
    others = [_stored_facts(each) for each in overview.of_stores(room, [each.path for each in known])]
    if as_json:
        _print_json([*facts, *others])
        return
    rows = [_row(fact) for fact in facts]
    if not sys.stdout.isatty():
        print_table(
            COLUMNS, [COLUMNS, *((*row, "") for row in rows), *((*_row(each), each["store"]) for each in others)]
        )
        return
    print_table(COLUMNS[:-1], rows, ("download", "context"), whole="name")
    _print(f"* default   Your own models go to {user_file()}")
    for called, group in groupby(others, key=lambda fact: fact["program"]):
        _print("", called, *_stored_lines(list(group)))


@models_app.command("show", epilog=epilogs.SHOW)
def show_model(name: Name, as_json: AsJson = False, offline: Offline = False) -> None:
    """Everything known of a model: source, licence, files, memory plan; of a repository on the hub also what it has."""
    entry, offers = _asked(resolve(name), offline)
    facts = _facts(entry) | ({"quants": [_offer(each) for each in offers]} if offers else {})
    if as_json:
        _print_json(facts)
        return
    told = {
        **facts,
        "download_bytes": memory.size(entry.download_bytes) if entry.download_bytes else None,
        "disk_bytes": memory.size(facts["disk_bytes"]),
        "memory": _memory(entry),
        "quants": ", ".join(map(_told_offer, offers)),
    }
    if facts["server"]:  # of which nothing can be here
        del told["gated"], told["disk_bytes"]
    lines = {key.removesuffix("_bytes"): _told(value) for key, value in told.items() if value not in (None, "", {}, ())}
    for key, value in lines.items():
        print_beside(f"{key.replace('_', ' '):12}  ", sanitise_line(value))


def _asked(entry: ModelEntry, offline: bool) -> tuple[ModelEntry, tuple[GGUFFile, ...]]:
    """With what the hub says of it, where nothing else is known."""
    unknown = isinstance(entry.source, HubSource) and entry.download_bytes is None
    if offline or not unknown or fetch.locate(entry):
        return entry, ()
    with shown_progress() as progress:
        return fetch.offered(entry, progress)


def _offer(model: GGUFFile) -> dict[str, Any]:
    known = {"reads": is_read(model.quant), "fits": fit.file_fits(model.size)}
    return {"quant": model.quant, "files": model.parts, "bytes": model.size} | known


def _told_offer(model: GGUFFile) -> str:
    note = "" if is_read(model.quant) else " (not read)"
    return f"{model.quant or model.name} {memory.size(model.size)}{note}"


def _memory(entry: ModelEntry) -> str | None:
    """Whether it fits, and what it needs as far as that is known."""
    if plan := fit.entry_plan(entry):
        return memory.describe(plan) + (": fits" if plan.fits else f": does not fit; try {memory.advice(plan)}")
    here = _weights_here(entry)
    fits = fit.file_fits(here) if here else fit.fits(entry)
    if fits is None:
        return None
    return f"{memory.size(memory.available_memory())} is free: {'fits' if fits else 'does not fit'}"


def _weights_here(entry: ModelEntry) -> int:
    """Bytes of a GGUF model of the hub, where all of it is on this machine."""
    path = fetch.locate(entry) if isinstance(entry.source, HubSource) else None
    if path is None or path.is_dir():
        return 0
    return sum(path.with_name(Path(part).name).stat().st_size for part in parts_of(path.name))


@models_app.command("search", epilog=epilogs.SEARCH)
def search_models(
    text: Annotated[list[str], typer.Argument(help="Words of a model's name.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST, help="How many.")] = 20,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Models on the hub in GGUF format, the most downloaded first; `-m hf:NAME` takes one."""
    if offline:
        raise UsageError("--offline forbids to ask the hub", "nothing was searched", "run it without --offline")
    found = search(" ".join(text), limit)
    if as_json:
        _print_json([asdict(each) | {"reference": f"hf:{each.name}"} for each in found])
    elif not found:
        _note(f"no GGUF repository of the hub is called like {shown(' '.join(text))}")
    else:
        found_table(found)


@models_app.command("pull", epilog=epilogs.PULL)
def pull_model(name: Name, offline: Offline = False) -> None:
    """Fetch a model, or go on with an interrupted fetch; prints where it lies."""
    entry = resolve(name)
    with shown_progress() as progress:
        path = fetch.fetch(entry, progress, offline, lambda settled: _warn(entry, settled, progress.note))
    _print(str(path))


def _warn(asked: ModelEntry, settled: ModelEntry, note: Callable[[str], None]) -> None:
    """What was chosen, and that it will not fit."""
    if settled.source != asked.source:
        note(fetch.describe(settled))
    if (plan := fit.entry_plan(settled)) and not plan.fits:
        note(f"note: {settled.name} needs {memory.describe(plan)}; to run it, try {memory.advice(plan)}")
    elif fit.fits(settled) is False:
        note(f"note: {settled.name} does not seem to fit: {memory.size(memory.available_memory())} of memory is free")


@models_app.command("rm", epilog=epilogs.REMOVE)
def remove_model(name: Name) -> None:
    """Delete the files that were fetched for a model, and what its quant_config made of them."""
    entry = resolve(name)
    copy = _quantized_copy(entry)
    freed = fetch.remove(entry)
    if copy and copy.is_dir():
        freed += folder_size(copy)
        shutil.rmtree(copy)
    _print(f"{entry.name}: {memory.size(freed)} freed")


def _quantized_copy(entry: ModelEntry) -> Path | None:
    """Where it would lie; it is named after the fetched files, so ask before they are gone."""
    path = fetch.locate(entry) if entry.quant_config else None
    if path is None or entry.quant_config is None:
        return None
    from llamachat.formats.detect import open_checkpoint
    from quantize.once import quantized_path

    try:
        return quantized_path(open_checkpoint(path), entry.quant_config)
    except LlamachatError as error:  # damaged: a reason to delete it
        _note(f"note: what was quantized from it is not deleted: {error}")
        return None


def _facts(entry: ModelEntry) -> dict[str, Any]:
    """What `show` tells and `--json` prints; sizes in bytes, paths as text."""
    path, plan = fetch.locate(entry), fit.entry_plan(entry)
    facts = {key: value for key, value in asdict(entry).items() if key not in ("source", "shape")}
    return {
        **facts,
        "source": _place(entry.source),
        "server": _server(entry.source) if isinstance(entry.source, ServerSource) else None,
        "params": (entry.shape.params or None) if entry.shape else None,
        "path": str(path) if path else None,
        "disk_bytes": fetch.disk_usage(entry),
        "memory": asdict(plan) | {"needed": plan.needed, "fits": plan.fits} if plan else None,
    }


def _stored_facts(known: "Known") -> dict[str, Any]:
    """The same of a model that another program has fetched, and whose it is."""
    assert known.store is not None
    plan = known.plan
    return {
        **_facts(known.entry),
        "disk_bytes": known.nbytes,
        "memory": asdict(plan) | {"needed": plan.needed, "fits": plan.fits} if plan else None,
        "default": False,
        "store": known.store.name,
        "program": known.store.called,
        "lacks": known.seen.lacks or None,
    }


def _stored_lines(facts: list[dict[str, Any]]) -> Iterator[str]:
    """Size, whether it fits, and the name, which may be long, last; or why it cannot run."""
    fits = ["no" if fact["lacks"] else _fits(fact["memory"]) for fact in facts]
    for fact, answer in zip(facts, fits, strict=True):
        why = f"  ({fact['lacks']})" if fact["lacks"] else ""
        size, name = memory.size(fact["disk_bytes"]), sanitise_line(fact["name"] + why)
        yield f"{size:>8}  {answer:{max(map(len, fits))}}  {name}"


def _fits(need: dict[str, Any] | None) -> str:
    if need is None:
        return "?"
    return "yes" if need["fits"] else f"needs {memory.size(need['needed'])}"


def _place(source: Source) -> str:
    match source:
        case StorePath():
            return f"{source.path}, of {source.program}"
        case WheelSource():
            return f"Python package {source.wheel} {source.version}"
        case HubSource():
            return f"hf:{source.hub}" + (f"/{source.file}" if source.file else "") + f"@{source.revision or 'main'}"
        case LocalPath():
            return str(source.path)
        case ServerSource():
            return "a server"


def _server(source: ServerSource) -> dict[str, Any]:
    """Where it is; of its key the variable's name."""
    facts = {"url": source.server, "model": source.model, "key_env": source.key_env, "insecure": source.insecure}
    return {key: value for key, value in facts.items() if value}


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    need, download, served = fact["memory"], fact["download_bytes"], fact["server"]
    return (
        fact["name"] + (" *" if fact["default"] else ""),
        "-" if served or fact["store"] else memory.size(download) if download else "?",
        "-" if served else "yes" if fact["path"] else "part" if fact["disk_bytes"] else "no",
        "server" if served else "no" if fact.get("lacks") else _fits(need),
        str(fact["context"] or "?"),
        (fact["licence"] or "?") + (" (gated)" if fact["gated"] else ""),
    )


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(v)}" for key, v in value.items() if v not in (None, ()))
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _print(*lines: str) -> None:
    for line in lines:
        typer.echo(sanitise(line))


def _note(line: str) -> None:
    typer.echo(sanitise_line(line), err=True)
