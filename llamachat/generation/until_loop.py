"""A server's answer, as long as it does not go round in circles."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from llamachat.generation.loops import Loops
from llamachat.remote.asking import Ended, Piece, Question
from llamachat.remote.request import echoes
from llamachat.remote.server import Server

CHARACTERS = 4  # that count as a token


def until_loop(
    server: Server, question: Question, interrupted: Callable[[], bool], allowed: bool
) -> Generator[Piece | Ended, None, None]:
    """As Server.ask; unless loops are allowed, it ends with the reason "repeat" where the text goes round in circles. Servers
    send pieces of any length, so that characters are compared."""
    if allowed:
        yield from server.ask(question, interrupted)
        return
    loops, echoed = Loops(CHARACTERS), len(question.text or "") if echoes(question) else 0
    with closing(server.ask(question, lambda: loops.found or interrupted())) as parts:
        for part in parts:
            if isinstance(part, Ended):
                yield replace(part, reason="repeat") if loops.found and part.reason == "interrupt" else part
                return
            for character in part.text[echoed:]:
                loops.add(ord(character))
            echoed = max(0, echoed - len(part.text))
            yield part
