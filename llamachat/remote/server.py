"""One OpenAI-compatible server."""

from collections.abc import Callable, Iterator, Sequence

from llamachat.remote.asking import Address, Ended, Piece, Question, ServedModel


class Server:
    """Its connections, and what it has been found to be able to do. May be used by several threads at once."""

    def __init__(self, address: Address, *, offline: bool = False) -> None:
        """Raises UsageError for an address that is none, or that is not to be used so; asks nothing yet."""
        self.address = address

    def models(self) -> Sequence[ServedModel]:
        """Those that it has. Raises ServerError."""
        raise NotImplementedError

    def ask(self, question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        """The answer as it comes: pieces, then how it ended. Raises ServerError before the first piece or behind any.

        `interrupted` is asked while it is waited for; then the connection is closed at once and Ended("interrupt") comes.
        Leaving the iterator closes the connection, too.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close its connections."""
