"""What tests of the terminal share."""

from collections.abc import Callable, Iterator

import pytest
from pty_chat import Terminal


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def begin(*args: object, **kwargs: object) -> Terminal:
        started.append(Terminal(*args, **kwargs))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for terminal in started:
        terminal.child.close(force=True)
