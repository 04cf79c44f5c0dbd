"""Every command does what /help says, and a typed text is a command, an error or a message, never two of them."""

import base64
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSession
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llamachat.chat.persona import Persona
from llamachat.chat.store import Archive
from llamachat.errors import CatalogError, DoesNotFitError, LlamachatError, UsageError
from llamachat.events import ModelView, TextDelta, TurnDone
from llamachat.ui import clipboard, commands
from llamachat.ui.commands import Context
from llamachat.ui.render import Screen
from llamachat.ui.suggestions import ChatCompleter


class Shown(Screen):
    """What is shown, as lines; of the drawings, what they were given."""

    def __init__(self) -> None:
        self.out = StringIO()
        self.drawn: list[tuple[str, Any]] = []
        super().__init__(self.out, self.out)

    def taken(self) -> list[str]:
        lines = self.out.getvalue().splitlines()
        self.out.seek(0)
        self.out.truncate()
        return lines


def _drawing(name: str) -> Callable[..., None]:
    return lambda self, *given: self.drawn.append((name, given))


for _name in ("context", "branches", "heat", "alternatives", "why"):
    setattr(Shown, _name, _drawing(_name))


class Library(commands.EmptyLibrary):
    """Two models and one persona."""

    def models(self) -> Iterable[tuple[str, str]]:
        return [("Fake-1B", "small"), ("Fake-7B", "large")]

    def views(self) -> Iterable[ModelView]:
        return [ModelView("Fake-1B", "1 GB", note="small"), ModelView("Fake-7B", "7 GB", note="large")]

    def personas(self) -> Iterable[tuple[str, str]]:
        return [("pirate", "You are a pirate.")]

    def persona(self, name: str) -> Persona:
        if name != "pirate":
            raise UsageError(f"no persona is called {name}")
        messages = (("Who are you?", "A pirate."), ("Where?", "At sea."))
        return Persona(name, "You are a pirate.", {"temperature": 0.9}, messages, "Fake-7B", "off")


class Desk:
    """A chat of which commands are asked."""

    def __init__(self, folder: Path) -> None:
        self.archive = Archive(folder)
        self.session = FakeSession(archive=self.archive)
        self.screen = Shown()
        self.sent: list[str] = []
        self.busy = False  # with a command
        self.context = Context(
            lambda: self.session,
            lambda: None if self.busy else self.session,
            self.screen,
            self.sent.append,
            Library(),
        )

    def type(self, text: str) -> list[str]:
        """What a typed text shows; of an answer, its text."""
        self.busy = True
        try:
            events = list(commands.respond(self.context, text) or ())
        finally:
            self.busy = False
        assert not events or isinstance(events[-1], TurnDone)
        answer = "".join(event.text for event in events if isinstance(event, TextDelta))
        return self.screen.taken() + ([answer] if events else [])

    def questions(self) -> list[str]:
        return [turn.text for turn in self.session.turns() if turn.role == "user"]

    def complete(self, text: str) -> list[str]:
        found = ChatCompleter(self.context).get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + one.start_position] + one.text for one in found]


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(clipboard, "PROGRAMS", ())  # whoever's clipboard this is, the tests leave it alone
    return Desk(tmp_path_factory.mktemp("sessions") / "sessions")


# ---- what a typed text is ----


