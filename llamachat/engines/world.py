"""Which of several processes this is, as torchrun tells those that it starts. Imports nothing heavy."""

import os
from dataclasses import dataclass

from llamachat.errors import UsageError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """A place among so many; `local`: among those on this machine."""

    rank: int
    size: int
    local: int


def launched() -> World | None:
    """The place that torchrun gave this process among several; None where nobody did, or it is alone."""
    told = {name: os.environ.get(name, "") for name in NEEDED}
    numbers = [told[name] for name in NEEDED[:3]]
    if not all(told.values()) or not all(number.isdecimal() for number in numbers):
        return None
    world = World(*map(int, numbers))
    return world if world.size > 1 else None


def processes(asked: int | None) -> int:
    """How many one model runs over: as asked for, or as many as torchrun has started. Raises UsageError where these differ."""
    world = launched()
    if world is None:
        return asked or 1
    if asked not in (None, world.size):
        cause = f"torchrun has started {world.size} processes, {asked} were asked for"
        raise UsageError(cause, "nothing was loaded", "leave out --tensor-parallel, or give --nproc_per_node the same")
    return world.size
