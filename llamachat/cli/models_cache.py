"""`llamachat models cache`: what is kept on disk so that a start is quick, by the models that it is of."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.checks import shown
from llamachat.cli.tables import print_beside
from llamachat.errors import UsageError
from llamachat.system.amounts import size
from llamachat.system.sanitise import sanitise_line

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
    from llamachat.models.disk_cache import deleting
    from llamachat.models.packed_weights import limit_of, made_of, store, tidy

    asked, source = effective("pack-cache", chat_context(ctx))
    weights, dialogs = store(limit_of(asked)), snapshot.store()
    tidied = 0
    with suppress(OSError), weights.alone() as alone:
        tidied = tidy(weights) if alone else 0
    about = {path: made_of(path) or {} for path in weights.entries()}
    chosen = [path for path, facts in about.items() if name in (None, path.stem, *map(facts.get, ("name", "path")))]
    if name is not None and not chosen:
        raise UsageError(f"nothing is kept of {shown(name)}", remedy="`llamachat models cache` lists what is")
    if clear:
        with deleting("what is left stays"):
            freed = weights.delete(chosen) if name else tidied + weights.clear() + dialogs.clear()
        typer.echo(f"{size(freed)} freed")
        return
    for path in chosen:
        _show(path, about[path])
    if name is None:
        setting = "`llamachat config set pack-cache SIZE|off`"
        _show_total(weights, "packed weights", f" ({'a tenth of the free disk; ' * (source == 'default')}{setting})")
        _show_total(dialogs, "keys and values of dialogs and prefixes")


def _show(path: Path, facts: dict[str, str]) -> None:
    from llamachat.system.known import last_use

    name, place = sanitise_line(facts.get("name", UNKNOWN)), sanitise_line(facts.get("path", path.stem))
    nbytes = path.stat().st_size if path.exists() else 0  # somebody else has just deleted it
    print_beside(_head(nbytes), f"{_ago(last_use(path)):12}  {name}" + f"  {place}" * (place != name))


def _show_total(kept: "DiskCache", what: str, why: str = "") -> None:
    most = f"of at most {size(int(kept.limit))}" if kept.limit else "and no more are kept"
    print_beside(_head(kept.held()), f"of {what}, {most}{why}")


def _head(nbytes: int) -> str:
    return f"{size(nbytes):>8}  "


def _ago(moment: float) -> str:
    days = int(max(0.0, time.time() - moment) // DAY)
    return "used today" if days == 0 else f"{days} day{'s' * (days > 1)} ago"
