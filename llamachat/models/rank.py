"""A rank other than 0 of a model over several processes: joins rank 0, opens what that tells it to, and does after it what it does."""

import os
import sys
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from llamachat.errors import LlamachatError, reason
from llamachat.models.load import Prepare, checked, opened

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT = 0.5  # seconds


def follow(store: "Store", rank: int, size: int, local: int, prepare: Prepare | None) -> int:
    """Until rank 0 ends it, or has gone; returns the exit code."""
    from llamachat.engines.torch.links import BrokenLinkError, ProcessLinks, hear, send_message, stay_on_this_machine
    from llamachat.engines.torch.parallel import build_shard
    from llamachat.engines.torch.ranks import Follower
    from llamachat.engines.torch.workers import GONE

    stay_on_this_machine()
    store.set(f"here {rank}", "")
    ...
