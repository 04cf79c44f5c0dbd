"""Commands of a chat over a server: what they show, and what they say where the server has nothing to show."""

import re
from io import StringIO

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from servers import TellingServer, ended_after, remote

from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.core.sampling import SamplingParams
from llamachat.errors import UsageError
from llamachat.remote.asking import Alternative, Piece, ScoredToken, ServedModel
from llamachat.ui import commands
from llamachat.ui.commands import Context
from llamachat.ui.render import Screen
from llamachat.ui.suggestions import ChatCompleter

SERVED = (ServedModel("one", 400), ServedModel("two"))


class Desk:
    """Types into a chat over a server; the answer has the token "Yes" and its alternative."""

    def __init__(self, model: str | None = "one") -> None:
        token = ScoredToken("Yes", -0.5, None, (Alternative("Yes", -0.5), Alternative("No", -1.0)))
        answers = [["Yes"], [Piece("Yes", tokens=(token,))]]
        self.server = TellingServer(*answers, served=SERVED, ended=ended_after(20, 1))
        self.session = Session(remote(self.server, model), Settings(SamplingParams()))
        self._out = StringIO()
        get = lambda: self.session  # noqa: E731
        self.context = Context(get, get, Screen(self._out, self._out), send=lambda safe: None)

    def type(self, text: str) -> str:
        """What is shown for it."""
        if events := commands.respond(self.context, text):
            self.context.screen.answer(events)
        shown = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return shown


def test_what_runs_and_how_fast_is_shown_as_for_a_model_here() -> None:
    desk = Desk()
    assert desk.type("Is it?") == "Yes\n"
    shown = desk.type("/stats")
    for row in (
        "model     one",
        "weights   on 127.0.0.1:9; what they are is not known",
        "used      21 of 400 tokens (5%)",
        "prompt    20 tokens, 0 of them already in the cache; 0.25 s, 80.0 tok/s",
        "answer    1 token; 0.50 s",
    ):
        assert row in shown
    assert "the whole dialog is sent to 127.0.0.1:9" in desk.type("/show model") and "memory" not in shown


def test_probabilities_are_drawn_once_they_were_asked_for() -> None:
    desk = Desk()
    desk.type("Is it?")
    with pytest.raises(
        UsageError, match=r"^this answer came without probabilities; from now on they are asked for; /regen"
    ):
        desk.type("/heat")
    desk.type("/regen")
    assert "1 tokens, perplexity 1.65" in desk.type("/heat")
    assert re.search("1 .* 60.7%  'Yes' ← chosen\n.*2 .* 36.8%  'No'", desk.type("/alts 1"))
    for command, lacks in (
        ("/alts 1 2", "cannot go on"),
        ("/why", "does not show"),
        ("/context", "does not tell"),
        ("/lora", "takes no adapters"),
    ):
        with pytest.raises(UsageError, match=f"^one on 127.0.0.1:9 {lacks}[^\n]*$"):
            desk.type(command)


def test_models_of_the_server_are_listed_completed_and_taken() -> None:
    desk = Desk(None)
    assert "one  on 127.0.0.1:9, context 400\n  two  on 127.0.0.1:9\n" in desk.type("/model")
    words = ChatCompleter(desk.context).get_completions(Document("/model t"), CompleteEvent())
    assert [word.text for word in words] == ["two"]
    assert desk.type("/model two") == "two goes on with the dialog\n"
    desk.type("Is it?")
    assert desk.server.names == ["two"] and desk.session.context_size == 0
