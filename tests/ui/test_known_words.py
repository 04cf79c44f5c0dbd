"""What fingers know from ollama, llama-cli and flags: obeyed where it is clear, hinted at where it is not."""

from io import StringIO

import pytest
from fakes import FakeSession
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llamachat.errors import UsageError
from llamachat.events import TextDelta
from llamachat.ui import commands
from llamachat.ui.commands import Context
from llamachat.ui.render import Screen
from llamachat.ui.suggestions import ChatCompleter


class Table:
    """A chat of which commands are asked."""

    def __init__(self) -> None:
        self.session, self.notes = FakeSession(), StringIO()
        screen = Screen(self.notes, self.notes)
        self.context = Context(lambda: self.session, lambda: self.session, screen, send=self.notes.write)

    def type(self, text: str) -> str:
        """What is shown, or answered."""
        self.notes.seek(0)
        self.notes.truncate()
        events = commands.respond(self.context, text) or ()
        answer = "".join(event.text for event in events if isinstance(event, TextDelta))
        return answer or self.notes.getvalue()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("/temp 0.4", "temperature", 0.4),
        ("/temperature 0.4", "temperature", 0.4),
        ("/set temp 0.4", "temperature", 0.4),
        ("/set temperature=0.4", "temperature", 0.4),
        ("/set parameter temperature 0.4", "temperature", 0.4),
        ("/top-p 0.9", "top_p", 0.9),
        ("/top_k 3", "top_k", 3),
        ("/set --top-k 3", "top_k", 3),
        ("/seed 3", "seed", 3),
        ("/seed none", "seed", None),
        ("/max-tokens 5", "max_tokens", 5),
        ("/set num_predict 5", "max_tokens", 5),
        ("/repeat-penalty 1.1", "repetition_penalty", 1.1),
        ("/think-budget 9", "think_budget", 9),
        ("/set nothink", "think", "off"),
    ],
)
def test_a_parameter_is_a_command_by_its_own_name_or_its_flags(
    table: Table, typed: str, name: str, value: object
) -> None:
    assert name in table.type(typed)
    assert table.session.parameters()[name] == value


def test_a_parameter_alone_is_shown_and_its_values_are_offered(table: Table) -> None:
    assert table.type("/temp").split() == ["temperature", str(table.session.parameters()["temperature"])]
    found = ChatCompleter(table.context).get_completions(Document("/top-p 0.9"), CompleteEvent())
    assert [each.text for each in found] == ["0.9", "0.95"]
    assert "likeliest token" in table.type("/help temp")


def test_what_ollama_calls_otherwise_is_obeyed(table: Table) -> None:
    table.type('/set system "You are brief."')
    assert table.session.system == "You are brief."
    assert "Fake-1B" in table.type("/show info") and "temperature" not in table.type("/show info")
    assert "temperature" in table.type("/set parameter") and "/help" in table.type("/?")
    table.type("hi")
    assert table.type("/retry") == "You said: hi"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("/temprature 0.4", "unknown command /temprature; did you mean /temperature 0.4? // sends it as text"),
        ("/topp 0.9", "did you mean /top_p 0.9?"),
        ("/retri", "did you mean /retry?"),
        ("/set temprature 1", "no parameter is called temprature; nothing was set; did you mean temperature?"),
        ("/set xyz 1", "no parameter is called xyz; nothing was set; /set lists them"),
        ("/set nohistory", "llamachat --no-history"),
        ("/set num_ctx 4096", "llamachat --ctx-size"),
        ("/set pack_cache 5GB", "llamachat --pack-cache"),
        ("/set dtype float32", "llamachat --dtype"),
        ("/set format json", "--schema"),
        ("/show license", "`llamachat models show NAME`"),
        ("/show nothing", "it knows model, system, parameters"),
        ("/models", "/model lists the models"),
        ("/resume", "/load NAME opens"),
        ("/set temperature x", "temperature cannot be 'x'; give a number, or none"),
    ],
)
def test_what_is_not_there_gets_what_was_meant_or_what_there_is(table: Table, typed: str, says: str) -> None:
    before = dict(table.session.parameters())
    with pytest.raises(UsageError) as raised:
        table.type(typed)
    assert says in str(raised.value) and table.session.parameters() == before


@pytest.mark.parametrize("word", ["exit", "quit", "bye", " Bye "])
def test_a_word_of_leaving_leaves_at_a_terminal_and_says_how_to_send_it(table: Table, word: str) -> None:
    with pytest.raises(commands.LeaveError):
        table.type(word)
    assert table.notes.getvalue() == f'{word.strip()} alone leaves; """{word.strip()}""" sends the word\n'
    assert table.type(f'"""{word.strip()}"""') == f"You said: {word.strip()}"
    assert table.type(f"{word} now").startswith("You said: ")
    table.context.send = None
    assert table.type(word) == f"You said: {word}", "piped lines are data"


@pytest.mark.parametrize("text", ["/exit", "exit", '"""', '"""a"""', "//x", "a\n/b", "", " \n", '""""""'])
def test_a_literal_text_is_sent_as_it_is_whatever_it_begins_with(table: Table, text: str) -> None:
    assert table.type(commands.literal(text)) == f"You said: {text.strip(chr(10))}"
