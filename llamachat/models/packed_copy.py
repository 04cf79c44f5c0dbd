"""A copy on disk of packed weights, where it makes the next start quicker: written behind the answer, so that nobody waits for
it. Whatever goes wrong costs the copy, and nothing else."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llamachat import paths
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.models.disk_cache import PART
from llamachat.models.packed_weights import Fresh, remember, store, tidy
from llamachat.system import private, textfile
from llamachat.system.amounts import size

PAYS = 0.02  # seconds of packing from which on a copy, which is mapped in a tenth of that, is worth its place
IDLE = 0.5  # seconds without a step after which nobody waits for the processor
LOWEST = 19  # of the priorities of threads
PATIENCE = 1.0  # seconds that a thread has to leave what it writes
CHANGE = "`llamachat config set pack-cache SIZE|off` changes that"


class LeftError(BaseException):
    """The copy is no longer wanted."""


@dataclass(frozen=True)
class Copy:
    """Of weights that lie in memory. `limit`: bytes that all copies may have; see packed_weights.store."""

    fresh: Fresh
    limit: int | None

    @property
    def nbytes(self) -> int:
        return self.fresh.weights.nbytes

    def write(self, told: Callable[[int], None]) -> str | None:
        """Keep it, unless it is there or somebody is writing; returns why it cannot be kept, in words. `told` is called with the
        bytes so far; what it raises ends the writing, and nothing is left of it."""
        fresh, kept = self.fresh, store(self.limit)
        try:
            with kept.alone() as alone:
                if not alone or fresh.path.exists():
                    return None
                tidy(kept)
                if self.nbytes > kept.limit:
                    return f"pack-cache allows {size(kept.limit)}"
                if not kept.make_room(self.nbytes):
                    return f"{size(kept.free())} are free"
                packed = fresh.weights.tensors.items()
                remember(fresh.path, PackedWeights.write(packed, fresh.path, fresh.path.stem, fresh.about, told))
        except OSError as error:
            return error.strerror or str(error)
        return None

    def drop(self) -> None:
        """Delete what is half written of it, by whoever writes."""
        path = self.fresh.path
        for part in path.parent.glob(f".{path.name}.*{PART}"):
            part.unlink(missing_ok=True)

    def remark(self, why: str | None) -> str | None:
        """What a person is told after `write`: once that there are copies, and once of the first that could not be kept."""
        if not _first_time("kept" if why is None else "not kept"):
            return None
        weights = f"{size(self.nbytes)} of packed weights"
        if why is None:
            most = size(store(self.limit).limit)
            return f"{weights} are kept for a quick start; all may take {most}; {CHANGE}"
        took = f"{self.fresh.seconds:.0f} s" if self.fresh.seconds >= 1 else "a moment"
        return f"{weights} are not kept ({why}): packing takes {took} at each start; {CHANGE}"


def worth_keeping(fresh: Fresh | None, limit: int | None) -> Copy | None:
    """The copy to make of weights that have just been packed, if one pays."""
    return Copy(fresh, limit) if fresh and fresh.seconds >= PAYS and limit != 0 else None


class Behind:
    """Writes a copy in a thread that nobody is to feel: only while nothing is computed, and with the lowest priority."""

    def __init__(self, copy: Copy, used: Callable[[], float]) -> None:
        """`used`: when the engine ended its last step, by time.monotonic; infinite within one."""
        self.copy, self._used = copy, used
        self._left, self._begun = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._remarks: list[str] = []

    def begin(self) -> None:
        """Soon; harmless when repeated."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def remarks(self) -> list[str]:
        """What a person should be told, each once."""
        new, self._remarks = self._remarks, []
        return new

    def leave(self) -> None:
        """Write no more of it, and leave nothing half written; harmless when repeated, and when it is written."""
        self._left.set()
        if not self._begun:
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():  # it waits for the disk, or its turn
            self.copy.drop()

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process'
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        with suppress(LeftError):
            self._wait(0)
            why = self.copy.write(self._wait)
            if not self._left.is_set() and (line := self.copy.remark(why)):
                self._remarks.append(line)

    def _wait(self, done: int) -> None:
        """Until nothing is computed. Raises LeftError."""
        while (rest := self._used() + IDLE - time.monotonic()) > 0:
            if self._left.wait(min(rest, IDLE)):
                break
        if self._left.is_set():
            raise LeftError


def behind(owner: object, copy: Copy | None, engine: Any) -> Behind | None:
    """What writes the copy of an engine's weights, if one is to be made, until its owner is gone."""
    if copy is None:
        return None
    writer = Behind(copy, lambda: float(engine.used))
    weakref.finalize(owner, writer.leave)
    return writer


def _first_time(word: str) -> bool:
    """Whether this has never been asked of this word before, as a file in the state folder tells."""
    file = paths.state_dir() / "pack-cache"
    told = set[str]()
    with suppress(OSError, ValueError):
        told = set(textfile.read(file, 100).decode("ascii").splitlines())
    if word in told:
        return False
    with suppress(OSError):  # where it cannot be written down, it is said once more
        private.folder(file.parent)
        with private.writing(file) as stream:
            stream.write("\n".join(sorted({*told, word})).encode())
    return True
