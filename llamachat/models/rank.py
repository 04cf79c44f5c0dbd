"""A rank other than 0 of a model over several processes: it opens what rank 0 tells it to, and does after that what it does."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from llamachat.engines.world import World
from llamachat.models.load import Prepare, checked, opened

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from llamachat.core.spec import ModelSpec
    from llamachat.engines.select import Tensors

BEAT = 0.5  # seconds


def of_torchrun(world: World, prepare: Prepare) -> int:
    """A process that torchrun has started; returns its exit code."""
    from llamachat.engines.torch.workers import launchers_store

    _live_with(os.getppid(), None)
    return follow(launchers_store(), world, prepare)


def of_ours(file: Path, world: World, parent: int, prepare: Prepare) -> int:
    """A process that rank 0, our parent, has started, whose store is a file; returns its exit code."""
    _live_with(parent, file.parent)
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # documented there

    return follow(FileStore(str(file), world.size), world, prepare)


def follow(store: "Store", world: World, prepare: Prepare) -> int:
    """Until rank 0 ends it, or has gone; returns the exit code."""
    from llamachat.engines.torch import ranks
    from llamachat.engines.torch.links import BrokenLinkError, ProcessLinks, stay_on_this_machine
    from llamachat.engines.torch.workers import GONE, called

    device = called(store, world.rank)
    if device is None:
        return 0
    stay_on_this_machine()
    try:
        links = ProcessLinks(store, world.rank, world.size, device)
        own = device if device == "cpu" else f"{device}:{world.local}"
        ranks.follow(links, own, partial(_open, prepare))
        links.close()
    except BrokenLinkError:
        sleep(2 * BEAT)  # if our parent has gone, that is what ends us
        return GONE
    return 0


def _live_with(parent: int, folder: Path | None) -> None:
    """Leave Ctrl-C and the terminal to rank 0, and end when this parent has; what lies in rank 0's folder goes then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if sys.platform != "win32":  # there nobody gets another parent; connections that close tell
        Thread(target=_watch, args=(parent, folder), name="watch", daemon=True).start()


def _watch(parent: int, folder: Path | None) -> None:
    while os.getppid() == parent:
        sleep(BEAT)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _open(prepare: Prepare, told: Any) -> tuple["ModelSpec", "Tensors"]:
    checkpoint, _ = opened(told["path"], told["adapters"], prepare)
    return checkpoint.config, partial(checked, checkpoint)
