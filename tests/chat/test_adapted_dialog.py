"""/lora in a dialog: adapters are switched, scaled and added while the model stays, and what it has read is read anew."""

import copy
import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model
from fakes import FakeSession
from hash_engine import byte_tokenizer
from peft_folders import trained

from llamachat import paths
from llamachat.chat.local import LocalBackend
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.core.sampling import SamplingParams
from llamachat.errors import LlamachatError, UsageError
from llamachat.events import TextDelta, TurnDone
from llamachat.models.catalog import ModelEntry
from llamachat.models.load import LoadedModel, load
from llamachat.models.sources import LocalPath
from llamachat.ui import commands
from llamachat.ui.commands import Context
from llamachat.ui.render import Screen
from llamachat.ui.suggestions import candidates

GREEDY = Settings(SamplingParams(temperature=0), max_tokens=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("adapted")
    model = tiny_model(vocab_size=320)
    save_hf(model, top / "base")
    save_tokenizer(top / "base")
    for seed, name in enumerate(("a", "b", "whole")):
        trained(copy.deepcopy(model), top / name, seed, **({"modules_to_save": ["norm"]} if name == "whole" else {}))
    return top


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path / "cache")


def model(made: Path, *adapters: str) -> LoadedModel:
    """Its tokens are bytes."""
    entry = ModelEntry("tiny", LocalPath(made / "base"), dialog="chatml")
    given = [str(made / adapter) for adapter in adapters]
    loaded = load(entry, ctx_size=256, engine="native", threads=1, adapters=given)
    return replace(loaded, tokenizer=byte_tokenizer())


class Desk:
    """A chat at a terminal, or at none."""

    def __init__(self, made: Path, *adapters: str, archive: Archive | None = None) -> None:
        self.backend = LocalBackend(model(made, *adapters), snapshots=archive is not None)
        self.session = Session(self.backend, GREEDY, archive=archive)
        self.out = StringIO()
        self.context = Context(
            lambda: self.session, lambda: self.session, Screen(self.out, self.out), send=lambda sequence: None
        )

    def type(self, text: str) -> str:
        """What is shown of a command, or the answer's ids."""
        self.out.seek(0)
        self.out.truncate()
        events = commands.respond(self.context, text)
        if events is None:
            return self.out.getvalue()
        ids = [id for event in events if isinstance(event, TextDelta) for id in event.ids]
        assert ids
        return repr(ids)


def test_a_switch_answers_as_a_model_loaded_so(made: Path) -> None:
    desk = Desk(made, "a", "b:-0.5")
    with_both = desk.type("the fox")
    assert "a  × 1 · rank 4, 14 modules · 47 kB" in desk.type("/lora") and "b  × -0.5" in desk.type("/lora b")
    said = desk.type("/lora b off")
    assert said == "b is off; the dialog is read anew with the next question\n" and desk.session.context_used == 0
    assert "b  off" in desk.type("/lora")
    desk.type("/lora a 0.25")
    desk.type("again")
    stats = desk.session.last_stats
    assert stats and stats.reused_tokens == 0 < desk.session.context_used, "all was read anew"
    desk.type("/clear")
    assert desk.type("the fox") == Desk(made, "a:0.25").type("the fox") != with_both
    desk.type("/lora a 1")
    desk.type("/lora b on")
    desk.type("/clear")
    assert desk.type("the fox") == with_both


def test_a_switch_needs_the_folder_no_more(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "a", tmp_path / "a")
    desk = Desk(made, str(folder))
    with_it = desk.type("the fox")
    shutil.rmtree(folder)
    assert desk.type("/lora a off") == "a is off; the dialog is read anew with the next question\n"
    desk.type("/lora a on")
    desk.type("/clear")
    assert desk.type("the fox") == with_it


