"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_EVENT = 4 << 20  # bytes


class OverlongError(Exception):
    """An event has more than LONGEST_EVENT bytes."""


@dataclass(frozen=True)
class Event:
    """`name`: "" unless the server gives one."""

    data: str
    name: str = ""


class Events:
    """Bytes in, whole events out, across any cutting of the bytes. What follows the last empty line is no event."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the parts of one that has not ended
        self._data: list[bytes] = []  # of the event that has not ended
        self._name = b""
        self._size = 0  # of all that
        self._after_return = False  # the last byte ended a line, and a line feed behind it belongs to that
        self._first = True

    def add(self, data: bytes) -> Iterator[Event]:
        """Raises OverlongError."""
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        for part in data.splitlines(keepends=True):
            self._line.append(part)
            self._size += len(part)
            if self._size > LONGEST_EVENT:
                raise OverlongError
            if part.endswith((b"\n", b"\r")):
                line, self._line = b"".join(self._line).rstrip(b"\r\n"), []
                yield from self._ended(line)
        self._after_return = self._after_return or data.endswith(b"\r")

    def _ended(self, line: bytes) -> Iterator[Event]:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field in (b"data", b"error"):  # llama-server used to send errors in a field of that name
            self._data.append(value)
            self._name = self._name if field == b"data" else field
        elif field == b"event":
            self._name = value
        elif not line:
            yield from self._event()
        if not (self._data or self._name):
            self._size = 0

    def _event(self) -> Iterator[Event]:
        data, name = b"\n".join(self._data).decode(errors="replace"), self._name.decode(errors="replace")
        had, self._data, self._name = bool(self._data), [], b""
        if had:
            yield Event(data, name)
