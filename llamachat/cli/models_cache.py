"""`llamachat models cache`: what is kept on disk so that a start is quick, by the models that it is of."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.errors import UsageError
from llamachat.system.amounts import size
from llamachat.system.sanitise import sanitise

if TYPE_CHECKING:
    from llamachat.models.disk_cache import DiskCache

DAY = 24 * 3600
UNKNOWN = "unknown"


def models_cache(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only what is of this model, as the list names it.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete them; the next start makes them anew.")] = False,
) -> None:
    """List what makes a second start quick, or delete it: weights in the native engine's layout, dialogs' keys and values."""
    from llamachat.cli.config import effective
    from llamachat.cli.defaults import chat_context
    from llamachat.generation import snapshot
    from llamachat.models.packed_weights import limit_of, store, tidy

    asked, source = effective("pack-cache", chat_context(ctx))
    weights, dialogs = store(limit_of(asked)), snapshot.store()
    with suppress(OSError), weights.alone() as alone:
        if alone:
            tidy(weights)
    chosen = [path for path in weights.entries() if name in (None, path.stem, _name(path))]
    if name is not None and not chosen:
        raise UsageError(f"nothing is kept of {name}", remedy="`llamachat models cache` lists what is")
    if clear:
        freed = weights.delete(chosen) if name else weights.clear() + dialogs.clear()
        _print(f"{size(freed)} freed")
        return
    for path in chosen:
        _print(_line(path))
    if name is None:
        setting = "config set pack-cache SIZE|off"
        _print(_total(weights, "packed weights", "a tenth of the free disk; " * (source == "default") + setting))
        _print(_total(dialogs, "keys and values of dialogs and prefixes"))


def _total(kept: "DiskCache", what: str, why: str = "") -> str:
    behind = f" ({why})" if why else ""
    most = f"of at most {size(int(kept.limit))}" if kept.limit else "and no more are kept"
    return f"{size(kept.held()):>8}  of {what}, {most}{behind}"


def _name(path: Path) -> str:
    from llamachat.models.packed_weights import made_of

    facts = made_of(path)
    return facts["name"] if facts else UNKNOWN


def _line(path: Path) -> str:
    from llamachat.models.packed_weights import made_of
    from llamachat.system.known import last_use

    facts = made_of(path)
    what = f"{facts['name']}  {facts['path']}" if facts and facts["name"] != facts["path"] else facts and facts["name"]
    return f"{size(path.stat().st_size):>8}  {_ago(last_use(path)):12}  {what or f'{UNKNOWN}  {path.stem}'}"


def _ago(moment: float) -> str:
    days = int(max(0.0, time.time() - moment) // DAY)
    return "used today" if days == 0 else f"{days} day{'s' * (days > 1)} ago"


def _print(line: str) -> None:
    typer.echo(sanitise(line))
