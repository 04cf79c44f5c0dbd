"""The further processes of a model, started by torch's elastic launcher, or by torchrun, which has started this one too.

Those of our own do not see the terminal, nor Ctrl-C on it, nor the person's tokens and keys; they meet this one in a folder that
is closed to others, and end with it.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # documented there
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, SubprocessContext, start_processes

from llamachat.engines.torch.links import EVER, BrokenLinkError, ProcessLinks, stay_on_this_machine
from llamachat.errors import LostError, UsageError
from llamachat.system import environment

PROGRAM = "llamachat.cli.rank_process"
BEAT = 0.02  # seconds between two looks at who is there,
WATCH = 0.2  # and at who has gone from GPUs
PATIENCE = 5.0  # seconds in which a process that has ended is found to have
GONE = 75  # exit code of a process that lost the others: it is not the one to blame
CALL = "call"  # what rank 0 says in the store: on which device to join it, or to leave
LEAVE = "leave"


class Workers:
    """Ranks 1 to size - 1, as processes of our own."""

    def __init__(self, size: int, device: str) -> None:
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="llamachat-"))  # for its owner only
        self.store = FileStore(str(self.folder / "store"), size)
        self.store.set(CALL, device)
        self.processes = _start(self.folder, size)
        self._finalizer = weakref.finalize(self, _end, self.processes, self.folder)

    def failure(self) -> str:
        """See ranks.Others."""
        end = time.monotonic() + PATIENCE
        while (found := self.first_ended()) is None and time.monotonic() < end:
            time.sleep(BEAT)
        said = found and self._last_words(found[0])
        self.end()
        if found is None:
            return "the connection to a process was lost"
        rank, code = found
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"process {rank + 1} of {self.size} ended ({how}){f': {said}' if said else ''}"

    def first_ended(self) -> tuple[int, int] | None:
        """See ranks.Others."""
        codes = {number + 1: each.proc.poll() for number, each in self.processes.subprocess_handlers.items()}
        return next(((rank, code) for rank, code in codes.items() if code not in (None, GONE)), None)

    def watch(self, links: ProcessLinks) -> None:
        """Until they are ended: where one of them ends by itself, what waits for it on a GPU is given up."""
        while self._finalizer.alive:
            if self.first_ended():
                links.abort()
                return
            time.sleep(WATCH)

    def end(self) -> None:
        """See ranks.Others."""
        self._finalizer()

    def _last_words(self, rank: int) -> str:
        log = Path(self.processes.stderrs[rank - 1])
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


class Launched:
    """Those that torchrun has started, and ends."""

    called = False

    def __init__(self, size: int, device: str) -> None:
        """Raises UsageError where they have a model already."""
        if Launched.called:
            cause = "the processes that torchrun has started have a model already"
            raise UsageError(cause, "another one was not loaded", "start again with -m NAME")
        Launched.called = True
        self.size, self.store = size, launchers_store()
        self.store.set(CALL, device)

    def failure(self) -> str:
        """See ranks.Others."""
        return f"one of the {self.size} processes ended (torchrun tells which)"

    def first_ended(self) -> tuple[int, int] | None:
        """See ranks.Others. torchrun ends us all then."""
        return None

    def end(self) -> None:
        """See ranks.Others."""


def join(workers: Workers | Launched, device: str) -> ProcessLinks:
    """The links of rank 0, once all are there. Raises LostError where one of them ends before."""
    names = [f"here {rank}" for rank in range(1, workers.size)]
    while not workers.store.check(names):
        if workers.first_ended():
            raise LostError(workers.failure(), "the model was not loaded", "start again")
        time.sleep(BEAT)
    stay_on_this_machine()
    try:
        links = ProcessLinks(workers.store, 0, workers.size, device)
    except BrokenLinkError as error:
        raise LostError(workers.failure(), "the model was not loaded", "start again") from error
    if device == "cuda" and isinstance(workers, Workers):
        Thread(target=workers.watch, args=(links,), name="watch", daemon=True).start()
    return links


def dismiss() -> None:
    """Let those that torchrun has started go, if they were never called."""
    if not Launched.called:
        launchers_store().set(CALL, LEAVE)


def called(store: Store, rank: int) -> str | None:
    """In one of the others: the device on which to join rank 0, once that calls; None: not at all."""
    store.set(f"here {rank}", "")
    store.set_timeout(EVER)
    told = store.get(CALL).decode()
    return None if told == LEAVE else told


def launchers_store() -> Store:
    """The one that torchrun, or its agent, keeps."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    master = not agents and os.environ["RANK"] == "0"
    return PrefixStore("llamachat", TCPStore(host, port, is_master=master, wait_for_workers=False))


def _start(folder: Path, size: int) -> SubprocessContext:
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)  # we tell, in one line
    count = range(1, size)
    with _handlers_kept():
        started = start_processes(
            "llamachat",
            sys.executable,
            {rank - 1: ("-P", "-m", PROGRAM, str(folder / "store"), rank, size, os.getpid()) for rank in count},
            {rank - 1: {**_blanked(), **environment.of_ourselves()} for rank in count},
            DefaultLogsSpecs(str(folder / "logs"), Std.ALL),
        )
    assert isinstance(started, SubprocessContext), "which a program's name gives"
    return started


def _blanked() -> dict[str, str]:
    """The launcher hands on all of our environment: what the others must not see is empty there."""
    return dict.fromkeys(os.environ, "")


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """The launcher puts handlers of its own for signals that are the screen's business."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not signal.getsignal(number):
                signal.signal(number, handler)


def _end(processes: SubprocessContext, folder: Path) -> None:
    processes.close(signal.SIGKILL if hasattr(signal, "SIGKILL") else None)
    for (
        handler
    ) in processes.subprocess_handlers.values():  # the launcher leaves those open that have ended by themselves
        for log in (handler._stdout, handler._stderr):
            if log:
                log.close()
    shutil.rmtree(folder, ignore_errors=True)
