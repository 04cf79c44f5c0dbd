"""Every command does what /help says, and a typed text is a command, an error or a message, never two of them."""

from io import StringIO

import pytest
from fakes import FakeSession

from llamachat.errors import UsageError
from llamachat.ui import commands
from llamachat.ui.render import Screen


def obeyed(text: str, session: FakeSession) -> list[str]:
    """What a command shows."""
    out = StringIO()
    found = commands.find(text)
    assert found is not None
    command, argument = found
    command.run(lambda: session, Screen(out, out), argument)
    return out.getvalue().splitlines()


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


def test_help_lists_every_command_in_80_columns(session: FakeSession) -> None:
    lines = obeyed("/help", session)
    assert all(any(f"/{name}" in line for line in lines) for command in commands.COMMANDS for name in command.names)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("text", ["/exit", "/bye", "/quit", "/exit "])
def test_exit_leaves(text: str, session: FakeSession) -> None:
    with pytest.raises(commands.LeaveError):
        obeyed(text, session)


def test_clear_forgets_the_dialog_and_keeps_the_system_prompt(session: FakeSession) -> None:
    list(session.ask("hi"))
    assert obeyed("/clear", session) == ["dialog cleared"]
    assert (session.history, session.system) == ([], "Be brief.")


def test_system_shows_sets_and_removes(session: FakeSession) -> None:
    assert obeyed("/system", session) == ["Be brief."]
    assert obeyed("/system Two\nlines /clear", session) == ["system prompt set"]
    assert obeyed("/system", session) == ["Two", "lines /clear"]
    obeyed('/system """a block\nof two"""', session)
    assert session.system == "a block\nof two"
    obeyed('/system ""', session)
    assert session.system is None
    assert obeyed("/system", session) == ["no system prompt"]


def test_a_hostile_system_prompt_is_shown_safely(session: FakeSession) -> None:
    session.set_system("a\x1b]0;x\x07b\nc")
    assert obeyed("/system", session) == ["ab", "c"]


def test_set_shows_and_changes_parameters(session: FakeSession) -> None:
    settings = ["  temperature  0.6", "  top_k        none", "  top_p        0.9", "  seed         7"]
    assert obeyed("/set", session) == settings
    assert obeyed("/set temperature 0.2", session) == ["  temperature  0.2"]
    assert obeyed("/set temperature", session) == ["  temperature  0.2"]
    for text in ("/set warmth", "/set warmth 3"):
        with pytest.raises(UsageError, match="no parameter is called warmth"):
            obeyed(text, session)


def test_stats_tell_of_model_context_and_last_answer(session: FakeSession) -> None:
    assert obeyed("/stats", session) == ["  model   Fake-1B", "  engine  a script", "  used    0 of 8192 tokens (0%)"]
    list(session.ask("hi"))
    assert obeyed("/stats", session)[2:] == [
        "  used    12 of 8192 tokens (<1%)",
        "  prompt  10 tokens, 4 of them already in the cache; 0.25 s, 24.0 tok/s",
        "  answer  2 tokens; 0.03 s, 40.0 tok/s",
    ]


@pytest.mark.parametrize("text", ["/", "/nope", "/etc/passwd is a file", "/HELP", "/ help"])
def test_an_unknown_command_is_an_error_of_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown command /\S*; /help lists the commands, //\S* sends it as text$"):
        commands.find(text)


def test_a_command_without_arguments_refuses_one() -> None:
    with pytest.raises(UsageError, match="/clear takes no argument"):
        commands.find("/clear all")


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("hello", "hello"),
        (" /indented", " /indented"),
        ("//help", "/help"),
        ("///", "//"),
        ('"""a\n b"""', "a\n b"),
        ('"""\n/not a command\n"""\n', "/not a command"),
        ('""""""', ""),
        ('"""a""" and more', '"""a""" and more'),
        ('say """', 'say """'),
    ],
)
def test_a_message_is_sent_without_its_quotes_and_escape(typed: str, sent: str) -> None:
    assert commands.find(typed) is None
    assert commands.message(typed) == sent


def test_lines_are_messages_and_blocks_are_one() -> None:
    lines = StringIO('one\n\n  \ntwo \n"""three\n\nfour"""\n/clear\nlast')
    assert list(commands.messages(lines)) == ["one", "two ", '"""three\n\nfour"""', "/clear", "last"]


def test_a_block_that_never_ends_is_an_error() -> None:
    with pytest.raises(UsageError, match="not closed"):
        list(commands.messages(['"""three\n', "four\n"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/s", ["/system", "/set", "/stats"]),
        ("/cl", ["/clear"]),
        ("/set top", ["top_k", "top_p"]),
        ("hello", []),
        ("//s", []),
        ("/system s", []),
    ],
)
def test_completion_offers_commands_and_parameters(text: str, words: list[str]) -> None:
    assert [word for word, _ in commands.completions(text, ["temperature", "top_k", "top_p"])] == words
