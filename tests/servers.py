"""A server that says what it is told to, for tests of what stands above it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llamachat.chat.remote import RemoteBackend
from llamachat.models.catalog import on_server
from llamachat.models.sources import ServerSource
from llamachat.remote.asking import Address, Ended, Piece, Question, ServedModel, Usage
from llamachat.remote.server import Server

URL = "http://127.0.0.1:9/v1"
ONE = (ServedModel("tiny", 400),)

Step = str | Piece | Ended | Exception


class TellingServer(Server):
    """Each answer is the next of `answers`: pieces and what is raised; then it ends as `ended` says, unless the answer does."""

    def __init__(
        self, *answers: Sequence[Step], served: Sequence[ServedModel] = ONE, ended: Ended | None = None
    ) -> None:
        self.answers, self.served, self.ended = list(answers), served, ended or ended_after(20, 3)
        self.asked: list[Question] = []
        self.names: list[str | None] = []  # of the models that were asked

    def at(self, address: Address) -> "TellingServer":
        """The same, as whoever connects to it has it."""
        self.address = address
        return self

    def models(self) -> Sequence[ServedModel]:
        return self.served

    def ask(self, question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        self.asked.append(question)
        self.names.append(self.address.model)
        for step in self.answers.pop(0):
            if interrupted():
                yield replace(self.ended, reason="interrupt", usage=None)
                return
            if isinstance(step, Exception):
                raise step
            yield Piece(step) if isinstance(step, str) else step
            if isinstance(step, Ended):
                return
        yield replace(self.ended, reason="interrupt", usage=None) if interrupted() else self.ended

    @property
    def sent(self) -> list[list[tuple[str, str]]]:
        """The messages of each question."""
        return [[(each.role, each.content) for each in question.messages] for question in self.asked]


def ended_after(prompt: int, said: int, *ignored: str) -> Ended:
    return Ended("stop", Usage(prompt, said), 0.25, 0.75, ignored)


def remote(server: TellingServer, model: str | None = None, url: str = URL, **wanted: object) -> RemoteBackend:
    """The backend of a model of this server."""
    return RemoteBackend(on_server(ServerSource(url, model)), server.at, **wanted)  # type: ignore[arg-type]