def test_one_is_added_while_the_model_stays(made: Path) -> None:
    desk = Desk(made)
    assert desk.type("/lora") == "no adapters; /lora add PATH takes one from a PEFT folder\n"
    engine = desk.backend.model.engine
    assert desk.type(f"/lora add {made}/a:0.5").startswith("a: × 0.5 · rank 4")
    assert desk.backend.model.engine is engine
    assert desk.type("the fox") == Desk(made, "a:0.5").type("the fox")
    assert desk.session.describe()["adapters"] == "a × 0.5"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/lora x off", "no adapter is called x; nothing was changed; known: a, whole"),
        ("/lora x", "no adapter is called x"),
        ("/lora a much", "'much' is no scale; give a number, on or off"),
        ("/lora a nan", "cannot be scaled by nan"),
        ("/lora a 1e9", "cannot be scaled by 1e[+]09"),
        ("/lora whole off", "whole tensors of its own"),
        ("/lora add", "wants a folder"),
        ("/lora add /nowhere", "/nowhere is no folder of an adapter"),
        ("/lora add {made}/whole", "start again with --lora"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(made: Path, typed: str, said: str) -> None:
    desk = Desk(made, "a", "whole")
    before = desk.session.adapters()
    with pytest.raises(LlamachatError, match=said) as refused:
        desk.type(typed.format(made=made))
    assert "\n" not in str(refused.value) and desk.session.adapters() == before


def test_piped_lines_open_no_folders_but_switch(made: Path) -> None:
    desk = Desk(made, "a")
    desk.context.send = None
    with pytest.raises(UsageError, match="/lora add works at a terminal only"):
        desk.type(f"/lora add {made}/b")
    assert desk.type("/lora a off") == "a is off\n"


def test_tab_offers_names_scales_and_paths(made: Path) -> None:
    context = Desk(made, "a").context
    offered = {
        text: [word for word, _ in candidates(context, text)[1]] for text in ("/lora ", "/lora a ", "/lora add ")
    }
    assert offered == {"/lora ": ["a", "add"], "/lora a ": ["on", "off", "0.5", "1.0"], "/lora add ": []}
    typed, words = candidates(context, f"/lora add {made}/")
    assert typed == f"{made}/" and f"{made}/whole/" in [word for word, _ in words]
    assert candidates(context, "/lora a o")[0] == "o"


def test_the_records_say_which_adapters_answered(made: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "sessions")
    desk = Desk(made, "a:0.5", archive=archive)
    desk.type("the fox")
    desk.type("/lora a off")
    desk.type("the dog")
    desk.session.save("kept")
    desk.session.close()
    (file,) = (tmp_path / "sessions").glob("kept.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    adapters = [each["values"].get("adapters") for each in records if each["type"] == "parameters"]
    assert [each for number, each in enumerate(adapters) if number == 0 or each != adapters[number - 1]] == [
        {"a": 0.5},
        None,
    ]
    other = Desk(made, "b", archive=archive)
    other.session.load("kept")
    assert any("held with other adapters (none); /lora lists those here" in line for line in other.session.notices())
    assert other.type("again")
    other.session.close()
    same = Desk(made, "b", archive=archive)
    same.session.load("kept")
    assert not any("other adapters" in line for line in same.session.notices())


def test_a_dialog_left_is_gone_on_with_by_the_same_adapters_only(made: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "sessions")
    desk = Desk(made, "a", archive=archive)
    desk.type("the fox")
    desk.session.save("kept")
    desk.session.close()
    for adapters, found in ((("a",), True), (("a:0.5",), False), ((), False), (("b",), False)):
        other = Desk(made, *adapters, archive=archive)
        other.session.load("kept")
        assert (other.session.context_used > 0) == found
        other.session.history.tree.active  # noqa: B018 - it is open
        other.session.close() if adapters == ("a",) else None


def test_a_backend_without_adapters_says_so() -> None:
    session = FakeSession()
    with pytest.raises(UsageError, match="Fake-1B takes no adapters"):
        session.adapters()
    assert "adapters" not in session.recorded()
    assert [event for event in session.ask("x") if isinstance(event, TurnDone)]
