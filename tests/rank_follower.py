"""The further processes of tests: they follow rank 0 in two groups, of 2 and of 4 processes, from model to model."""

import os
import sys
import traceback
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from llamachat.core.spec import ModelSpec, QuantConfig
from llamachat.engines.torch.links import BrokenLinkError, ProcessLinks, stay_on_this_machine
from llamachat.engines.torch.ranks import Tensors, follow
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from quantize.once import Quantized

SIZES = (2, 4)


def checkpoint(path: str, scheme: str | None) -> Checkpoint:
    """Quantized as its tensors are read, where there is a scheme."""
    found = open_checkpoint(Path(path))
    return Quantized(found, QuantConfig(scheme)) if scheme else found


def opened(told: Any) -> tuple[ModelSpec, Tensors]:
    found = checkpoint(*told)
    return found.config, found.tensors


class KeptLinks(ProcessLinks):
    """Model after model goes over them, so none closes them."""

    def close(self) -> None:
        pass


def links(folder: str, rank: int, size: int) -> ProcessLinks:
    return KeptLinks(FileStore(f"{folder}/{size}", size), rank, size, "cpu")


def follow_all(folder: str, rank: int, size: int) -> None:
    """Until rank 0 has gone; what else goes wrong ends the process, which rank 0 then sees."""
    try:
        others = links(folder, rank, size)
        while True:
            follow(others, "cpu", opened)
    except BrokenLinkError:
        return
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    stay_on_this_machine()
    number = next((rank for rank in range(1, max(SIZES) - 1) if os.fork() == 0), max(SIZES) - 1)  # one import for all
    threads = [Thread(target=follow_all, args=(sys.argv[1], number, size)) for size in SIZES if number < size]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
