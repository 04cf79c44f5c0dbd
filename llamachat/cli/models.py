"""`llamachat models list|show|pull|rm`: the catalog, seen and changed from the command line."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from llamachat.cli import epilogs
from llamachat.cli.shell_words import models
from llamachat.cli.tables import print_table
from llamachat.engines import memory
from llamachat.errors import LlamachatError
from llamachat.models import fetch, fit, overview
from llamachat.models.catalog import (
    HubSource,
    LocalPath,
    ModelEntry,
    ServerSource,
    Source,
    StorePath,
    WheelSource,
    load_catalog,
    resolve,
    user_file,
)
from llamachat.models.fetch.verified import Progress, folder_size
from llamachat.system.sanitise import sanitise, sanitise_line

models_app = typer.Typer(help="List, inspect, fetch and remove models.", no_args_is_help=True)
COLUMNS = ("name", "download", "on disk", "fits", "context", "licence", "store")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str, typer.Argument(help="A name from `llamachat models list`, hf:owner/repo, or a path.", autocompletion=models)
]


@models_app.command("list", epilog=epilogs.LIST)
def list_models(as_json: AsJson = False) -> None:
    """All models by name, other programs' too: what they weigh, whether they are here, whether they would fit in memory."""
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
def show_model(name: Name, as_json: AsJson = False) -> None:
    """Everything known of a model: source, licence, files, memory plan."""
    entry = resolve(name)
    facts = _facts(entry)
    if as_json:
        _print_json(facts)
        return
    plan = fit.entry_plan(entry)
    told = {
        **facts,
        "download_bytes": memory.size(entry.download_bytes) if entry.download_bytes else None,
        "disk_bytes": memory.size(facts["disk_bytes"]),
        "memory": memory.describe(plan) + (": fits" if plan.fits else f": does not fit; try {memory.advice(plan)}")
        if plan
        else None,
    }
    if facts["server"]:  # of which nothing can be here
        del told["gated"], told["disk_bytes"]
    lines = {key.removesuffix("_bytes"): _told(value) for key, value in told.items() if value not in (None, "", {}, ())}
    _print(*(f"{key.replace('_', ' '):12}  {sanitise_line(value)}" for key, value in lines.items()))


@models_app.command("pull", epilog=epilogs.PULL)
def pull_model(name: Name) -> None:
    """Fetch a model, or go on with an interrupted fetch; prints where it lies."""
    entry = resolve(name)
    plan = fit.entry_plan(entry)
    if plan and not plan.fits:
        _note(f"note: {entry.name} needs {memory.describe(plan)}; to run it, try {memory.advice(plan)}")
    with shown_progress() as progress:
        path = fetch.fetch(entry, progress)
    _print(str(path))


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


@models_app.command("cache", epilog=epilogs.CACHE)
def packed_weights(
    clear: Annotated[bool, typer.Option("--clear", help="Delete them all; the next start makes them anew.")] = False,
) -> None:
    """List what makes a second start quick, or delete it: weights in the native engine's layout, dialogs' keys and values."""
    from llamachat.generation import snapshot
    from llamachat.models import packed_weights

    caches = packed_weights.store(), snapshot.store()
    if clear:
        _print(f"{memory.size(sum(kept.clear() for kept in caches))} freed")
        return
    for kept in caches:
        held = kept.entries()
        _print(*(f"{memory.size(path.stat().st_size):>8}  {path}" for path in held))
        total = sum(path.stat().st_size for path in held)
        _print(f"{memory.size(total):>8}  in all, of at most {memory.size(int(kept.limit))}")


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar on standard error, gone when done; where that is no terminal, one line for each step."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(what: str, done: int, total: int | None) -> None:
            if what not in seen and done != total:
                _note(what + (f" ({memory.size(total)})" if total else ""))
            seen.add(what)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def bar(what: str, done: int, total: int | None) -> None:
            if bars.tasks[0].description != sanitise_line(what):
                bars.reset(task, description=sanitise_line(what))
            bars.update(task, completed=done, total=total)

        yield bar


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


def _stored_facts(known: overview.Known) -> dict[str, Any]:
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
        "-" if served else memory.size(download) if download else "?",
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
