"""A rank other than 0 of a model over several processes: it opens what rank 0 tells it to, and does after that what it does."""

import os
import signal
import sys
from functools import partial
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

    return follow(launchers_store(), world, prepare)


def of_ours(file: str, world: World, prepare: Prepare) -> int:
    """A process that rank 0 has started, whose store is a file; returns its exit code."""
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # documented there

    return follow(FileStore(file, world.size), world, prepare)


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
    except BrokenLinkError:
        return GONE
    return 0


def live_with_parent() -> None:
    """Leave Ctrl-C and the terminal to rank 0, and end when whoever started us has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    Thread(target=_watch, args=(os.getppid(),), name="watch", daemon=True).start()


def _watch(parent: int) -> None:
    while sys.platform == "win32" or os.getppid() == parent:  # there a parent's number stays; its connections close
        sleep(BEAT)
    os._exit(1)


def _open(prepare: Prepare, told: Any) -> tuple["ModelSpec", "Tensors"]:
    checkpoint, _ = opened(told["path"], told["adapters"], prepare)
    return checkpoint.config, partial(checked, checkpoint)
