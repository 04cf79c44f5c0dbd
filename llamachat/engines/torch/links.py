"""What the processes of one model send each other, over gloo, or nccl between GPUs: tensors to be added up, parts to be put
together, commands and arrays. All of it is numbers and JSON; nothing that is received is ever run.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # documented there

Arrays = Mapping[str, NDArray[Any]]
FRAME = 4096  # bytes of a command that are sent at once; a longer one's rest follows
CONNECT = timedelta(seconds=60)
EVER = timedelta(days=3650)  # a chat may be idle for days; a process that ends closes its connections, which is noticed
TYPES = ("int8", "uint8", "uint16", "int64", "float16", "float32", "float64")


class BrokenLinkError(Exception):
    """Another process has gone."""


class Links(Protocol):
    """Rank 0 commands, ranks 1 to size - 1 do the same as it does. Each method is called by all of them, or by the two whom it
    concerns. Raises BrokenLinkError."""

    rank: int
    size: int

    def add_up(self, x: Tensor) -> None:
        """x becomes the sum of everyone's."""
        ...

    def broadcast(self, x: Tensor) -> None:
        """x becomes rank 0's."""
        ...

    def send(self, x: Tensor, to: int) -> None: ...

    def receive(self, x: Tensor, source: int) -> None:
        """x becomes what was sent, which has its shape and dtype."""
        ...

    def close(self) -> None:
        """Nothing more is said; for each by itself."""
        ...


class ProcessLinks:
    """Those of real processes: gloo's for what is in memory, nccl's for what is on GPUs."""

    def __init__(self, store: Store, rank: int, size: int, device: str) -> None:
        """Joins the others, who must all be there by now."""
        self.rank, self.size = rank, size
        self.sum, self.first = dist.AllreduceOptions(), dist.BroadcastOptions()
        self.sum.timeout = self.first.timeout = EVER
        with _broken():
            gloo = dist.ProcessGroupGloo(PrefixStore("gloo", store), rank, size, CONNECT)
            self.groups: dict[str, Any] = {"cpu": gloo}
            if device == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                self.groups["cuda"] = dist.ProcessGroupNCCL(PrefixStore("nccl", store), rank, size, options)

    def close(self) -> None:
        """Wait for the threads that talk to the others: one that lets go of a tensor while Python ends aborts the process."""
        self.groups.clear()

    def abort(self) -> None:
        """Have GPUs give up what they wait for: unlike gloo, nccl does not notice that another process has ended."""
        if "cuda" in self.groups:
            self.groups["cuda"].abort()

    def add_up(self, x: Tensor) -> None:
        with _broken():
            self.groups[x.device.type].allreduce([x], self.sum).wait(EVER)

    def broadcast(self, x: Tensor) -> None:
        with _broken():
            self.groups[x.device.type].broadcast([x], self.first).wait(EVER)

    def send(self, x: Tensor, to: int) -> None:
        with _broken():
            self.groups[x.device.type].send([x], to, 0).wait(EVER)

    def receive(self, x: Tensor, source: int) -> None:
        with _broken():
            self.groups[x.device.type].recv([x], source, 0).wait(EVER)


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and nccl have no errors of their own
        raise BrokenLinkError(" ".join(str(error).split())[:200]) from error


def stay_on_this_machine() -> None:
    """Have gloo and nccl talk over the loopback interface, unless another was chosen, or torchrun has started some of us
    elsewhere."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    elsewhere = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE")) != os.environ.get("WORLD_SIZE")
    if (loopback := next((name for name in ("lo", "lo0") if name in names), None)) and not elsewhere:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)


# Sums and parts of tensors ---------------------------------------------------------------------------------------------


def summed(x: Tensor, links: Links) -> Tensor:
    """The sum of everyone's x, in float32 at least and then in the dtype of x."""
    total = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    links.add_up(total)
    return total.to(x.dtype)


def gathered(x: Tensor, widths: Sequence[int], links: Links) -> Tensor:
    """At rank 0, everyone's x [T, widths[rank]] side by side, in the order of ranks; elsewhere x itself."""
    if links.rank:
        links.send(x.contiguous(), 0)
        return x
    others = [x.new_empty(len(x), width) for width in widths[1:]]
    for rank, piece in enumerate(others, 1):
        links.receive(piece, rank)
    return torch.cat((x, *others), -1)


# Commands --------------------------------------------------------------------------------------------------------------


def tell(command: Any, links: Links) -> None:
    """Have everyone `hear` this (JSON)."""
    data = json.dumps(command).encode()
    frame = len(data).to_bytes(8, "little") + data
    links.broadcast(_bytes(frame[:FRAME].ljust(FRAME, b"\0")))
    if len(frame) > FRAME:
        links.broadcast(_bytes(frame[FRAME:]))


def hear(links: Links) -> Any:
    """What rank 0 tells next."""
    frame = torch.empty(FRAME, dtype=torch.uint8)
    links.broadcast(frame)
    data = frame.numpy().tobytes()
    size, data = int.from_bytes(data[:8], "little"), data[8:]
    if size > len(data):
        rest = torch.empty(size - len(data), dtype=torch.uint8)
        links.broadcast(rest)
        data += rest.numpy().tobytes()
    return json.loads(data[:size])


def send_message(message: Any, links: Links, to: int) -> None:
    """JSON to one of them."""
    data = json.dumps(message).encode()
    links.send(torch.tensor([len(data)]), to)
    links.send(_bytes(data), to)


def receive_message(links: Links, source: int) -> Any:
    size = torch.empty(1, dtype=torch.int64)
    links.receive(size, source)
    data = torch.empty(int(size), dtype=torch.uint8)
    links.receive(data, source)
    return json.loads(data.numpy().tobytes())


def send_arrays(arrays: Arrays, links: Links, to: int) -> None:
    """numpy's, by name."""
    arrays = {
        name: np.require(array, requirements=["C", "W"]) for name, array in arrays.items()
    }  # torch takes no read-only one
    send_message([[name, str(array.dtype), array.shape] for name, array in arrays.items()], links, to)
    for array in arrays.values():
        if array.size:
            links.send(torch.from_numpy(array.reshape(-1).view(np.uint8)), to)


def receive_arrays(links: Links, source: int) -> dict[str, NDArray[Any]]:
    arrays = dict[str, NDArray[Any]]()
    for name, kind, shape in receive_message(links, source):
        if kind not in TYPES:
            raise BrokenLinkError(f"an array of {kind}")
        arrays[name] = np.empty(shape, kind)
        if arrays[name].size:
            links.receive(torch.from_numpy(arrays[name].reshape(-1).view(np.uint8)), source)
    return arrays


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
