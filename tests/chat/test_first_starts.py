"""The line at the first starts, and what /model and Tab are told of models: the library that a chat has."""

import os
import stat
from pathlib import Path
from typing import cast

import pytest
from hub_server import Hub, reachable
from store_folders import hub_cache, ollama, write_header

from llamachat import paths
from llamachat.chat import first_starts
from llamachat.chat.library import Library
from llamachat.core.engine import Engine
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import CatalogError, ConfigError
from llamachat.formats.detect import open_checkpoint
from llamachat.models import fetch
from llamachat.models.catalog import ModelEntry, resolve
from llamachat.models.load import LoadedModel

SAID = "This is a small demonstration model. Better, and fits: /model "


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("llamachat.engines.memory.available_memory", lambda: 9_000_000_000)
    return tmp_path


def hint(entry: ModelEntry | None = None, keeps: bool = True) -> str | None:
    return first_starts.hint(entry or resolve(), Library(), keeps)


def test_it_is_said_three_times_and_fits_a_line(home: Path) -> None:
    said = [hint() for _ in range(4)]
    assert said[3] is None and said[0] is not None and said[:3] == [said[0]] * 3
    assert said[0].startswith(SAID) and len(said[0]) <= 80
    name = said[0].removeprefix(SAID).partition(" ")[0]
    assert not resolve(name).gated
    file = paths.state_dir() / "first-starts"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 or os.name == "nt"


def test_it_is_never_said_again_once_a_model_was_chosen(home: Path) -> None:
    assert hint() is not None
    assert hint(resolve("qwen3-4b")) is None and hint() is None


def test_without_history_nothing_is_written(home: Path) -> None:
    for entry in (resolve(), resolve("qwen3-4b")):
        hint(entry, keeps=False)
    assert not paths.state_dir().exists() and hint(keeps=False) == hint(keeps=False) is not None


@pytest.mark.parametrize("found", [b"", b"many", b"-5", b"9" * 100, b"\xff"])
def test_what_another_wrote_there_does_no_harm(home: Path, found: bytes) -> None:
    paths.state_dir().mkdir(parents=True)
    (paths.state_dir() / "first-starts").write_bytes(found)
    assert hint() is not None


def test_where_nothing_can_be_written_it_is_said_once_more(home: Path) -> None:
    (home / "STATE").write_text("no folder")
    assert hint() is not None and hint() is not None


def test_one_that_is_here_and_made_to_chat_goes_first(home: Path, smollm2_gguf: Path) -> None:
    base = write_header(home / ".local/share/gpt.gguf")
    hub_cache(home / "hf/hub", "ada/Base-GGUF", {"base.gguf": base})
    large = home / "large.gguf"
    large.write_bytes(smollm2_gguf.read_bytes())
    with large.open("ab") as file:
        file.truncate(200_000_000)  # what is behind the tensors is no one's
    (home / ".lmstudio/models/ada/Chat").mkdir(parents=True)
    large.rename(home / ".lmstudio/models/ada/Chat/chat.gguf")
    assert hint() == "This is a small demonstration model. Better, and here: /model lmstudio:ada/Chat/chat (200 MB)"


def test_views_tell_what_is_here_and_what_would_fit(home: Path) -> None:
    weights = write_header(home / "own.gguf", arch="mamba")
    ollama(home / ".ollama/models", "registry.ollama.ai/library/odd/latest", weights)
    views = {view.name: view for view in Library().views()}
    assert (views["qwen3-4b"].size, views["qwen3-4b"].fits, views["qwen3-4b"].here) == ("2.5 GB", True, False)
    assert views["llama-3.3-70b"].fits is False
    odd = views["ollama:odd"]
    assert (odd.here, odd.runs, odd.place, odd.note) == (
        True,
        False,
        "ollama",
        "mamba is no architecture that runs here",
    )
    assert {view.fits for view in Library(force=True).views()} <= {True, None}


def test_a_choice_is_offered_only_where_there_is_one(home: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/latest", write_header(home / "own.gguf"))
    library = Library()
    view = library.view("qwen3-4b")
    assert view and not view.here and view.size == "2.5 GB" and view.needs
    tiny = library.view("ollama:tiny")
    assert tiny and tiny.here
    for name in ("nonsense", "ollama:nonsense", "server:http://127.0.0.1:9#x"):
        assert library.view(name) is None
    assert Library(offline=True).view("qwen3-4b") is None


def test_what_the_hub_does_not_tell_is_not_loaded_unasked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who loads it would ask the hub again, perhaps hear more, and fetch it."""
    with reachable(Hub("a/b", {}, status=500), home, monkeypatch), pytest.raises(CatalogError, match="hub answers 500"):
        Library().view("hf:a/b")


def test_names_for_tab_are_the_catalogs_and_the_stores(home: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/latest", write_header(home / "own.gguf"))
    library = Library()
    words = dict(library.models())
    assert words["ollama:tiny"] == "here, in ollama" and words["smollm2-135m"]
    assert library.models() is library.models(), "asked for at every key, and looked up once"
    (home / "CONFIG/llamachat").mkdir(parents=True)
    (home / "CONFIG/llamachat/models.toml").write_text("nonsense")
    with pytest.raises(ConfigError):
        Library().models()


def test_a_model_of_ollamas_answers_as_its_layers_say(home: Path, smollm2_gguf: Path) -> None:
    models = home / ".ollama/models"
    manifest = ollama(
        models, "registry.ollama.ai/library/tiny/latest", smollm2_gguf, system="Be brief.", params={"temperature": 0.1}
    )
    entry = resolve("ollama:tiny")
    checkpoint = open_checkpoint(fetch.fetch(entry))
    model = LoadedModel(entry, checkpoint, cast(Tokenizer, None), engine=cast(Engine, None), load_s=0)
    assert (model.name, model.reference, model.system) == ("ollama:tiny", "ollama:tiny", "Be brief.")
    assert model.sampling.temperature == 0.1 and checkpoint.path.parent == manifest.parents[4] / "blobs"
    assert checkpoint.chat_template is not None, "it is the file's own"