@pytest.mark.parametrize("text", ["/", "/nope", "/etc/passwd is a file", "/ help", "/" + "x" * 9999])
def test_an_unknown_command_is_an_error_of_one_short_line(desk: Desk, text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown command /.*/help lists them, // sends it as text$") as caught:
        desk.type(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("typed", "near"), [("/regn", "regen"), ("/HELP", "help"), ("/contnue", "continue")])
def test_an_unknown_command_names_the_closest(desk: Desk, typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean /{near}\?"):
        desk.type(typed)


@pytest.mark.parametrize("name", ["clear", "exit", "regen", "continue", "fork", "stats", "heat", "why", "sessions"])
def test_a_command_without_arguments_refuses_one(desk: Desk, name: str) -> None:
    with pytest.raises(UsageError, match=f"/{name} takes no argument"):
        desk.type(f"/{name} all")


@pytest.mark.parametrize("name", ["switch", "save", "load", "export", "read"])
def test_a_command_that_needs_an_argument_says_so(desk: Desk, name: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*(needs a|is no number of|takes the number)[^\n]*$"):
        desk.type(f"/{name}")


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
        ("! ls", "! ls"),
    ],
)
def test_a_message_is_sent_without_its_quotes_and_escape(desk: Desk, typed: str, sent: str) -> None:
    desk.type(typed)
    assert desk.questions() == [sent]


def test_lines_are_messages_and_blocks_are_one() -> None:
    lines = StringIO('one\n\n  \ntwo \n"""three\n\nfour"""\n/clear\nlast')
    assert list(commands.messages(lines)) == ["one", "two ", '"""three\n\nfour"""', "/clear", "last"]


def test_a_block_that_never_ends_is_an_error() -> None:
    with pytest.raises(UsageError, match="not closed"):
        list(commands.messages(['"""three\n', "four\n"]))


# ---- general ----


def test_help_lists_every_command_in_80_columns(desk: Desk) -> None:
    lines = desk.type("/help")
    assert all(any(f"/{name}" in line for line in lines) for command in commands.COMMANDS for name in command.names)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda command: command.names[0])
def test_every_command_has_help_of_its_own_and_completes(desk: Desk, command: commands.Command) -> None:
    for name in command.names:
        for typed in (f"/help {name}", f"/help /{name}"):
            assert command.help in desk.type(typed)[0]
        assert f"/{name}" in desk.complete(f"/{name}")


def test_help_of_no_command_is_an_error(desk: Desk) -> None:
    with pytest.raises(UsageError, match="there is no command /nope"):
        desk.type("/help nope")


@pytest.mark.parametrize("text", ["/exit", "/bye", "/quit", "/q", "/exit "])
def test_exit_leaves(desk: Desk, text: str) -> None:
    with pytest.raises(commands.LeaveError):
        desk.type(text)


# ---- the dialog ----


def test_clear_forgets_the_dialog_and_keeps_the_system_prompt(desk: Desk) -> None:
    desk.type("hi")
    assert desk.type("/clear") == ["dialog cleared"]
    assert (desk.questions(), desk.session.system) == ([], "Be brief.")


def test_regen_answers_again_and_continue_goes_on(desk: Desk) -> None:
    desk.type("hi")
    desk.session.enqueue("second ", desk.session.interrupt)
    assert desk.type("/regen") == ["second "]
    desk.session.enqueue("and more")
    assert desk.type("/continue") == ["and more"]
    assert desk.session.turns()[-1].text == "second and more"
    with pytest.raises(UsageError, match="ended by itself"):
        desk.type("/continue")


def test_undo_goes_back(desk: Desk) -> None:
    for text in ("one", "two", "three"):
        desk.type(text)
    assert desk.type("/undo") == ["went back 1 question; /branches still has what was said"]
    assert desk.questions() == ["one", "two"]
    assert desk.type("/undo 2")[0].startswith("went back 2 questions")
    assert desk.questions() == []
    assert desk.context.prefill == "one", "the question that the dialog stands before"


@pytest.mark.parametrize("argument", ["0", "-1", "x", "1.5", "²", "1" * 5000])
@pytest.mark.parametrize("command", ["undo", "switch", "copy", "alts"])
def test_a_number_that_is_none_is_one_short_line(desk: Desk, command: str, argument: str) -> None:
    desk.type("hi")
    with pytest.raises(UsageError, match="is no number of") as caught:
        desk.type(f"/{command} {argument}")
    assert len(str(caught.value)) < 150


