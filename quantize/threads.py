"""Work of torch's split among threads, each of which does its part alone: how many there are changes no bit of a result."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from os import cpu_count
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Threads:
    """Runs functions of torch side by side, each on one thread, in a mode of torch's (which are modes of a thread)."""

    def __init__(
        self, count: int | None, mode: Callable[[], AbstractContextManager[object]] = torch.inference_mode
    ) -> None:
        self._pool = ThreadPoolExecutor(count or cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
        self._mode = mode

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        def in_mode(item: T) -> R:
            with self._mode():
                return function(item)

        return list(self._pool.map(in_mode, items))
