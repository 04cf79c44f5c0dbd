"""A further process of a model over several: torchrun's, or one that engines/torch/workers.py starts with its store, its rank,
their number, and rank 0's process. It has no screen, and no command of its own."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from llamachat.engines.world import World, launched
from llamachat.models import rank
from quantize.prepare import prepare


def of_torchrun() -> NoReturn:
    """Does not return."""
    world = launched()
    assert world is not None
    sys.exit(rank.of_torchrun(world, prepare))


def main(store: str, number: str, size: str, parent: str) -> NoReturn:
    """Does not return."""
    for name in [name for name, value in os.environ.items() if not value]:  # what it is not to see
        del os.environ[name]
    sys.exit(rank.of_ours(Path(store), World(int(number), int(size), int(number)), int(parent), prepare))


if __name__ == "__main__":
    main(*sys.argv[1:])