def test_edit_asks_in_other_words_or_brings_the_old_ones(desk: Desk) -> None:
    for text in ("one", "two\nlines"):
        desk.type(text)
    assert desk.type("/edit") == desk.type("/edit 2") == []
    assert desk.context.prefill == "/edit 2 two\nlines"
    assert desk.type('/edit 2 """other\nwords"""') == ["You said: other\nwords"]
    assert desk.questions() == ["one", "other\nwords"]
    assert desk.type("/edit in short") == ["You said: in short"]
    assert desk.questions() == ["one", "in short"]
    for argument, says in (("3", "there is no question 3"), ("0", "is no number of"), ("-1 x", "is no number of")):
        with pytest.raises(UsageError, match=says):
            desk.type(f"/edit {argument}")
    desk.type("/clear")
    with pytest.raises(UsageError, match="nothing has been asked yet; ask something"):
        desk.type("/edit")


def test_undo_and_edit_bring_back_what_was_said_not_what_was_attached(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("a secret")
    desk.type(f"/read {tmp_path / 'notes.md'}")
    desk.type("what is it?")
    assert "a secret" in desk.questions()[0]
    assert desk.type("/edit") == ["its files are to be attached anew"] and desk.context.prefill == "/edit 1 what is it?"
    assert desk.type("/undo")[1:] == ["its files are to be attached anew"] and desk.context.prefill == "what is it?"


@pytest.mark.parametrize("question", ["exit", "/usr/bin is what?", "//note", " Bye ", 'say """x"""', "plain"])
def test_undo_brings_a_question_back_as_it_must_be_typed(desk: Desk, question: str) -> None:
    desk.type(commands.literal(question))
    asked = desk.questions()
    desk.type("/undo")
    desk.type(desk.context.prefill)
    assert desk.questions() == asked == [question]


def test_off_a_terminal_undo_shows_no_question(desk: Desk) -> None:
    desk.context.send = None
    desk.type("hi")
    desk.type("/undo")
    assert desk.context.prefill == ""


def test_branches_are_made_shown_and_switched(desk: Desk) -> None:
    with pytest.raises(UsageError, match="nothing has been said yet; there is nothing to branch off; ask something"):
        desk.type("/fork")
    with pytest.raises(UsageError, match="/switch needs a branch"):
        desk.type("/switch")
    desk.type("one")
    assert desk.type("/fork") == ["a new branch from here; /switch 2 goes back to the other"]
    desk.type("two")
    desk.type("/branches")
    assert [(branch.id, branch.turns) for branch in desk.screen.drawn[0][1][0]] == [(2, 1), (4, 2)]
    assert desk.type("/switch 2") == ["branch 2, 1 question", "> one", "You said: one"]
    assert desk.questions() == ["one"]


# ---- settings ----


def test_system_shows_sets_and_removes(desk: Desk) -> None:
    assert desk.type("/system") == ["Be brief."]
    assert desk.type("/system Two\nlines /clear") == ["system prompt set"]
    assert desk.type("/system") == ["Two", "lines /clear"]
    desk.type('/system """a block\nof two"""')
    assert desk.session.system == "a block\nof two"
    desk.type('/system ""')
    assert desk.type("/system") == ["no system prompt"]


def test_a_hostile_system_prompt_is_shown_safely(desk: Desk) -> None:
    desk.session.set_system("a\x1b]0;x\x07b\nc")
    assert desk.type("/system") == ["ab", "c"]


def test_think_says_whether_the_model_thinks_and_thoughts_shows_what(desk: Desk) -> None:
    assert desk.type("/think") == ["  think         auto", "  think_budget  none"]
    assert desk.type("/think Off") == ["  think         off", "  think_budget  none"]
    assert desk.type("/set think_budget 512")[-1] == "  think_budget  512"
    assert desk.session.parameters()["think"] == "off" and desk.session.parameters()["think_budget"] == 512
    with pytest.raises(UsageError, match=r"think cannot be .*maybe.*; give one of auto, on, off"):
        desk.type("/think maybe")
    assert desk.complete("/think ") == ["/think off", "/think auto", "/think on"]
    with pytest.raises(UsageError, match="there is no answer yet"):
        desk.type("/thoughts")
    desk.session.enqueue(TextDelta("Let me see.", thinking=True), "Yes.")
    desk.type("Is it?")
    assert desk.type("/thoughts") == ["┊ Let me see."]
    assert "  thought  1 token of the answer's; 0.0 s" in desk.type("/stats")
    desk.type("plain")
    with pytest.raises(UsageError, match="came without a thought"):
        desk.type("/thoughts")


def test_set_shows_and_changes_parameters(desk: Desk) -> None:
    settings = [
        ("repetition_penalty", "1.0"), ("frequency_penalty", "0.0"), ("presence_penalty", "0.0"), ("temperature", "0.6"),
        ("top_k", "0"), ("top_p", "0.9"), ("min_p", "0.0"), ("seed", "7"), ("max_tokens", "none"),
        ("think", "auto"), ("think_budget", "none"), ("allow_loops", "off"), ("stats", "off"),
    ]  # fmt: skip
    assert desk.type("/set") == [f"  {name:18}  {value}" for name, value in settings]
    assert desk.type("/set temperature 0.2") == ["  temperature  0.2"]
    assert desk.type("/set stats on") == ["  stats  on"] and desk.context.screen.stats
    assert desk.type("/set allow-loops on") == ["  allow_loops  on"]
    assert desk.type("/set top-p 0.5") == ["  top_p  0.5"], "as the flag is written"
    for text in ("/set warmth", "/set warmth 3"):
        with pytest.raises(UsageError, match=r"no parameter .*warmth"):
            desk.type(text)


def test_show_tells_what_is_set(desk: Desk) -> None:
    lines = desk.type("/show")
    assert [line.split()[0] for line in lines[:6]] == [
        "model",
        "weights",
        "engine",
        "memory",
        "system",
        "repetition_penalty",
    ]
    assert desk.type("/show system") == ["  system  Be brief."]
    with pytest.raises(UsageError, match="/show knows no colour; it knows model, system, parameters, data"):
        desk.type("/show colour")


def test_model_lists_and_changes_and_keeps_the_dialog(desk: Desk) -> None:
    desk.type("hi")
    assert desk.type("/model")[-4:-1] == ["here", "* Fake-1B      1 GB  small", "  Fake-7B      7 GB  large"]
    assert desk.type("/model Fake-7B") == ["Fake-7B goes on with the dialog"]
    assert (desk.session.describe()["model"], desk.questions()) == ("Fake-7B", ["hi"])
    with pytest.raises(CatalogError):
        desk.type("/model nope")


def test_persona_begins_a_dialog_in_its_manner(desk: Desk) -> None:
    assert desk.type("/persona") == ["  pirate  You are a pirate."]
    desk.type("hi")
    lines = ["Fake-7B goes on with the dialog", "a new dialog with pirate, 4 messages already said"]
    assert desk.type("/persona pirate") == lines
    assert desk.session.parameters()["think"] == "off"
    assert [turn.text for turn in desk.session.turns()] == [
        "You are a pirate.", "Who are you?", "A pirate.", "Where?", "At sea.",
    ]  # fmt: skip
    assert desk.session.parameters()["temperature"] == 0.9
    with pytest.raises(UsageError, match="no persona is called nobody"):
        desk.type("/persona nobody")


# ---- files ----


def test_dialogs_are_saved_listed_and_opened(desk: Desk) -> None:
    assert desk.type("/sessions") == ["no saved dialogs", "this dialog is saved with its next question"]
    desk.type("first\nquestion")
    assert desk.session.name == "first"
    assert desk.type("/save work") == ["saved as work, and from now on after each answer"]
    assert desk.type("/sessions")[1].split() == ["●", "work", "just", "now", "1", "Fake-1B", "first"]
    desk.session.close()
    desk.session = FakeSession(archive=desk.archive)
    assert desk.type("/sessions")[1].split()[0] == "work"
    shown = ["work · 1 question · just now · Fake-1B", "> first", "  question", "You said: first", "question"]
    assert desk.type("/load work") == shown
    with pytest.raises(UsageError, match=r"no dialog called wark; did you mean work\?"):
        desk.type("/load wark")


def test_new_leaves_the_dialog_saved_and_clear_begins_anew_in_it(desk: Desk) -> None:
    desk.type("hi there")
    assert desk.type("/new") == ["a new dialog; hi-there stays saved, /load brings it back"]
    assert desk.type("/new") == ["a new dialog"]
    desk.type("other")
    desk.type("/clear")
    desk.type("third")
    assert {one.name: one.turns for one in desk.archive.saved()} == {"hi-there": 1, "other": 1}
    assert "/new begins another dialog" in " ".join(desk.type("/help clear"))
    assert "/clear begins anew in this" in " ".join(desk.type("/help new"))


def test_history_shows_what_was_said(desk: Desk) -> None:
    with pytest.raises(UsageError, match="nothing has been said"):
        desk.type("/history")
    for number in range(1, 23):
        desk.type(f"q{number}")
    lines = desk.type("/history")
    assert lines[0] == "… 2 earlier questions; /history 22 shows all"
    assert [line for line in lines if line.startswith("> ")] == [f"> q{number}" for number in range(3, 23)]
    assert desk.type("/history 2") == ["> q21", "You said: q21", "", "> q22", "You said: q22"]
    assert desk.type("/history 99")[0] == "> q1"
    with pytest.raises(UsageError, match="is no number of questions"):
        desk.type("/history all")


def test_delete_asks_first(desk: Desk) -> None:
    asked = list[str]()
    with pytest.raises(UsageError, match="nothing of this dialog is saved"):
        desk.type("/delete")
    desk.type("one")
    desk.type("/new")
    desk.type("two")
    desk.context.confirm = lambda question: bool(asked.append(question))
    for typed in ("/delete", "/delete one"):
        assert desk.type(typed) == ["nothing was deleted"]
    assert asked == ["delete two (1 question) for good?", "delete one (1 question) for good?"]
    desk.context.confirm = lambda question: True
    assert desk.type("/delete one") == ["deleted one"]
    assert desk.type("/delete") == ["deleted two; a new dialog begins"]
    assert desk.archive.saved() == [] and desk.questions() == []
    desk.type("three")
    desk.type("/undo")
    assert desk.type("/delete")[0].startswith("deleted three"), "though nothing is left of its branch"
    with pytest.raises(UsageError, match="there is no dialog called nope"):
        desk.type("/delete nope")
    other = FakeSession(archive=desk.archive)
    list(other.ask("held"))
    desk.context.confirm = lambda question: pytest.fail("asked in vain")
    with pytest.raises(UsageError, match="another chat has held open; nothing was deleted"):
        desk.type("/delete held")


def test_a_chat_that_keeps_nothing_says_so(desk: Desk) -> None:
    desk.session = FakeSession()
    desk.type("one")
    desk.type("/new")
    assert desk.questions() == []
    for typed in ("/delete x", "/sessions", "/save x", "/load x"):
        with pytest.raises(UsageError, match="this chat keeps no history; start it without --no-history"):
            desk.type(typed)
    assert "This chat keeps nothing of what is said." in " ".join(desk.type("/show data"))


def test_show_data_tells_where_all_is_kept_and_help_tells_of_it(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    (tmp_path / "DATA/llamachat/sessions").mkdir(parents=True)
    (tmp_path / "DATA/llamachat/sessions/a.jsonl").write_bytes(b"x" * 2_000_000)
    lines = desk.type("/show data")
    assert f"  dialogs          2 MB: {tmp_path}/DATA/llamachat/sessions" in lines
    assert f"  input history    nothing: {tmp_path}/STATE/llamachat/history" in lines
    assert "/delete NAME deletes a dialog" in lines[-1] and "--no-history" in lines[-1]
    assert "/show data" in desk.type("/help")[-1]


def test_export_writes_once(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    desk.type("hi")
    assert desk.type("/export ~/a dialog.md") == [f"written to {tmp_path / 'a dialog.md'}"]
    assert "## You\n\nhi\n" in (tmp_path / "a dialog.md").read_text()
    with pytest.raises(UsageError, match="exists"):
        desk.type("/export ~/a dialog.md")


def test_read_attaches_to_the_next_message_that_is_taken(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("some text\n")
    said = desk.type(f"/read {tmp_path / 'notes.md'}")
    assert said == ["attached notes.md (2 tokens, <1% of the context); it goes with your next message"]
    desk.session.enqueue(LlamachatError("does not fit"))
    with pytest.raises(LlamachatError):
        desk.type("too early")
    desk.session.clear()
    desk.type("what is this?")
    desk.type("and now?")
    assert desk.questions() == ["notes.md:\n```\nsome text\n```\n\nwhat is this?", "and now?"]
    assert desk.complete("/edit ") == ["/edit 2", "/edit 1"]


def test_what_does_not_fit_is_refused_before_anything_is_read(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("large", 9000), ("half", 5000)):
        (tmp_path / name).write_text("word " * words)
    says = r"large: 9,003 tokens, and the context holds 8,192; it was not attached; attach a part of it, or start with --ctx"
    with pytest.raises(DoesNotFitError, match=says):
        desk.type("/read large")
    assert desk.type("/read half")[0].startswith("attached half (5,000 tokens, 61% of the context)")
    (tmp_path / "other").write_text("more " * 5000)
    with pytest.raises(DoesNotFitError, match=r"other with what is attached already: 10,\d+ tokens"):
        desk.type("/read other")
    with pytest.raises(DoesNotFitError, match=r"the message with half, other: 10,.*; it was not sent;"):
        desk.type("and @other ?")
    for send in (desk.context.send, None):
        desk.context.attached, desk.context.send = [], send
        with pytest.raises(
            DoesNotFitError, match=r"the message: 9,000 tokens.*; it was not sent; send a part of it, or start"
        ):
            desk.type("word " * 9000)
    desk.context.send = desk.sent.append
    desk.type("/read half")
    assert (desk.session.said, len(desk.context.attached)) == ([], 1)
    desk.type("/read half")
    desk.type("and @half ?")
    assert desk.questions()[0].count("word") == 5000


def test_a_mentioned_file_is_attached_at_a_terminal_only(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("some text")
    assert desk.type("read @notes.md")[0] == "attached notes.md (2 tokens, <1% of the context)"
    assert desk.type("/edit 1 see @notes.md and @no/such")[:2] == [
        "attached notes.md (2 tokens, <1% of the context)",
        "@no/such names no file: sent as it is",
    ]
    desk.context.send = None
    desk.type("read @notes.md")
    assert desk.questions()[-1] == "read @notes.md"


def test_copy_sends_an_answer_to_the_clipboard(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    for answer in ("first ü", "a\x1b]0;x\x07b\x1b[201~\r\n\u202e"):
        desk.session.enqueue(answer)
        desk.type("say")
    assert desk.type("/copy 1") == ["7 characters sent to the terminal's clipboard"]
    desk.type("/copy")
    first, safe = (text.removeprefix("\x1b]52;c;").removesuffix("\x07") for text in desk.sent)
    assert base64.b64decode(first).decode() == "first ü"
    assert base64.b64decode(safe).decode() == "ab\n⟨U+202E⟩"
    with pytest.raises(UsageError, match="there is no answer 3; the last is 2"):
        desk.type("/copy 3")


def test_copy_takes_the_models_own_text_and_code(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    answer = "So \\(x_1\\) and **y**:\n```py\nx = 1\n```\n```\ny\n```\n"
    desk.session.enqueue(TextDelta("hm", thinking=True), answer)
    desk.type("say")
    assert desk.complete("/copy ") == ["/copy code", "/copy 1"]
    for command, text in {"": answer, " 1": answer, " code": "y", " code 1": "x = 1"}.items():
        desk.type(f"/copy{command}")
        assert base64.b64decode(desk.sent[-1].removeprefix("\x1b]52;c;").removesuffix("\x07")).decode() == text
    for command, says in {
        "code 3": "no code block 3; it has 2 code blocks",
        "code x": "'x' is no number of a code block",
    }.items():
        with pytest.raises(UsageError, match=says):
            desk.type(f"/copy {command}")
    desk.session.enqueue("none")
    desk.type("say")
    with pytest.raises(UsageError, match="the last answer has no code block; nothing was copied"):
        desk.type("/copy code")


def test_copy_in_tmux_also_asks_what_is_outside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux")
    desk.session.enqueue("ab")
    desk.type("say")
    assert "tmux must be allowed to" in desk.type("/copy")[0]
    assert desk.sent == ["\x1b]52;c;YWI=\x07\x1bPtmux;\x1b\x1b]52;c;YWI=\x07\x1b\\"]


def test_copy_refuses_where_it_cannot(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no answer to copy"):
        desk.type("/copy")
    desk.session.enqueue("x" * 75_000)
    desk.type("say")
    with pytest.raises(UsageError, match="75,000 bytes are more than"):
        desk.type("/copy")
    monkeypatch.setenv("TERM", "dumb")
    desk.session.enqueue("")
    desk.type("say")
    with pytest.raises(UsageError, match="there is no answer 2"):
        desk.type("/copy 2")
    desk.type("/regen")
    with pytest.raises(UsageError, match="this terminal has no clipboard"):
        desk.type("/copy")
    assert desk.sent == []


@pytest.mark.parametrize(
    "command", ["/read notes.md", "/export notes.md", "/save x", "/load x", "/delete x", "/copy", "/model Fake-7B"]
)
def test_what_is_piped_in_opens_no_files(
    desk: Desk, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    desk.context.send = None
    with pytest.raises(UsageError, match=r"works at a terminal only; piped lines are data, .*; // sends it as text"):
        desk.type(command)
    assert (desk.session.saved(), list(tmp_path.iterdir()), desk.context.attached) == ([], [], [])


# ---- seeing inside ----


def test_stats_tell_of_model_context_and_last_answer(desk: Desk) -> None:
    assert desk.type("/stats")[-1] == "  used     0 of 8192 tokens (0%)"
    desk.type("hi")
    assert desk.type("/stats")[-3:] == [
        "  used     12 of 8192 tokens (<1%)",
        "  prompt   10 tokens, 4 of them already in the cache; 0.25 s, 24.0 tok/s",
        "  answer   2 tokens; 0.03 s, 40.0 tok/s",
    ]


def test_the_path_of_a_model_is_told_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"model": "/a/long/b.gguf", "file": "/a/long/b.gguf", "weights": "int4; 1 GB", "engine": "a script"}
    monkeypatch.setattr(desk.session, "describe", lambda: about)
    for command in ("/stats", "/show model", "/model"):
        assert desk.type(command)[:2] == ["  model    b.gguf", "  file     /a/long/b.gguf"]
    about["model"] = "hf:owner/repo/b.gguf"
    assert desk.type("/stats")[0] == "  model    hf:owner/repo/b.gguf"


def test_the_drawings_get_what_the_session_tells(desk: Desk) -> None:
    desk.type("hi")
    for command in ("/context", "/heat", "/alts 2", "/why"):
        assert desk.type(command) == []
    turns, tokens = desk.session.turns(), desk.session.tokens()
    assert desk.screen.drawn == [
        ("context", (turns, 12, 8192)),
        ("heat", (tokens,)),
        ("alternatives", (2, tokens[1])),
        ("why", (desk.session.why(),)),
    ]


def test_alts_goes_on_from_an_alternative(desk: Desk) -> None:
    desk.type("hi")
    assert desk.type("/alts 2 3") == ["You said:  never and so on"]
    for text, says in (("/alts 9", "has no token 9; it has 2 tokens"), ("/alts 1 9", "no alternative 9")):
        with pytest.raises(UsageError, match=says):
            desk.type(text)


@pytest.mark.parametrize("command", ["/regen", "/continue", "/heat", "/why", "/undo", "/edit 1 x"])
def test_before_the_first_answer_it_is_an_error(desk: Desk, command: str) -> None:
    with pytest.raises(UsageError):
        desk.type(command)


# ---- completion ----


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("/cl", ["/clear"]),
        ("/con", ["/continue", "/context"]),
        ("/q", ["/q"]),
        ("/ex", ["/exit", "/export"]),
        ("/help re", ["/help regen", "/help read"]),
        ("/set top", ["/set top_k", "/set top_p"]),
        ("/set top_k ", ["/set top_k 0", "/set top_k 1", "/set top_k 20", "/set top_k 40", "/set top_k 100"]),
        ("/set top_p 0.9", ["/set top_p 0.9", "/set top_p 0.95"]),
        ("/set top_p 0.9 ", []),
        ("/show s", ["/show system"]),
        ("/model Fake-", ["/model Fake-1B", "/model Fake-7B"]),
        ("/persona ", ["/persona pirate"]),
        ("/load ", ["/load work", "/load at home"]),
        ("/load at h", ["/load at home"]),
        ("/edit ", ["/edit 2", "/edit 1"]),
        ("/copy 1", ["/copy 1"]),
        ("/switch ", ["/switch 2"]),
        ("hello", []),
        ("//s", []),
        ("/system s", []),
        ("/nope ", []),
    ],
)  # fmt: skip
def test_completion_offers_what_fits(desk: Desk, typed: str, offered: list[str]) -> None:
    other = FakeSession(archive=desk.archive)
    list(other.ask("one"))
    other.save("at home")
    desk.type("one")
    desk.type("/save work")
    desk.type("/fork")
    desk.type("two")
    assert desk.complete(typed) == offered


def test_completion_offers_paths(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notes.md", "a file", ".hidden", "it\x1b[31ms"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inner").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert desk.complete("/read n") == ["/read notes.md"]
    assert desk.complete("/export ~/a ") == ["/export ~/a file"]
    assert desk.complete("/read ./folder/") == ["/read ./folder/inner"]
    assert desk.complete("see @fold") == ["see @folder/"]
    assert desk.complete("see @a") == ['see @"a file"']
    assert desk.complete('see @"a f') == ['see @"a file"']
    assert desk.complete("/edit 1 see @n") == ["/edit 1 see @notes.md"]
    assert desk.complete("/read a") == ['/read "a file"']
    assert desk.complete('/read notes.md "a f') == ['/read notes.md "a file"']
    assert desk.complete("/read notes.md ./fold") == ["/read notes.md ./folder/"]
    assert desk.complete("/system see @n") == []
    assert desk.complete("see @.") == ["see @.hidden"]
    assert desk.complete("mail me@n") == desk.complete("/read missing/") == []
    assert desk.complete(f"/model {tmp_path}/not") == [f"/model {tmp_path}/notes.md"]
    (shown,) = ChatCompleter(desk.context).get_completions(Document("/read it"), CompleteEvent())
    assert shown.display_text == "its", "a name cannot drive the terminal from the menu"


def test_completion_waits_for_no_model_and_survives_a_broken_catalog(desk: Desk) -> None:
    def broken() -> Iterator[tuple[str, str]]:
        raise CatalogError("models.toml cannot be read")

    desk.context.ready = lambda: None
    desk.context.library.models = broken  # type: ignore[method-assign]
    assert [desk.complete(f"/{name} ") for name in ("set", "load", "edit", "switch", "model")] == [[]] * 5
